//! Arithmetic on CPU slices, compiled for several instruction sets and dispatched at run time.
//!
//! Mostly plain loops that the compiler vectorises; `pulp` picks the widest set that the machine has.

use candle_core::{DType, Layout, Result, Storage, Tensor, WithDType, bail};
use half::bf16;
use pulp::{Arch, Scalar128b, Simd, WithSimd};
use rayon::prelude::*;

use super::real::{Each, Real};

/// Numbers that one task of the thread pool takes: in and out together fit a core's second-level
/// cache.
const TASK: usize = 64 * 1024;

/// Smallest norm that a pixel is divided by, as in `torch.nn.functional.normalize`.
const MIN_NORM: f32 = 1e-12;

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
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let u = TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-u))
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Runs `op` as compiled for the best instruction set that there is; where none is known, four numbers
/// at a time, as every x86-64 can.
#[inline]
pub fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    match Arch::new() {
        #[cfg(target_arch = "x86_64")]
        Arch::Scalar => Scalar128b.vectorize(op),
        arch => arch.dispatch(op),
    }
}

/// Numbers in a vector of [`dispatch`].
pub fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;

        fn with_simd<S: Simd>(self, _simd: S) -> usize {
            S::F32_LANES
        }
    }
    dispatch(Lanes)
}

/// `a * b + c`, rounded once where the machine can.
#[inline(always)]
pub fn multiply_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    // Where a processor has no such instruction, the one of `pulp` is a call for each number.
    let has_none = cfg!(target_arch = "x86_64") && S::F32_LANES <= Scalar128b::F32_LANES;
    if has_none { simd.add_f32s(simd.mul_f32s(a, b), c) } else { simd.mul_add_e_f32s(a, b, c) }
}

/// Applies `f` to every element, an f32 or a bf16; `f` should be `#[inline(always)]`.
pub fn map(xs: &Tensor, f: impl Fn(f32) -> f32 + Sync + Copy) -> Result<Tensor> {
    if is_host(xs, DType::BF16) { map_reals::<bf16>(xs, f) } else { map_reals::<f32>(xs, f) }
}

fn map_reals<T: Real>(xs: &Tensor, f: impl Fn(f32) -> f32 + Sync + Copy) -> Result<Tensor> {
    map_runs(xs, TASK, |from: &[T], to: &mut [T]| dispatch(Each { from, to, f }))
}

/// `silu(x / max(|x|, 1e-12) * sqrt(channels) * gamma)` over the last dimension of `xs`; `gamma` is
/// `(channels,)`. Reads and writes memory once.
pub fn rms_norm_silu(xs: &Tensor, gamma: &Tensor) -> Result<Tensor> {
    let channels = gamma.elem_count();
    if xs.dims().last() != Some(&channels) || channels == 0 {
        bail!("expected {channels} channels last, got {:?}", xs.shape())
    }
    with_slice(gamma, |gamma| {
        let run = TASK.next_multiple_of(channels);
        map_runs(xs, run, |src, dst| dispatch(NormSilu { src, dst, gamma }))
    })
}

/// A new tensor whose runs of `run` numbers are each `f` of the same run of `xs`, in parallel.
fn map_runs<T: WithDType>(
    xs: &Tensor,
    run: usize,
    f: impl Fn(&[T], &mut [T]) + Sync,
) -> Result<Tensor> {
    let ys = with_slice(xs, |xs| {
        let mut ys = vec![T::zero(); xs.len()];
        ys.par_chunks_mut(run).zip(xs.par_chunks(run)).for_each(|(dst, src)| f(src, dst));
        Ok(ys)
    })?;
    Tensor::from_vec(ys, xs.shape(), xs.device())
}

/// A run of pixels to normalise.
struct NormSilu<'a> {
    src: &'a [f32],
    dst: &'a mut [f32],
    gamma: &'a [f32],
}

impl WithSimd for NormSilu<'_> {
    type Output = ();

    /// Pixel by pixel, then all that is still in the first-level cache at once: a pixel may have fewer
    /// numbers than pay for a loop of their own.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const HOT: usize = 2048;
        let channels = self.gamma.len();
        let run = HOT.next_multiple_of(channels);
        for (src, dst) in self.src.chunks(run).zip(self.dst.chunks_mut(run)) {
            let pixels = src.chunks_exact(channels).zip(dst.chunks_exact_mut(channels));
            pixels.for_each(|(x, y)| normalise(simd, x, self.gamma, y));
            dst.iter_mut().for_each(|y| *y = silu(*y));
        }
    }
}

/// `y = x / max(|x|, 1e-12) * sqrt(channels) * gamma` for one pixel.
#[inline(always)]
fn normalise<S: Simd>(simd: S, x: &[f32], gamma: &[f32], y: &mut [f32]) {
    let ((xs, x_rest), (gammas, gamma_rest)) = (S::as_simd_f32s(x), S::as_simd_f32s(gamma));
    let squares = xs.iter().fold(simd.splat_f32s(0.0), |sum, &x| multiply_add(simd, x, x, sum));
    let squares = simd.reduce_sum_f32s(squares) + x_rest.iter().map(|x| x * x).sum::<f32>();
    let scale = (x.len() as f32).sqrt() / squares.sqrt().max(MIN_NORM);
    let (ys, y_rest) = S::as_mut_simd_f32s(y);
    let scales = simd.splat_f32s(scale);
    for ((y, &x), &gamma) in ys.iter_mut().zip(xs).zip(gammas) {
        *y = simd.mul_f32s(simd.mul_f32s(x, scales), gamma);
    }
    for ((y, &x), &gamma) in y_rest.iter_mut().zip(x_rest).zip(gamma_rest) {
        *y = x * scale * gamma;
    }
}

/// Whether the fast paths of this crate take `x`: f32 in the host's memory.
pub fn is_host_f32(x: &Tensor) -> bool {
    is_host(x, DType::F32)
}

/// Whether `x` is such numbers in the host's memory.
pub fn is_host(x: &Tensor, dtype: DType) -> bool {
    x.device().is_cpu() && x.dtype() == dtype
}

/// Lends the numbers of a tensor in the host's memory, row-major, to `f`; they are copied only where
/// they are not contiguous.
pub fn with_slice<T: WithDType, R>(xs: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let xs = xs.contiguous()?;
    let (storage, layout) = xs.storage_and_layout();
    f(numbers(&storage, layout)?)
}

/// The same of many tensors, all at once.
pub fn with_slices<T: WithDType, R>(
    xs: &[Tensor],
    f: impl FnOnce(&[&[T]]) -> Result<R>,
) -> Result<R> {
    let xs = xs.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    let held: Vec<_> = xs.iter().map(Tensor::storage_and_layout).collect();
    let slices = held.iter().map(|(storage, layout)| numbers(storage, layout));
    f(&slices.collect::<Result<Vec<_>>>()?)
}

fn numbers<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match (storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(&storage.as_slice()?[start..end]),
        _ => bail!("expected numbers in the host's memory, row-major, got {layout:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

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

    #[test]
    fn bf16_is_computed_in_f32_and_rounded_once() -> Result<()> {
        let x = Tensor::arange(-600f32, 600.0, &Device::Cpu)?.affine(0.02, 0.0)?;
        let x = x.to_dtype(DType::BF16)?;
        let exact = map(&x.to_dtype(DType::F32)?, gelu_tanh)?.to_dtype(DType::BF16)?;
        assert_eq!(map(&x, gelu_tanh)?.to_vec1::<bf16>()?, exact.to_vec1::<bf16>()?);
        Ok(())
    }

    #[test]
    fn norm_silu_of_a_hand_sized_pixel() -> Result<()> {
        let xs = Tensor::new(&[[3f32, 4.], [0., 0.]], &Device::Cpu)?;
        let gamma = Tensor::new(&[1f32, -0.5], &Device::Cpu)?;
        let ys = rms_norm_silu(&xs, &gamma)?.to_vec2::<f32>()?;
        let silu = |x: f64| x / (1. + (-x).exp());
        let expected = [silu(0.6 * 2f64.sqrt()), silu(-0.4 * 2f64.sqrt())];
        for (y, e) in ys[0].iter().zip(expected) {
            assert!((f64::from(*y) - e).abs() < 1e-6, "{y} expected {e}");
        }
        assert_eq!(ys[1], [0., 0.]);
        assert!(rms_norm_silu(&xs, &gamma.narrow(0, 0, 1)?).is_err());
        Ok(())
    }
}
