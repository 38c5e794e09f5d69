//! Arithmetic on CPU slices, compiled for several instruction sets and dispatched at run time.
//!
//! Plain loops that the compiler vectorises; `pulp` picks the widest set that the machine has.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// Elements that one task of the thread pool takes: small enough for a core's first-level cache.
const CHUNK: usize = 8 * 1024;

/// `e^x`, relative error below 2e-7 over the normal range; 0 below it, finite above it.
///
/// Cody-Waite reduction to `|r| <= ln(2)/2` and a degree-6 polynomial.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = (p * r + 1.0) * r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, written as `x * sigmoid(2u)`.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_1;
    let u = TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-u))
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Applies `f` to every element in parallel; `f` should be `#[inline(always)]`.
pub fn map(x: &Tensor, f: impl Fn(f32) -> f32 + Sync + Copy) -> Result<Tensor> {
    let mut out = to_vec(x)?;
    let arch = pulp::Arch::new();
    out.par_chunks_mut(CHUNK).for_each(|chunk| {
        arch.dispatch(
            #[inline(always)]
            || chunk.iter_mut().for_each(|v| *v = f(*v)),
        )
    });
    Tensor::from_vec(out, x.shape(), &Device::Cpu)
}

/// Whether the fast paths of this crate take `x`: f32 in the host's memory.
pub fn is_host_f32(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Calls `f` with the elements of a contiguous f32 tensor in the host's memory, not copied.
pub fn with_slice<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(data)), Some((start, end))) => f(&data[start..end]),
        _ => bail!("expected contiguous f32 on the cpu, got {:?} {layout:?}", x.dtype()),
    }
}

fn to_vec(x: &Tensor) -> Result<Vec<f32>> {
    with_slice(&x.contiguous()?, |data| Ok(data.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0 + 0.003;
            let expected = f64::from(x).exp();
            let relative = ((f64::from(exp(x)) - expected) / expected).abs();
            assert!(relative < 3e-7, "exp({x}): relative error {relative}");
        }
        assert!(exp(-1e9) < 1e-37 && exp(1e9).is_finite());
    }

    #[test]
    fn activations_match_candle() -> Result<()> {
        let x = Tensor::arange(-600f32, 600.0, &Device::Cpu)?.affine(0.02, 0.0)?;
        let difference = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max(0)?.to_scalar::<f32>();
        assert!(difference(&map(&x, gelu_tanh)?, &x.gelu()?)? < 2e-6);
        assert!(difference(&map(&x, silu)?, &x.silu()?)? < 2e-6);
        Ok(())
    }
}
