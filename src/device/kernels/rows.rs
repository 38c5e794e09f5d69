//! What is done to rows of bf16 between products: `rows.cu`.
#![allow(unsafe_code)] // says how its arguments are laid out

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{Launch, THREADS, place, place_on};
use crate::device::arguments;

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/rows.ptx"));

/// `x / sqrt(mean x^2 + eps) * weight` over the last dimension.
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f32) -> Result<Option<Tensor>> {
    by_row("rms_norm", xs, Rows { y: Some(weight.clone()), eps, ..Rows::default() })
}

/// `silu(x / max(|x|, 1e-12) * sqrt(width) * gamma)` over the last dimension.
pub fn norm_silu(xs: &Tensor, gamma: &Tensor) -> Result<Option<Tensor>> {
    let y = Some(gamma.flatten_all()?);
    by_row("norm_silu", xs, Rows { y, ..Rows::default() })
}

/// `(x - mean) / deviation * scale + shift` over `(frames, tokens, width)`; scale and shift are `(frames, 1,
/// width)` in f32.
pub fn modulate(xs: &Tensor, scale: &Tensor, shift: &Tensor, eps: f32) -> Result<Option<Tensor>> {
    let (a, b) = (Some(scale.clone()), Some(shift.clone()));
    by_row("modulate", xs, Rows { a, b, of_frame: xs.dim(D::Minus2)?, eps, ..Rows::default() })
}

/// `x + y * gate`; the gate is `(frames, 1, width)` in f32.
pub fn gate(xs: &Tensor, ys: &Tensor, gate: &Tensor) -> Result<Option<Tensor>> {
    let (y, a) = (Some(ys.contiguous()?), Some(gate.clone()));
    let rows = Rows { y, a, of_frame: xs.dim(D::Minus2)?, ..Rows::default() };
    let blocks = arguments::Rows::blocks_by_chunk;
    run(Named { function: "gate".to_owned(), blocks, rows }, xs)
}

/// `x / sqrt(mean x^2 + eps) * weight` over the last dimension, and then pairs of each head turned by the angles
/// of the row, `(rows, head width / 2)` in f32.
pub fn norm_rotate(
    xs: &Tensor,
    weight: &Tensor,
    eps: f32,
    (cos, sin): (&Tensor, &Tensor),
) -> Result<Option<Tensor>> {
    let [y, a, b] = [weight, cos, sin].map(|x| Some(x.clone()));
    let turned = cos.dim(D::Minus1)?;
    by_row("norm_rotate", xs, Rows { y, a, b, turned, eps, ..Rows::default() })
}

/// By a kernel that has whole rows.
fn by_row(function: &str, xs: &Tensor, rows: Rows) -> Result<Option<Tensor>> {
    let Some(most) = arguments::Rows::most(xs.dim(D::Minus1)?) else { return Ok(None) };
    let function = format!("{function}_{most}");
    run(Named { function, blocks: arguments::Rows::blocks, rows }, xs)
}

fn run(named: Named, xs: &Tensor) -> Result<Option<Tensor>> {
    let Named { rows, .. } = &named;
    // What lanes read at once begins at multiples of it.
    let begins = |x: &Tensor| x.layout().start_offset().is_multiple_of(arguments::Rows::CHUNK);
    let is_bf16 = |x: &&Tensor| x.dtype() == DType::BF16 && begins(x);
    let is_f32 = |x: &&Tensor| {
        let is_row =
            x.stride().last() == Some(&1) && x.stride()[0].is_multiple_of(arguments::Rows::CHUNK);
        x.dtype() == DType::F32 && is_row && begins(x)
    };
    let is_known = xs.device().is_cuda()
        && [Some(xs), rows.y.as_ref()].iter().flatten().all(is_bf16)
        && [&rows.a, &rows.b].into_iter().flatten().all(|x| is_f32(&x))
        && xs.dim(D::Minus1)?.is_multiple_of(arguments::Rows::CHUNK)
        && rows.turned.is_multiple_of(arguments::Rows::CHUNK / 2);
    if !is_known {
        return Ok(None);
    }
    xs.contiguous()?.apply_op1_no_bwd(&named).map(Some)
}

/// What a kernel takes besides the rows.
#[derive(Default)]
struct Rows {
    y: Option<Tensor>,
    /// In f32, a row for each frame.
    a: Option<Tensor>,
    b: Option<Tensor>,
    /// Rows of a frame.
    of_frame: usize,
    /// Pairs of a head.
    turned: usize,
    eps: f32,
}

struct Named {
    function: String,
    /// Of threads, for so many rows of a width.
    blocks: fn(usize, usize) -> usize,
    rows: Rows,
}

// SAFETY: numbers and addresses, laid out as the kernels have them.
unsafe impl DeviceRepr for arguments::Rows {}

impl CustomOp1 for Named {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, stream) = (x.device(), x.device().cuda_stream());
        let count = layout.shape().elem_count();
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<bf16>(count)? };
        let Rows { y, a, b, .. } = &self.rows;
        let [y, a, b] = [y, a, b].map(|x| x.as_ref().map(Tensor::storage_and_layout));
        let mut in_use = Vec::new(); // until the kernel is queued
        let mut arguments = self.arguments(layout)?;
        if let Some((storage, layout)) = &y {
            arguments.y = place::<bf16>(storage, layout, &stream, &mut in_use)?;
        }
        for (address, table) in [(&mut arguments.a, &a), (&mut arguments.b, &b)] {
            if let Some((storage, layout)) = table {
                *address = place::<f32>(storage, layout, &stream, &mut in_use)?;
            }
        }
        arguments.x = place_on::<bf16>(x, layout, &stream, &mut in_use)?;
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        arguments.out = address;
        let width = arguments.width as usize;
        let grid = ((self.blocks)(count / width, width) as u32, 1, 1);
        let (module, function) = (("rows", PTX), self.function.clone());
        Launch { module, function, grid, threads: THREADS, shared_bytes: 0 }
            .run(device, &arguments)?;
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}

impl Named {
    /// All but the addresses.
    fn arguments(&self, layout: &Layout) -> Result<arguments::Rows> {
        let width = layout.shape().dim(D::Minus1)?;
        let Rows { a, b, of_frame, turned, eps, .. } = &self.rows;
        let row = |x: &Option<Tensor>| x.as_ref().map_or(0, |x| x.stride()[0] as i64);
        Ok(arguments::Rows {
            a_row: row(a),
            b_row: row(b),
            rows: (layout.shape().elem_count() / width) as i32,
            width: width as i32,
            of_frame: *of_frame as i32,
            turned: *turned as i32,
            eps: *eps,
            ..arguments::Rows::default()
        })
    }
}
