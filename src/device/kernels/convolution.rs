//! Convolutions in bf16: `convolution.cu`.
#![allow(unsafe_code)] // says how its arguments are laid out

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{Launch, place, place_on};
use crate::device::convolution::{Convolution, Windows};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/convolution.ptx"));

/// As the kernel has them: numbers that are read at once, pixels of a block of threads, channels of a slice,
/// slices on their way at once, and outputs of a block, of which the first that leave little over are taken.
const CHUNK: usize = 8;
const PIXELS: u32 = 128;
const DEPTH: u32 = 32;
const SLICES: u32 = 4;
const OUTPUTS: [u32; 4] = [96, 128, 64, 32];

/// Whether the kernel knows a convolution of `(outputs, inputs, frames, rows, columns)`.
pub fn knows_convolution(weight: &Tensor, enlarge: usize) -> Result<bool> {
    let (_, inputs, ..) = weight.dims5()?;
    let is_known = weight.device().is_cuda() && weight.dtype() == DType::BF16;
    Ok(is_known && inputs.is_multiple_of(CHUNK) && enlarge <= 2)
}

/// Convolves `xs`, `(frames, height, width, inputs)`.
pub fn convolve(xs: &Tensor, convolution: Convolution<'_>) -> Result<Tensor> {
    let row = |x: &Tensor| x.contiguous();
    let Convolution { weight, bias, past, residual, windows } = convolution;
    let others = [Some(weight), Some(bias), past, residual].map(|x| x.map(row).transpose());
    let [weight, bias, past, residual] = others;
    let op = Convolve { others: [weight?, bias?, past?, residual?], windows };
    xs.contiguous()?.apply_op1_no_bwd(&op)
}

struct Convolve {
    /// Weight, bias, past, residual.
    others: [Option<Tensor>; 4],
    windows: Windows,
}

/// What the kernel is told.
#[repr(C)]
#[derive(Default)]
struct Arguments {
    past: u64,
    xs: u64,
    weight: u64,
    bias: u64,
    residual: u64,
    out: u64,
    zeros: i32,
    past_frames: i32,
    height: i32,
    width: i32,
    inputs: i32,
    out_frames: i32,
    out_height: i32,
    out_width: i32,
    outputs: i32,
    taps: [i32; 3],
    frame_stride: i32,
    stride: i32,
    padding: i32,
    is_doubled: i32,
    is_relu: i32,
}

// SAFETY: numbers and addresses, laid out as the kernel has them.
unsafe impl DeviceRepr for Arguments {}

impl CustomOp1 for Convolve {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, stream) = (xs.device(), xs.device().cuda_stream());
        let shape = Shape::from(&self.windows.out[..]);
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<bf16>(shape.elem_count())? };
        let stored = self.others.each_ref().map(|x| x.as_ref().map(Tensor::storage_and_layout));
        let mut in_use = Vec::new(); // until the kernel is queued
        let mut arguments = self.arguments(layout)?;
        let Arguments { weight, bias, past, residual, .. } = &mut arguments;
        for (address, stored) in [weight, bias, past, residual].into_iter().zip(&stored) {
            if let Some((storage, layout)) = stored {
                *address = place::<bf16>(storage, layout, &stream, &mut in_use)?;
            }
        }
        arguments.xs = place_on::<bf16>(xs, layout, &stream, &mut in_use)?;
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        arguments.out = address;
        launch(&self.windows).run(device, &arguments)?;
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
    }
}

impl Convolve {
    /// All but the addresses.
    fn arguments(&self, xs: &Layout) -> Result<Arguments> {
        let (_, height, width, inputs) = xs.shape().dims4()?;
        let [.., past, _] = &self.others;
        let past_frames = past.as_ref().map_or(Ok(0), |past| past.dim(0))?;
        let windows = &self.windows;
        let [out_frames, out_height, out_width, outputs] = windows.out.map(|side| side as i32);
        Ok(Arguments {
            zeros: windows.zeros as i32,
            past_frames: past_frames as i32,
            height: height as i32,
            width: width as i32,
            inputs: inputs as i32,
            out_frames,
            out_height,
            out_width,
            outputs,
            taps: windows.taps.map(|taps| taps as i32),
            frame_stride: windows.frame_stride as i32,
            stride: windows.stride as i32,
            padding: windows.padding as i32,
            is_doubled: (windows.enlarge == 2).into(),
            is_relu: windows.is_relu.into(),
            ..Arguments::default()
        })
    }
}

/// A block of threads for some pixels and some outputs.
fn launch(windows: &Windows) -> Launch {
    let [frames, height, width, outputs] = windows.out.map(|side| side as u32);
    let wasted = |of_block: &u32| outputs.next_multiple_of(*of_block) - outputs;
    let of_block = OUTPUTS.into_iter().min_by_key(wasted).unwrap_or(OUTPUTS[0]);
    let bytes = SLICES * (PIXELS + of_block) * DEPTH * size_of::<bf16>() as u32;
    Launch {
        module: ("convolution", PTX),
        function: format!("convolution_{of_block}"),
        grid: ((frames * height * width).div_ceil(PIXELS), outputs.div_ceil(of_block)),
        shared_bytes: bytes,
    }
}
