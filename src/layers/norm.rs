//! Normalisations over the last dimension, statistics in f32.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::{layer_norm, rms_norm};

use super::rope::Rotation;
use super::rows::{self, Norm};
use super::simd::{self, is_host};
use crate::device::kernels;

/// `x / rms(x) * weight` over the last dimension.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Loads `weight`, `(width,)`.
    pub fn new(width: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, eps: eps as f32 })
    }

    /// Same shape and dtype as `xs`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if is_host(xs, DType::BF16) {
            let weight = self.weight.to_dtype(DType::F32)?;
            return rows::norm(xs, Norm::Rms, self.eps, &weight, &weight.zeros_like()?);
        }
        if let Some(ys) = kernels::rms_norm(xs, &self.weight, self.eps)? {
            return Ok(ys);
        }
        rms_norm(&xs.contiguous()?, &self.weight, self.eps)
    }

    /// The norm of `(.., width)`, then shared among heads and rotated: `(1, tokens, heads, width / heads)`.
    pub fn forward_rotated(
        &self,
        xs: &Tensor,
        heads: usize,
        rotation: &Rotation,
    ) -> Result<Tensor> {
        let (tokens, width) = xs.flatten_to(D::Minus2)?.dims2()?;
        let shape = (1, tokens, heads, width / heads.max(1));
        match kernels::norm_rotate(xs, &self.weight, self.eps, rotation.tables())? {
            Some(ys) => ys.reshape(shape),
            None => rotation.apply(&self.forward(xs)?.reshape(shape)?),
        }
    }
}

/// `silu(x / max(|x|, 1e-12) * sqrt(channels) * gamma)` over the last dimension, where it is known how to do it
/// in one pass over memory.
pub fn rms_norm_silu(xs: &Tensor, gamma: &Tensor) -> Result<Option<Tensor>> {
    match simd::is_host_f32(xs) {
        true => simd::rms_norm_silu(xs, gamma).map(Some),
        false => kernels::norm_silu(xs, gamma),
    }
}

/// `xs + ys * gate` over `(frames, tokens, width)`, in f32, returned in the dtype of `xs`; the gate is `(frames,
/// 1, width)`.
pub fn add_gated(xs: &Tensor, ys: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if is_host(xs, DType::BF16) && is_host(ys, DType::BF16) {
        return rows::add_gated(xs, ys, gate);
    }
    if let Some(sum) = kernels::gate(xs, ys, gate)? {
        return Ok(sum);
    }
    let ys = ys.to_dtype(DType::F32)?.broadcast_mul(gate)?;
    (xs.to_dtype(DType::F32)? + ys)?.to_dtype(xs.dtype())
}

/// `(x - mean) / std * weight + bias` over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// In f32, as the bias.
    weight: Tensor,
    bias: Tensor,
    /// Of the results.
    dtype: DType,
    eps: f32,
}

impl LayerNorm {
    /// Loads `weight` and `bias`, `(width,)` each.
    pub fn new(width: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self> {
        let load = |name| vb.get(width, name)?.to_dtype(DType::F32);
        let (weight, bias) = (load("weight")?, load("bias")?);
        Ok(Self { weight, bias, dtype: vb.dtype(), eps: eps as f32 })
    }

    /// The norm without weights: nothing is loaded, results are in f32.
    pub fn plain(width: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = Tensor::ones(width, DType::F32, vb.device())?;
        Ok(Self { bias: weight.zeros_like()?, weight, dtype: DType::F32, eps: eps as f32 })
    }

    /// Same shape as `xs`, in the dtype that weights are loaded in.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if is_host(xs, DType::BF16) && self.dtype == DType::BF16 {
            return self.scaled(xs, &self.weight, &self.bias);
        }
        if let Some(ys) = self.on_gpu(xs)? {
            return Ok(ys);
        }
        let [weight, bias] = [&self.weight, &self.bias].map(|table| table.to_dtype(self.dtype));
        layer_norm(&xs.to_dtype(self.dtype)?.contiguous()?, &weight?, &bias?, self.eps)
    }

    /// By the kernel for `(frames, tokens, width)`, if it knows these: all frames have the same tables.
    fn on_gpu(&self, xs: &Tensor) -> Result<Option<Tensor>> {
        let &[frames, _, width] = xs.dims() else { return Ok(None) };
        if xs.dtype() != self.dtype {
            return Ok(None);
        }
        let table = |x: &Tensor| x.broadcast_as((frames, 1, width));
        kernels::modulate(xs, &table(&self.weight)?, &table(&self.bias)?, self.eps)
    }

    /// `forward(xs) * scale + shift` over `(frames, tokens, width)`, in f32, returned in the dtype of `xs`; scale
    /// and shift are `(frames, 1, width)`. For a norm without weights.
    pub fn modulated(&self, xs: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        if is_host(xs, DType::BF16) {
            return self.scaled(xs, scale, shift);
        }
        if let Some(ys) = kernels::modulate(xs, scale, shift, self.eps)? {
            return Ok(ys);
        }
        let ys = self.forward(xs)?.broadcast_mul(scale)?.broadcast_add(shift)?;
        ys.to_dtype(xs.dtype())
    }

    fn scaled(&self, xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        rows::norm(xs, Norm::Layer, self.eps, weight, bias)
    }
}
