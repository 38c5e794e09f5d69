//! Activations: candle's own, or the vectorised ones for f32 and bf16 on a CPU.

use candle_core::{DType, Result, Tensor};

use super::simd;

/// GELU in its tanh form.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    let is_fast = [DType::F32, DType::BF16].iter().any(|&dtype| simd::is_host(xs, dtype));
    if is_fast { simd::map(xs, simd::gelu_tanh) } else { xs.gelu() }
}
