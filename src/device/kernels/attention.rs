//! Attention in bf16: `attention.cu`.
#![allow(unsafe_code)] // says how its arguments are laid out

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{Launch, place, place_on};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));

/// As the kernel has them: widths of a head, pieces of keys at most, queries of a block of threads, keys of a
/// tile.
const WIDTHS: [usize; 3] = [32, 64, 128];
const PIECES: usize = 64;
const QUERIES: u32 = 128;
const KEYS: usize = 64;
/// Tiles in shared memory: two of keys, two of values.
const TILES: usize = 4;

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

/// Keys and values of some tokens; `end` is the number of tokens up to here, of all.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Piece {
    k: u64,
    v: u64,
    end: i64,
}

/// What the kernel is told.
#[repr(C)]
struct Arguments {
    q: u64,
    out: u64,
    q_row: i64,
    queries: i32,
    keys: i32,
    scale: f32,
    last_bias: f32,
    pieces: [Piece; PIECES],
}

// SAFETY: numbers and addresses, laid out as the kernel has them.
unsafe impl DeviceRepr for Arguments {}

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
        let mut arguments = Arguments::new(queries, width, self.last_count);
        arguments.q_row = layout.stride()[1] as i64;
        let mut in_use = Vec::new(); // until the kernel is queued
        for (piece, kv) in arguments.pieces.iter_mut().zip(stored.chunks_exact(2)) {
            arguments.keys += kv[0].1.dims()[1] as i32;
            piece.end = arguments.keys.into();
            for (address, (storage, layout)) in [&mut piece.k, &mut piece.v].into_iter().zip(kv) {
                *address = place::<bf16>(storage, layout, &stream, &mut in_use)?;
            }
        }
        arguments.q = place_on::<bf16>(q, layout, &stream, &mut in_use)?;
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        arguments.out = address;
        launch(heads, width, queries).run(device, &arguments)?;
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}

/// A block of threads for some queries of each head.
fn launch(heads: usize, width: usize, queries: usize) -> Launch {
    Launch {
        module: ("attention", PTX),
        function: format!("attention_{width}"),
        grid: ((queries as u32).div_ceil(QUERIES), heads as u32),
        shared_bytes: (TILES * KEYS * width * size_of::<bf16>()) as u32,
    }
}

impl Arguments {
    fn new(queries: usize, width: usize, last_count: usize) -> Self {
        Self {
            q: 0,
            out: 0,
            q_row: 0,
            queries: queries as i32,
            keys: 0,
            scale: std::f32::consts::LOG2_E / (width as f32).sqrt(),
            last_bias: (last_count as f32).log2(),
            pieces: [Piece::default(); PIECES],
        }
    }
}
