//! What is done to rows of bf16 between products: `rows.cu`.
#![allow(unsafe_code)] // says how its arguments are laid out

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{is_aligned, place, place_on, run};
use crate::device::arguments::{self, CHUNK, Start};

/// `x / sqrt(mean x^2 + eps) * weight` over the last dimension.
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f32) -> Result<Option<Tensor>> {
    by_row("rms_norm", xs, Rows { weight: Some(weight.clone()), eps, ..Rows::default() })
}

/// `silu(x / max(|x|, 1e-12) * sqrt(width) * gamma)` over the last dimension.
pub fn norm_silu(xs: &Tensor, gamma: &Tensor) -> Result<Option<Tensor>> {
    by_row("norm_silu", xs, Rows { weight: Some(gamma.flatten_all()?), ..Rows::default() })
}

/// `(x - mean) / deviation * scale + shift` over `(frames, tokens, width)`; scale and shift are `(frames, 1,
/// width)` in f32.
pub fn modulate(xs: &Tensor, scale: &Tensor, shift: &Tensor, eps: f32) -> Result<Option<Tensor>> {
    let (a, b) = (Some(scale.clone()), Some(shift.clone()));
    by_row("modulate", xs, Rows { a, b, of_frame: xs.dim(D::Minus2)?, eps, ..Rows::default() })
}

/// `x + y * gate` over `(frames, tokens, width)`; the gate is `(frames, 1, width)` in f32.
pub fn gate(xs: &Tensor, ys: &Tensor, gate: &Tensor) -> Result<Option<Tensor>> {
    let (ys, a) = (Some(ys.contiguous()?), Some(gate.clone()));
    let rows = Rows { ys, a, of_frame: xs.dim(D::Minus2)?, ..Rows::default() };
    apply(xs, rows, |arguments| Some(arguments.start_by_chunk("gate")))
}

/// `x / sqrt(mean x^2 + eps) * weight` over the last dimension, and then pairs of each head turned by the angles
/// of the row, `(rows, head width / 2)` in f32.
pub fn norm_rotate(
    xs: &Tensor,
    weight: &Tensor,
    eps: f32,
    (cos, sin): (&Tensor, &Tensor),
) -> Result<Option<Tensor>> {
    let [weight, a, b] = [weight, cos, sin].map(|x| Some(x.clone()));
    let turned = cos.dim(D::Minus1)?;
    by_row("norm_rotate", xs, Rows { weight, a, b, turned, eps, ..Rows::default() })
}

/// By a kernel that has whole rows.
fn by_row(function: &str, xs: &Tensor, rows: Rows) -> Result<Option<Tensor>> {
    apply(xs, rows, |arguments| arguments.start(function))
}

fn apply(
    xs: &Tensor,
    rows: Rows,
    start: impl Fn(&arguments::Rows) -> Option<Start>,
) -> Result<Option<Tensor>> {
    if !rows.are_known(xs)? {
        return Ok(None);
    }
    let xs = xs.contiguous()?;
    let arguments = rows.arguments(&xs)?;
    let Some(start) = start(&arguments) else { return Ok(None) };
    xs.apply_op1_no_bwd(&Started { start, arguments, rows }).map(Some)
}

/// What a kernel takes besides the rows.
struct Rows {
    /// `(width,)`.
    weight: Option<Tensor>,
    /// As the rows.
    ys: Option<Tensor>,
    /// In f32, a row for each frame.
    a: Option<Tensor>,
    b: Option<Tensor>,
    /// Rows of a frame.
    of_frame: usize,
    /// Pairs of a head.
    turned: usize,
    eps: f32,
}

impl Default for Rows {
    /// Each row is a frame.
    fn default() -> Self {
        let (weight, ys, a, b) = (None, None, None, None);
        Self { weight, ys, a, b, of_frame: 1, turned: 0, eps: 0.0 }
    }
}

impl Rows {
    fn are_known(&self, xs: &Tensor) -> Result<bool> {
        let Self { weight, ys, a, b, of_frame, turned, .. } = self;
        let width = xs.dim(D::Minus1)?;
        let frames = xs.elem_count() / (width * of_frame).max(1);
        let is_bf16 = |x: &&Tensor| x.dtype() == DType::BF16 && is_aligned(x);
        let is_table = |x: &&Tensor| {
            let is_row = x.stride().last() == Some(&1) && x.stride()[0].is_multiple_of(CHUNK / 2);
            let numbers = frames * if *turned > 0 { *turned } else { width };
            x.dtype() == DType::F32 && is_row && is_aligned(x) && x.elem_count() == numbers
        };
        Ok(xs.device().is_cuda()
            && [Some(xs), weight.as_ref(), ys.as_ref()].iter().flatten().all(is_bf16)
            && [a, b].into_iter().flatten().all(|x| is_table(&x))
            && weight.iter().all(|weight| weight.elem_count() == width)
            && ys.iter().all(|ys| ys.dims() == xs.dims())
            && width.is_multiple_of(CHUNK)
            && turned.is_multiple_of(CHUNK / 2))
    }

    /// All but the addresses.
    fn arguments(&self, xs: &Tensor) -> Result<arguments::Rows> {
        let width = xs.dim(D::Minus1)?;
        let row = |x: &Option<Tensor>| x.as_ref().map_or(0, |x| x.stride()[0] as i64);
        Ok(arguments::Rows {
            a_row: row(&self.a),
            b_row: row(&self.b),
            rows: (xs.elem_count() / width) as i32,
            width: width as i32,
            of_frame: self.of_frame as i32,
            turned: self.turned as i32,
            eps: self.eps,
            ..arguments::Rows::default()
        })
    }
}

struct Started {
    start: Start,
    /// Without addresses.
    arguments: arguments::Rows,
    rows: Rows,
}

// SAFETY: numbers and addresses, laid out as the kernels have them.
unsafe impl DeviceRepr for arguments::Rows {}

impl CustomOp1 for Started {
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
        let Rows { weight, ys, a, b, .. } = &self.rows;
        let [y, a, b] = [weight.as_ref().or(ys.as_ref()), a.as_ref(), b.as_ref()]
            .map(|x| x.map(Tensor::storage_and_layout));
        let mut in_use = Vec::new(); // until the kernel is queued
        let mut arguments = self.arguments;
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
        run(&self.start, device, &arguments)?;
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}
