//! A convolution as kernels for GPUs are asked for it.

use candle_core::Tensor;

/// What is convolved with, and how.
#[derive(Clone, Copy, Debug)]
pub struct Convolution<'a> {
    /// `(frames, rows, columns, outputs, inputs)`.
    pub weight: &'a Tensor,
    /// `(outputs,)`.
    pub bias: &'a Tensor,
    /// The frames before, shaped as those that are convolved.
    pub past: Option<&'a Tensor>,
    /// What is added to the output, shaped like it.
    pub residual: Option<&'a Tensor>,
    /// Where windows lie.
    pub windows: Windows,
}

/// Where windows lie.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Frames of zeros before the past.
    pub zeros: usize,
    /// Frames, rows and columns of a window.
    pub taps: [usize; 3],
    /// Frames from one to the next.
    pub frame_stride: usize,
    /// Pixels from one to the next, after enlargement.
    pub stride: usize,
    /// Rows and columns of zeros before the first.
    pub padding: usize,
    /// How often each pixel is repeated along both sides, before anything else.
    pub enlarge: usize,
    /// Whether outputs below zero become zero.
    pub is_relu: bool,
    /// Of the output: frames, rows, columns, channels.
    pub out: [usize; 4],
}
