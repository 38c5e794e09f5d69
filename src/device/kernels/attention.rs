//! Attention in bf16: `attention.cu`, and `attention_90.cu` where it runs.
#![allow(unsafe_code)] // says how its arguments are laid out

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{HOPPER, Launch, THREADS, THREADS_90, capability, multiprocessors, place, place_on};
use crate::device::arguments::{self, PIECES};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));
const PTX_90: &str = include_str!(concat!(env!("OUT_DIR"), "/attention_90.ptx"));

/// As the kernel has them: widths of a head, and keys of a tile.
const WIDTHS: [usize; 3] = [32, 64, 128];
const KEYS: usize = 64;
/// Tiles in shared memory: two of keys, two of values.
const TILES: usize = 4;
/// As the other kernel has them: the width, tiles, the queries among them, barriers, and threads of a block that joins
/// parts, in warps of so many lanes.
const WIDTH_90: usize = 128;
const TILES_90: usize = 7;
const BARRIERS_90: usize = 13;
const THREADS_JOINING: u32 = 128;
const LANES: usize = 32;

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
        let mut arguments = arguments::Attention::new(queries, heads, width, self.last_count);
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
        if capability(device)? == HOPPER && width == WIDTH_90 {
            attend_90(device, arguments)?;
        } else {
            launch(heads, width, queries).run(device, &arguments)?;
        }
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}

/// A block of threads for some queries of each head.
fn launch(heads: usize, width: usize, queries: usize) -> Launch {
    Launch {
        module: ("attention", PTX),
        function: format!("attention_{width}"),
        grid: (blocks(queries), heads as u32, 1),
        threads: THREADS,
        shared_bytes: (TILES * KEYS * width * size_of::<bf16>()) as u32,
    }
}

fn blocks(queries: usize) -> u32 {
    queries.div_ceil(arguments::Attention::QUERIES) as u32
}

/// The same for a part of the keys each, where that keeps more of the GPU at work.
fn attend_90(device: &CudaDevice, mut arguments: arguments::Attention) -> Result<()> {
    let [queries, heads, keys] = [arguments.queries, arguments.heads, arguments.keys];
    let rows = queries as usize * heads as usize;
    let blocks = blocks(queries as usize) as usize * heads as usize;
    let parts = arguments::Attention::parts(blocks, keys as usize, multiprocessors(device)?);
    if parts == 1 {
        return launch_90(heads, queries, 1).run(device, &arguments);
    }
    let stream = device.cuda_stream();
    // SAFETY: the first kernel writes all that the second one reads.
    let mut between = unsafe { device.alloc::<f32>(parts * rows * (WIDTH_90 + 1))? };
    let (address, in_use) = between.device_ptr_mut(&stream);
    (arguments.parts, arguments.key_parts) = (address, parts as i32);
    launch_90(heads, queries, parts).run(device, &arguments)?;
    join(rows).run(device, &arguments)?;
    drop(in_use);
    Ok(())
}

fn launch_90(heads: i32, queries: i32, parts: usize) -> Launch {
    let numbers = TILES_90 * arguments::Attention::KEYS_90 * WIDTH_90;
    Launch {
        module: ("attention_90", PTX_90),
        function: "attention_90".to_owned(),
        grid: (blocks(queries as usize), heads as u32, parts as u32),
        threads: THREADS_90,
        shared_bytes: (numbers * size_of::<bf16>() + BARRIERS_90 * size_of::<u64>()) as u32,
    }
}

/// A warp for each row of the result.
fn join(rows: usize) -> Launch {
    Launch {
        module: ("attention_90", PTX_90),
        function: "attention_90_join".to_owned(),
        grid: (rows.div_ceil(THREADS_JOINING as usize / LANES) as u32, 1, 1),
        threads: THREADS_JOINING,
        shared_bytes: 0,
    }
}
