//! Convolutions in bf16 and f16: `convolution.cu`, and `convolution_90.cu` where it runs.
#![allow(unsafe_code)] // says how its arguments are laid out

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaStorage};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

use super::{AMPERE, HOPPER, aligned, capability, place, place_on, run};
use crate::device::arguments::{self, CHUNK};

/// Rows and columns that `convolution_90.cu` knows.
const SIDES_90: [(usize, usize); 2] = [(1, 1), (3, 3)];

/// A weight, laid out for a kernel.
#[derive(Debug)]
pub enum ConvWeight {
    /// For `convolution.cu`.
    ByWindows(Tensor),
    /// For `convolution_90.cu`, with the outputs of a block of threads.
    ByPatches(Tensor, usize),
}

impl ConvWeight {
    fn tensor(&self) -> &Tensor {
        match self {
            Self::ByWindows(weight) | Self::ByPatches(weight, _) => weight,
        }
    }
}

/// Lays out a weight `(outputs, inputs, frames, rows, columns)` where a kernel knows the convolution; `is_dense`
/// where its windows are next to each other.
pub fn lay_out(weight: &Tensor, enlarge: usize, is_dense: bool) -> Result<Option<ConvWeight>> {
    let (outputs, inputs, _, rows, columns) = weight.dims5()?;
    let Device::Cuda(device) = weight.device() else { return Ok(None) };
    let is_half = matches!(weight.dtype(), DType::BF16 | DType::F16);
    let capability = capability(device)?;
    if !is_half || capability < AMPERE || !inputs.is_multiple_of(CHUNK) || enlarge > 2 {
        return Ok(None);
    }
    if is_dense && SIDES_90.contains(&(rows, columns)) && capability == HOPPER {
        let of_block = arguments::Convolution::of_block_90(outputs);
        let weight = arguments::Convolution::by_patches(weight, of_block)?;
        return Ok(Some(ConvWeight::ByPatches(aligned(&weight)?, of_block)));
    }
    let weight = arguments::Convolution::by_windows(weight)?;
    Ok(Some(ConvWeight::ByWindows(aligned(&weight)?)))
}

/// Convolves `xs`, `(frames, height, width, inputs)`, with a weight, its bias, behind a past, to which a residual
/// is added; `arguments` has no addresses yet.
pub fn convolve(
    xs: &Tensor,
    weight: &ConvWeight,
    others: [Option<&Tensor>; 3],
    arguments: arguments::Convolution,
) -> Result<Tensor> {
    let [bias, past, residual] = others.map(|x| x.map(aligned).transpose());
    let op = Convolve { weight, others: [bias?, past?, residual?], arguments };
    aligned(xs)?.apply_op1_no_bwd(&op)
}

struct Convolve<'a> {
    weight: &'a ConvWeight,
    /// Bias, past, residual.
    others: [Option<Tensor>; 3],
    arguments: arguments::Convolution,
}

// SAFETY: numbers and addresses, laid out as the kernel has them.
unsafe impl DeviceRepr for arguments::Convolution {}

impl CustomOp1 for Convolve<'_> {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match xs.dtype() {
            DType::F16 => self.forward::<f16>(xs, layout, "f16"),
            _ => self.forward::<bf16>(xs, layout, "bf16"),
        }
    }
}

impl Convolve<'_> {
    fn forward<T: CudaDType + DeviceRepr + 'static>(
        &self,
        xs: &CudaStorage,
        layout: &Layout,
        numbers: &str,
    ) -> Result<(CudaStorage, Shape)> {
        let (device, stream) = (xs.device(), xs.device().cuda_stream());
        let mut arguments = self.arguments;
        let shape = arguments.shape();
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<T>(shape.iter().product())? };
        let weight = self.weight.tensor().storage_and_layout();
        let others = self.others.each_ref().map(|x| x.as_ref().map(Tensor::storage_and_layout));
        let mut in_use = Vec::new(); // until the kernel is queued
        arguments.weight = place::<T>(&weight.0, weight.1, &stream, &mut in_use)?;
        let arguments::Convolution { bias, past, residual, .. } = &mut arguments;
        for (address, stored) in [bias, past, residual].into_iter().zip(&others) {
            if let Some((storage, layout)) = stored {
                *address = place::<T>(storage, layout, &stream, &mut in_use)?;
            }
        }
        arguments.xs = place_on::<T>(xs, layout, &stream, &mut in_use)?;
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        arguments.out = address;
        let start = match self.weight {
            ConvWeight::ByWindows(_) => arguments.start(numbers),
            ConvWeight::ByPatches(_, of_block) => arguments.start_90(numbers, *of_block),
        };
        run(&start, device, &arguments)?;
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from(&shape[..])))
    }
}
