//! bf16 on a GPU, by a kernel that reads windows in place.

use candle_core::{Result, Tensor};

use super::{Activation, Conv, Extent, Input};
use crate::device::convolution::{Convolution, Windows};
use crate::device::kernels;

/// `(out, in, frames, rows, columns)` to `(frames, rows, columns, out, in)`.
pub(super) fn packed(weight: &Tensor) -> Result<Tensor> {
    weight.permute((2, 3, 4, 0, 1))?.contiguous()
}

pub(super) fn forward(
    conv: &Conv,
    weight: &Tensor,
    input: Input<'_>,
    extent: &Extent,
) -> Result<Tensor> {
    let geometry = &conv.geometry;
    let windows = Windows {
        zeros: extent.zeros,
        taps: [conv.shape.frames, conv.shape.rows, conv.shape.cols],
        frame_stride: geometry.frame_stride,
        stride: geometry.stride,
        padding: geometry.padding.0,
        enlarge: geometry.enlarge,
        is_relu: conv.activation == Activation::Relu,
        out: conv.output_shape(extent),
    };
    let Input { past, xs, residual } = input;
    kernels::convolve(xs, Convolution { weight, bias: &conv.bias, past, residual, windows })
}
