//! bf16 and f16 on a GPU, by a kernel that reads windows in place.

use candle_core::{Result, Tensor};

use super::{Activation, Conv, Extent, Input};
use crate::device::arguments::Convolution;
use crate::device::kernels::{self, ConvWeight};

pub(super) fn forward(
    conv: &Conv,
    weight: &ConvWeight,
    input: Input<'_>,
    extent: &Extent,
) -> Result<Tensor> {
    let Input { past, xs, residual } = input;
    let arguments = arguments(conv, input, extent)?;
    kernels::convolve(xs, weight, [Some(&conv.bias), past, residual], arguments)
}

/// All but where the numbers are.
fn arguments(conv: &Conv, input: Input<'_>, extent: &Extent) -> Result<Convolution> {
    let (_, height, width, inputs) = input.xs.dims4()?;
    let past_frames = input.past.map_or(Ok(0), |past| past.dim(0))?;
    let (geometry, shape) = (&conv.geometry, &conv.shape);
    Ok(Convolution {
        zeros: extent.zeros as i32,
        past_frames: past_frames as i32,
        height: height as i32,
        width: width as i32,
        inputs: inputs as i32,
        out_frames: extent.frames as i32,
        out_height: extent.height as i32,
        out_width: extent.width as i32,
        outputs: shape.outputs as i32,
        taps: [shape.frames, shape.rows, shape.cols].map(|side| side as i32),
        frame_stride: geometry.frame_stride as i32,
        stride: geometry.stride as i32,
        padding: geometry.padding.0 as i32,
        is_doubled: (geometry.enlarge == 2).into(),
        is_relu: (conv.activation == Activation::Relu).into(),
        ..Convolution::default()
    })
}
