//! Convolutions in bf16: `convolution.cu`.
#![allow(unsafe_code)] // says how its arguments are laid out

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{Launch, place, place_on};
use crate::device::arguments;

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/convolution.ptx"));

/// As the kernel has them: numbers that are read at once, channels of a slice, slices on their way at once, and
/// outputs of a block of threads, of which the first that leave little over are taken.
const CHUNK: usize = 8;
const DEPTH: usize = 32;
const SLICES: usize = 4;
const OUTPUTS: [usize; 4] = [96, 128, 64, 32];

/// Whether the kernel knows a convolution of `(outputs, inputs, frames, rows, columns)`.
pub fn knows_convolution(weight: &Tensor, enlarge: usize) -> Result<bool> {
    let (_, inputs, ..) = weight.dims5()?;
    let is_known = weight.device().is_cuda() && weight.dtype() == DType::BF16;
    Ok(is_known && inputs.is_multiple_of(CHUNK) && enlarge <= 2)
}

/// Convolves `xs`, `(frames, height, width, inputs)`, with a weight, its bias, behind a past, to which a residual
/// is added; `arguments` has no addresses yet.
pub fn convolve(
    xs: &Tensor,
    others: [Option<&Tensor>; 4],
    arguments: arguments::Convolution,
) -> Result<Tensor> {
    let [weight, bias, past, residual] = others.map(|x| x.map(Tensor::contiguous).transpose());
    let op = Convolve { others: [weight?, bias?, past?, residual?], arguments };
    xs.contiguous()?.apply_op1_no_bwd(&op)
}

struct Convolve {
    /// Weight, bias, past, residual.
    others: [Option<Tensor>; 4],
    arguments: arguments::Convolution,
}

// SAFETY: numbers and addresses, laid out as the kernel has them.
unsafe impl DeviceRepr for arguments::Convolution {}

impl CustomOp1 for Convolve {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, stream) = (xs.device(), xs.device().cuda_stream());
        let mut arguments = self.arguments;
        let arguments::Convolution { out_frames, out_height, out_width, outputs, .. } = arguments;
        let shape = [out_frames, out_height, out_width, outputs].map(|side| side as usize);
        let shape = Shape::from(&shape[..]);
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<bf16>(shape.elem_count())? };
        let stored = self.others.each_ref().map(|x| x.as_ref().map(Tensor::storage_and_layout));
        let mut in_use = Vec::new(); // until the kernel is queued
        let arguments::Convolution { weight, bias, past, residual, .. } = &mut arguments;
        for (address, stored) in [weight, bias, past, residual].into_iter().zip(&stored) {
            if let Some((storage, layout)) = stored {
                *address = place::<bf16>(storage, layout, &stream, &mut in_use)?;
            }
        }
        arguments.xs = place_on::<bf16>(xs, layout, &stream, &mut in_use)?;
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        arguments.out = address;
        launch(shape.elem_count(), outputs as usize).run(device, &arguments)?;
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
    }
}

/// A block of threads for some pixels and some outputs; `count` numbers come out.
fn launch(count: usize, outputs: usize) -> Launch {
    let wasted = |of_block: &usize| outputs.next_multiple_of(*of_block) - outputs;
    let of_block = OUTPUTS.into_iter().min_by_key(wasted).unwrap_or(OUTPUTS[0]);
    let columns = (count / outputs).div_ceil(arguments::Convolution::PIXELS);
    let pixels = arguments::Convolution::PIXELS;
    Launch {
        module: ("convolution", PTX),
        function: format!("convolution_{of_block}"),
        grid: (columns as u32, outputs.div_ceil(of_block) as u32),
        shared_bytes: (SLICES * (pixels + of_block) * DEPTH * size_of::<bf16>()) as u32,
    }
}
