//! The specification: one 2-D convolution for each frame of the kernel, summed.
//!
//! `y[t] = b + sum_j conv2d(x[t * frame_stride + j], w[:, :, j])`.

use candle_core::{Result, Tensor, bail};

use super::{Activation, Conv, Extent, Geometry, Input};

/// `(out, in, frames, rows, columns)` to one `(out, in, rows, columns)` for each frame.
pub(super) fn taps(weight: &Tensor) -> Result<Vec<Tensor>> {
    let taps = (0..weight.dim(2)?).map(|j| weight.narrow(2, j, 1)?.squeeze(2)?.contiguous());
    taps.collect()
}

/// Most numbers that pictures are unfolded to at once: candle's kernels for GPUs count them in 32 bits.
const UNFOLDED: usize = u32::MAX as usize;

pub(super) fn forward(
    conv: &Conv,
    taps: &[Tensor],
    input: Input<'_>,
    extent: &Extent,
) -> Result<Tensor> {
    let stream = padded(&stream(input, extent.zeros)?, &conv.geometry)?; // (frames, in, h, w)
    let mut sum = conv.bias.reshape((1, (), 1, 1))?;
    for (j, tap) in taps.iter().enumerate() {
        let last = j + (extent.frames - 1) * conv.geometry.frame_stride;
        let seen: Vec<u32> =
            (j..=last).step_by(conv.geometry.frame_stride).map(|t| t as u32).collect();
        let seen = stream.index_select(&Tensor::new(seen, stream.device())?, 0)?;
        let ys = convolved(&seen, tap, conv.geometry.stride, UNFOLDED)?;
        sum = ys.broadcast_add(&sum)?;
    }
    let mut ys = sum.permute((0, 2, 3, 1))?.contiguous()?;
    if let Some(residual) = input.residual {
        ys = (ys + residual)?;
    }
    match conv.activation {
        Activation::Identity => Ok(ys),
        Activation::Relu => ys.relu(),
    }
}

/// `(frames, in, h, w)` to `(frames, out, h, w)`, as many frames at once as unfold to `most` numbers.
pub(super) fn convolved(xs: &Tensor, tap: &Tensor, stride: usize, most: usize) -> Result<Tensor> {
    let ((frames, _, height, width), (_, inputs, rows, columns)) = (xs.dims4()?, tap.dims4()?);
    let places = |side: usize, taps: usize| (side + 1).saturating_sub(taps).div_ceil(stride);
    let of_frame = inputs * rows * columns * places(height, rows) * places(width, columns);
    if of_frame > most {
        bail!(
            "a convolution unfolds {height} x {width} pixels to {of_frame} numbers, expected at most {most}"
        )
    }
    let at_once = (most / of_frame.max(1)).max(1);
    let part =
        |start| xs.narrow(0, start, at_once.min(frames - start))?.conv2d(tap, 0, stride, 1, 1);
    let parts = (0..frames).step_by(at_once).map(part).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0)
}

/// Zero frames, the past and `xs`, one after the other.
fn stream(input: Input<'_>, zeros: usize) -> Result<Tensor> {
    let stream = match input.past {
        Some(past) => Tensor::cat(&[past, input.xs], 0)?,
        None => input.xs.clone(),
    };
    stream.pad_with_zeros(0, zeros, 0)
}

/// Enlarged and padded, channels first.
fn padded(stream: &Tensor, geometry: &Geometry) -> Result<Tensor> {
    let mut stream = stream.permute((0, 3, 1, 2))?.contiguous()?;
    if geometry.enlarge > 1 {
        let (_, _, h, w) = stream.dims4()?;
        stream = stream.upsample_nearest2d(h * geometry.enlarge, w * geometry.enlarge)?;
    }
    let (before, after) = geometry.padding;
    stream.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)
}
