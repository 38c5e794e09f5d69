//! `x Wᵀ + b`.
//!
//! The plain path is candle's, on any device and in any dtype. The fast one, for f32 on a CPU, adds to
//! the bias in place and computes in the caller's thread pool: candle's own additions of large tensors
//! go through one pool of the process that serves one caller at a time.

use candle_core::{Result, Tensor, bail};
use candle_nn::{Module, VarBuilder};
use rayon::prelude::*;

use super::matmul::{Into, Matrix, multiply};
use super::simd::{is_host_f32, with_slice};

/// Fewest rows of a task: the weights are packed anew for each.
const ROWS: usize = 64;

/// A linear with a bias.
#[derive(Clone, Debug)]
pub struct Linear(candle_nn::Linear);

impl Linear {
    /// `weight` is `(outputs, inputs)`, `bias` is `(outputs,)`.
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        Self(candle_nn::Linear::new(weight, Some(bias)))
    }

    /// Loads `weight` and `bias`.
    pub fn load(inputs: usize, outputs: usize, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self::new(vb.get((outputs, inputs), "weight")?, vb.get(outputs, "bias")?))
    }

    /// `(outputs, inputs)`.
    pub fn weight(&self) -> &Tensor {
        self.0.weight()
    }

    /// `(.., inputs)` to `(.., outputs)`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self.0.bias() {
            Some(bias) if is_host_f32(xs) && is_host_f32(self.weight()) => self.fused(xs, bias),
            _ => self.0.forward(xs),
        }
    }

    fn fused(&self, xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (outputs, inputs) = self.weight().dims2()?;
        let mut shape = xs.dims().to_vec();
        if shape.last() != Some(&inputs) {
            bail!("a linear of {inputs} inputs cannot take {shape:?}");
        }
        let mut out = vec![0.0; xs.elem_count() / inputs.max(1) * outputs];
        let rows = (xs.elem_count() / inputs.max(1)).div_ceil(rayon::current_num_threads());
        let rows = rows.max(ROWS);
        with_slice(xs, |xs| {
            with_slice(self.weight(), |weight| {
                with_slice(bias, |bias| {
                    let weight = Matrix::new(weight, outputs, inputs, inputs)?.transposed();
                    let tasks = out.par_chunks_mut((rows * outputs).max(1));
                    tasks.zip(xs.par_chunks((rows * inputs).max(1))).try_for_each(|(out, xs)| {
                        out.chunks_mut(outputs).for_each(|row| row.copy_from_slice(bias));
                        let xs = Matrix::new(xs, xs.len() / inputs, inputs, inputs)?;
                        multiply(out, outputs, Into::Add, xs, weight)
                    })
                })
            })
        })?;
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        Tensor::from_vec(out, shape, xs.device())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use proptest::prelude::*;

    use super::*;
    use crate::layers::numbers::normal;

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    fn linear(inputs: usize, outputs: usize) -> Linear {
        Linear::new(normal(1, &[outputs, inputs]), normal(2, &[outputs]))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn fused_is_plain(
            frames in 1usize..4, tokens in 1usize..200, inputs in 1usize..40, outputs in 1usize..40,
        ) {
            let (linear, xs) = (linear(inputs, outputs), normal(0, &[frames, tokens, inputs]));
            let fused = linear.forward(&xs).unwrap();
            prop_assert!(difference(&fused, &linear.0.forward(&xs).unwrap()) < 1e-5);
        }
    }

    #[test]
    fn a_view_is_read_as_it_is() {
        let (linear, xs) = (linear(8, 5), normal(0, &[8, 30]));
        let view = xs.t().unwrap();
        let copy = view.contiguous().unwrap();
        assert_eq!(
            difference(&linear.forward(&view).unwrap(), &linear.forward(&copy).unwrap()),
            0.0
        );
    }

    #[test]
    fn other_numbers_take_the_plain_path() {
        let double = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let (single, xs) = (linear(8, 5), normal(0, &[3, 8]));
        let Some(bias) = single.0.bias() else { unreachable!("it has one") };
        let out = Linear::new(double(single.weight()), double(bias)).forward(&double(&xs)).unwrap();
        assert!(
            difference(&out.to_dtype(DType::F32).unwrap(), &single.forward(&xs).unwrap()) < 1e-5
        );
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let error = linear(8, 5).forward(&normal(0, &[3, 7])).unwrap_err().to_string();
        assert!(error.contains("8 inputs") && error.contains("[3, 7]"), "{error}");
    }
}
