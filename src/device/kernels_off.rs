//! No kernels of ours: a build without the feature `cuda`.

use candle_core::{Result, Tensor};

use super::arguments::{Convolution, Then};

/// Nothing, for everything.
pub fn attention(_: &Tensor, _: &[(&Tensor, &Tensor)], _: usize) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Attention that a kernel has begun, of which there is none.
#[derive(Debug)]
pub enum Begun {}

/// Nothing, for everything.
pub fn begin(_: &Tensor, _: &[(&Tensor, &Tensor)]) -> Result<Option<Begun>> {
    Ok(None)
}

impl Begun {
    /// For what is begun, which nothing is.
    pub fn finish(self, _: &Tensor, _: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
        match self {}
    }
}

/// Nothing, for everything.
pub fn rms_norm(_: &Tensor, _: &Tensor, _: f32) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Nothing, for everything.
pub fn linear(_: &Tensor, _: &Tensor, _: &Tensor, _: Then<'_>) -> Result<Option<Tensor>> {
    Ok(None)
}

/// A weight for a kernel, of which there is none.
#[derive(Debug)]
pub enum ConvWeight {}

/// Nothing, for everything.
pub fn lay_out(_: &Tensor, _: usize, _: bool) -> Result<Option<ConvWeight>> {
    Ok(None)
}

/// For what is laid out, which nothing is.
pub fn convolve(
    _: &Tensor,
    weight: &ConvWeight,
    _: [Option<&Tensor>; 3],
    _: Convolution,
) -> Result<Tensor> {
    match *weight {}
}

/// Nothing, for everything.
pub fn norm_silu(_: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Nothing, for everything.
pub fn modulate(_: &Tensor, _: &Tensor, _: &Tensor, _: f32) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Nothing, for everything.
pub fn gate(_: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Nothing, for everything.
pub fn norm_rotate(
    _: &Tensor,
    _: &Tensor,
    _: f32,
    _: (&Tensor, &Tensor),
) -> Result<Option<Tensor>> {
    Ok(None)
}
