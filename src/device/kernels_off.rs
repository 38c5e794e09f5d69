//! No kernels of ours: a build without the feature `cuda`.

use candle_core::{Result, Tensor, bail};

use super::arguments::Convolution;

/// Nothing, for everything.
pub fn attention(_: &Tensor, _: &[(&Tensor, &Tensor)], _: usize) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Nothing, for everything.
pub fn add_bias(_: &Tensor, _: &Tensor, _: bool) -> Result<Option<Tensor>> {
    Ok(None)
}

/// It knows none.
pub fn knows_convolution(_: &Tensor, _: usize) -> Result<bool> {
    Ok(false)
}

/// For what is known, of which there is none.
pub fn convolve(_: &Tensor, _: [Option<&Tensor>; 4], _: Convolution) -> Result<Tensor> {
    bail!("no kernel knows this convolution")
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
