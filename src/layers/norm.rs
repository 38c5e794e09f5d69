//! Normalisations over the last dimension, statistics in f32.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::{layer_norm, rms_norm};

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
        rms_norm(&xs.contiguous()?, &self.weight, self.eps)
    }
}

/// `(x - mean) / std * weight + bias` over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Loads `weight` and `bias`, `(width,)` each.
    pub fn new(width: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self> {
        let (weight, bias) = (vb.get(width, "weight")?, vb.get(width, "bias")?);
        Ok(Self { weight, bias, eps: eps as f32 })
    }

    /// The norm without weights: nothing is loaded, results are in f32.
    pub fn plain(width: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = Tensor::ones(width, DType::F32, vb.device())?;
        Ok(Self { bias: weight.zeros_like()?, weight, eps: eps as f32 })
    }

    /// Same shape as `xs`, in the dtype of the weights.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = xs.to_dtype(self.weight.dtype())?.contiguous()?;
        layer_norm(&xs, &self.weight, &self.bias, self.eps)
    }
}
