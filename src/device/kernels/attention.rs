//! Attention in bf16: `attention.cu`, and `attention_90.cu` where it runs.
#![allow(unsafe_code)] // says how its arguments are laid out

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{Launch, THREADS, THREADS_90, is_hopper, place, place_on};
use crate::device::arguments::{self, PIECES};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));
const PTX_90: &str = include_str!(concat!(env!("OUT_DIR"), "/attention_90.ptx"));

/// As the kernel has them: widths of a head, and keys of a tile.
const WIDTHS: [usize; 3] = [32, 64, 128];
const KEYS: usize = 64;
/// Tiles in shared memory: two of keys, two of values.
const TILES: usize = 4;
/// As the other kernel has them: the width, keys of a tile, tiles, the queries among them, and barriers.
const WIDTH_90: usize = 128;
const KEYS_90: usize = 128;
const TILES_90: usize = 7;
const BARRIERS_90: usize = 13;

/// Softmax attention of `(1, queries, heads, width)` over keys and values in pieces, shaped likewise; the last
/// key stands for `last_count` equal ones.
pub fn attention(
    q: &Tensor,
    keys: &[(&Tensor, &Tensor)],
    last_count: usize,
) -> Result<Option<Tensor>> {
    let (batch, _, _, width) = q.dims4()?;
    let mut tensors = keys.iter().flat_map(|(k, v)| [*k, *v]).chain([q]);
    let is_known = tensors.all(|x| x.device().is_cuda() && x.dtype() == DType::BF16);
    if !is_known || batch != 1 || !WIDTHS.contains(&width) {
        return Ok(None);
    }
    let keys = if keys.len() > PIECES {
        let all = |part: fn(&(&Tensor, &Tensor)) -> Tensor| {
            Tensor::cat(&keys.iter().map(part).collect::<Vec<_>>(), 1)
        };
        vec![[all(|(k, _)| (*k).clone())?, all(|(_, v)| (*v).clone())?]]
    } else {
        let contiguous = |(k, v): &(&Tensor, &Tensor)| Ok([k.contiguous()?, v.contiguous()?]);
        keys.iter().map(contiguous).collect::<Result<_>>()?
    };
    let is_row = q.stride()[2..] == [width, 1];
    let q = if is_row { q.clone() } else { q.contiguous()? };
    q.apply_op1_no_bwd(&Attention { keys, last_count }).map(Some)
}

/// What queries attend to.
struct Attention {
    /// Keys, values.
    keys: Vec<[Tensor; 2]>,
    last_count: usize,
}

// SAFETY: numbers and addresses, laid out as the kernel has them.
unsafe impl DeviceRepr for arguments::Attention {}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(&self, q: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (_, queries, heads, width) = layout.shape().dims4()?;
        let (device, stream) = (q.device(), q.device().cuda_stream());
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<bf16>(queries * heads * width)? };
        let tensors = self.keys.iter().flatten();
        let stored: Vec<_> = tensors.map(Tensor::storage_and_layout).collect();
        let mut arguments = arguments::Attention::new(queries, width, self.last_count);
        arguments.q_row = layout.stride()[1] as i64;
        let mut in_use = Vec::new(); // until the kernel is queued
        for (index, kv) in stored.chunks_exact(2).enumerate() {
            let mut addresses = [0; 2];
            for (address, (storage, layout)) in addresses.iter_mut().zip(kv) {
                *address = place::<bf16>(storage, layout, &stream, &mut in_use)?;
            }
            arguments.push(index, kv[0].1.dims()[1], addresses);
        }
        arguments.q = place_on::<bf16>(q, layout, &stream, &mut in_use)?;
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        arguments.out = address;
        launch(heads, width, queries, is_hopper(device)?).run(device, &arguments)?;
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}

/// A block of threads for some queries of each head.
fn launch(heads: usize, width: usize, queries: usize, is_hopper: bool) -> Launch {
    let grid = (queries.div_ceil(arguments::Attention::QUERIES) as u32, heads as u32);
    if is_hopper && width == WIDTH_90 {
        let numbers = TILES_90 * KEYS_90 * width;
        return Launch {
            module: ("attention_90", PTX_90),
            function: "attention_90".to_owned(),
            grid,
            threads: THREADS_90,
            shared_bytes: (numbers * size_of::<bf16>() + BARRIERS_90 * size_of::<u64>()) as u32,
        };
    }
    Launch {
        module: ("attention", PTX),
        function: format!("attention_{width}"),
        grid,
        threads: THREADS,
        shared_bytes: (TILES * KEYS * width * size_of::<bf16>()) as u32,
    }
}
