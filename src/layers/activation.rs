//! Activations: candle's own, or the vectorised ones for f32 on a CPU.

use candle_core::{Result, Tensor};

use super::simd;

/// GELU in its tanh form.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    if simd::is_host_f32(xs) { simd::map(xs, simd::gelu_tanh) } else { xs.gelu() }
}
