//! What is done to each row of a tensor in bf16 on a CPU, in f32 between one reading and one writing.
//!
//! Factors are in f32, `(.., runs, dim)`: the first run of rows takes the first row of them, and so on.

use candle_core::{D, Result, Tensor, bail};
use half::bf16;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::real::{Real, round, widen};
use super::simd::{dispatch, with_slice};

/// What a row is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Its standard deviation, its mean taken away.
    Layer,
    /// The root of its mean square.
    Rms,
}

/// `norm(xs) * weight + bias`.
pub fn norm(xs: &Tensor, norm: Norm, eps: f32, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    map(xs, xs, [weight, bias], |row, _, [weight, bias]| {
        dispatch(Normed { row, norm, eps, weight, bias });
    })
}

/// `xs + ys * gate`.
pub fn add_gated(xs: &Tensor, ys: &Tensor, gate: &Tensor) -> Result<Tensor> {
    map(xs, ys, [gate, gate], |row, ys, [gate, _]| dispatch(Gated { row, ys, gate }))
}

/// `task` changes a row of `xs`, beside the same of `ys`, with its factors.
fn map(
    xs: &Tensor,
    ys: &Tensor,
    factors: [&Tensor; 2],
    task: impl Fn(&mut [f32], &[bf16], [&[f32]; 2]) + Sync,
) -> Result<Tensor> {
    let dim = xs.dim(D::Minus1)?;
    let runs = factors[0].elem_count() / dim.max(1);
    let rows = xs.elem_count() / (dim * runs).max(1); // of a run
    let fit = factors.iter().all(|factor| factor.elem_count() == runs * dim);
    if !fit || rows * runs * dim != xs.elem_count() || xs.dims() != ys.dims() || dim == 0 {
        bail!("{:?} and {:?} with factors {:?}", xs.dims(), ys.dims(), factors.map(Tensor::dims));
    }
    let mut out = vec![bf16::ZERO; xs.elem_count()];
    let mut slices = |xs: &[bf16], ys: &[bf16], factors: [&[f32]; 2]| {
        let ins = xs.par_chunks(dim).zip(ys.par_chunks(dim)).enumerate();
        let wide = || vec![0.0; dim];
        out.par_chunks_mut(dim).zip(ins).for_each_init(wide, |wide, (out, (index, (x, y)))| {
            widen(x, wide);
            task(wide, y, factors.map(|factor| &factor[index / rows * dim..][..dim]));
            round(wide, out);
        });
        Ok(())
    };
    let [a, b] = factors;
    with_slice(xs, |xs| {
        with_slice(ys, |ys| with_slice(a, |a| with_slice(b, |b| slices(xs, ys, [a, b]))))
    })?;
    Tensor::from_vec(out, xs.shape(), xs.device())
}

/// [`norm`] of a row.
struct Normed<'a> {
    row: &'a mut [f32],
    norm: Norm,
    eps: f32,
    weight: &'a [f32],
    bias: &'a [f32],
}

impl WithSimd for Normed<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { row, norm, eps, weight, bias } = self;
        let mean = match norm {
            Norm::Layer => sum(row, |x| x) / row.len() as f32,
            Norm::Rms => 0.0,
        };
        let variance = sum(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for (x, (weight, bias)) in row.iter_mut().zip(weight.iter().zip(bias)) {
            *x = (*x - mean) * scale * weight + bias;
        }
    }
}

/// Partial sums first, so that it vectorises.
#[inline(always)]
fn sum(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0f32; LANES];
    let (whole, rest) = xs.as_chunks::<LANES>();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane += f(x));
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&x| f(x)).sum::<f32>()
}

/// [`add_gated`] of a row.
struct Gated<'a> {
    row: &'a mut [f32],
    ys: &'a [bf16],
    gate: &'a [f32],
}

impl WithSimd for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let ys = self.ys.iter().zip(self.gate);
        self.row.iter_mut().zip(ys).for_each(|(x, (y, gate))| *x += y.wide() * gate);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::ops::{layer_norm, rms_norm};
    use proptest::prelude::*;

    use super::*;
    use crate::layers::numbers::{normal, property};

    /// Furthest from what is exact, in roundings of the result.
    fn roundings(ys: &Tensor, exact: &Tensor) -> f32 {
        assert_eq!((ys.dims(), ys.dtype()), (exact.dims(), DType::BF16));
        let allowed = ((exact.abs().unwrap() / 256.0).unwrap() + 1e-5).unwrap();
        let off = (ys.to_dtype(DType::F32).unwrap() - exact).unwrap().abs().unwrap();
        (off / allowed).unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    proptest! {
        #![proptest_config(property(48))]
        #[test]
        fn fast_is_plain(runs in 1usize..4, rows in 1usize..9, dim in 1usize..200) {
            let numbers = |seed| normal(seed, &[runs, rows, dim]).to_dtype(DType::BF16).unwrap();
            let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
            let (xs, ys) = (numbers(0), numbers(1));
            let factors = |seed| normal(seed, &[runs, 1, dim]);
            let (weight, bias) = (factors(2), factors(3));
            let ones = Tensor::ones(dim, DType::F32, &Device::Cpu).unwrap();
            let scaled = |normed: Tensor| {
                normed.broadcast_mul(&weight).unwrap().broadcast_add(&bias).unwrap()
            };
            let exact = layer_norm(&wide(&xs), &ones, &ones.zeros_like().unwrap(), 1e-6).unwrap();
            let fast = norm(&xs, Norm::Layer, 1e-6, &weight, &bias).unwrap();
            prop_assert!(roundings(&fast, &scaled(exact)) < 1.0);
            let exact = rms_norm(&wide(&xs), &ones, 1e-6).unwrap();
            let fast = norm(&xs, Norm::Rms, 1e-6, &weight, &bias).unwrap();
            prop_assert!(roundings(&fast, &scaled(exact)) < 1.0);
            let exact = (wide(&xs) + wide(&ys).broadcast_mul(&weight).unwrap()).unwrap();
            prop_assert!(roundings(&add_gated(&xs, &ys, &weight).unwrap(), &exact) < 1.0);
        }
    }

    #[test]
    fn factors_that_do_not_fit_are_named() {
        let xs = normal(0, &[3, 2, 4]).to_dtype(DType::BF16).unwrap();
        let error = add_gated(&xs, &xs, &normal(1, &[4, 1, 4])).unwrap_err().to_string();
        assert!(error.contains("[4, 1, 4]"), "{error}");
        assert!(add_gated(&xs, &xs, &normal(1, &[5])).is_err());
    }
}
