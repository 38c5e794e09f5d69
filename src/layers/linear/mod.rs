//! `x Wᵀ + b`.
//!
//! The plain path is candle's, on any device and in any dtype. The fast ones, on a CPU, sum up from the
//! bias on in f32 and compute in the caller's thread pool: candle's own additions of large tensors go
//! through one pool of the process that serves one caller at a time. In bf16 on a GPU the product adds the bias
//! and does what follows.

mod packed;
mod widened;

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor, WithDType, bail};
use candle_nn::{Module, VarBuilder};
use rayon::prelude::*;

use super::activation::gelu_tanh;
use super::dots;
use super::matmul::{Into, Matrix, multiply};
use super::panels::Panels;
use super::simd::{is_host, with_slice};
use crate::device::arguments::Then;
use crate::device::kernels;

/// Fewest rows of a task: the weights are packed anew for each.
const ROWS: usize = 64;

/// A linear with a bias.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
    bias: Tensor,
}

/// In the order of the checkpoint, or in that in which they are multiplied: never both.
#[derive(Clone, Debug)]
enum Weight {
    Plain(Tensor),
    Packed(Arc<Panels>),
}

impl Linear {
    /// `weight` is `(outputs, inputs)`, `bias` is `(outputs,)`.
    pub fn new(weight: Tensor, bias: Tensor) -> Result<Self> {
        let weight = if is_host(&weight, DType::BF16) && dots::are_fast() {
            Weight::Packed(Arc::new(packed::pack(&weight)?))
        } else {
            Weight::Plain(weight)
        };
        Ok(Self { weight, bias })
    }

    /// Loads `weight` and `bias`.
    pub fn load(inputs: usize, outputs: usize, vb: VarBuilder<'_>) -> Result<Self> {
        Self::new(vb.get((outputs, inputs), "weight")?, vb.get(outputs, "bias")?)
    }

    /// Of the weights, and of what they are multiplied with.
    pub fn dtype(&self) -> DType {
        self.bias.dtype()
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        self.bias.device()
    }

    fn inputs(&self) -> Result<usize> {
        match &self.weight {
            Weight::Packed(panels) => Ok(panels.inputs()),
            Weight::Plain(weight) => weight.dim(1),
        }
    }

    /// `(.., inputs)` to `(.., outputs)`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let inputs = self.inputs()?;
        if xs.dims().last() != Some(&inputs) {
            bail!("a linear of {inputs} inputs cannot take {:?}", xs.dims());
        }
        let is = |dtype| is_host(xs, dtype) && self.dtype() == dtype;
        match &self.weight {
            Weight::Packed(panels) => packed::forward(panels, &self.bias, xs),
            Weight::Plain(weight) if is(DType::F32) => fused(weight, &self.bias, xs),
            Weight::Plain(weight) if is(DType::BF16) => widened::forward(weight, &self.bias, xs),
            Weight::Plain(weight) if xs.device().is_cuda() => {
                on_gpu(weight, &self.bias, xs, Then::Nothing)
            }
            Weight::Plain(weight) => plain(weight, &self.bias, xs),
        }
    }

    /// GELU, in its tanh form, of [`forward`](Self::forward).
    pub fn forward_gelu(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Plain(weight) if xs.device().is_cuda() => {
                on_gpu(weight, &self.bias, xs, Then::Gelu)
            }
            _ => gelu_tanh(&self.forward(xs)?),
        }
    }

    /// `residual`, shaped like the result, on top of [`forward`](Self::forward).
    pub fn forward_add(&self, xs: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Plain(weight) if xs.device().is_cuda() => {
                on_gpu(weight, &self.bias, xs, Then::Add(residual))
            }
            _ => residual + self.forward(xs)?,
        }
    }
}

/// In one pass where it is known how to do it, else by candle.
fn on_gpu(weight: &Tensor, bias: &Tensor, xs: &Tensor, then: Then<'_>) -> Result<Tensor> {
    if let Some(ys) = kernels::linear(xs, weight, bias, then)? {
        return Ok(ys);
    }
    let ys = plain(weight, bias, xs)?;
    match then {
        Then::Nothing => Ok(ys),
        Then::Gelu => gelu_tanh(&ys),
        Then::Add(residual) => residual + ys,
    }
}

fn plain(weight: &Tensor, bias: &Tensor, xs: &Tensor) -> Result<Tensor> {
    candle_nn::Linear::new(weight.clone(), Some(bias.clone())).forward(xs)
}

fn fused(weight: &Tensor, bias: &Tensor, xs: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    with_slice(weight, |weight| {
        with_slice(bias, |bias| {
            let weights = Weights { weight, bias, inputs };
            if xs.elem_count() <= ROWS * inputs {
                return weights.by_outputs(xs);
            }
            by_rows(xs, (inputs, outputs), ROWS, |out, xs| weights.multiply(out, xs))
        })
    })
}

/// Those of some outputs, in f32.
#[derive(Clone, Copy)]
struct Weights<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    inputs: usize,
}

impl Weights<'_> {
    fn multiply(self, out: &mut [f32], xs: &[f32]) -> Result<()> {
        let Self { weight, bias, inputs } = self;
        let outputs = bias.len();
        out.chunks_mut(outputs).for_each(|row| row.copy_from_slice(bias));
        let weight = Matrix::new(weight, outputs, inputs, inputs)?.transposed();
        let xs = Matrix::new(xs, xs.len() / inputs, inputs, inputs)?;
        multiply(out, outputs, Into::Add, xs, weight)
    }

    /// For rows too few to be spread: each task has some outputs of all.
    fn by_outputs(self, xs: &Tensor) -> Result<Tensor> {
        let (inputs, before) = (self.inputs, &xs.dims()[..xs.rank() - 1]);
        let rows = xs.elem_count() / inputs.max(1);
        let count = self.bias.len().div_ceil(rayon::current_num_threads()).max(1);
        let parts = with_slice(xs, |xs| {
            let parts =
                self.weight.par_chunks((count * inputs).max(1)).zip(self.bias.par_chunks(count));
            let part = |(weight, bias): (_, &[f32])| {
                let mut out = vec![0.0; rows * bias.len()];
                Weights { weight, bias, inputs }.multiply(&mut out, xs)?;
                Tensor::from_vec(out, [before, &[bias.len()]].concat(), &Device::Cpu)
            };
            parts.map(part).collect::<Result<Vec<_>>>()
        })?;
        Tensor::cat(&parts, D::Minus1)
    }
}

/// `(.., inputs)` to `(.., outputs)`: `task` computes some rows, at least `fewest` where there are
/// several tasks.
fn by_rows<T: WithDType>(
    xs: &Tensor,
    (inputs, outputs): (usize, usize),
    fewest: usize,
    task: impl Fn(&mut [T], &[T]) -> Result<()> + Sync,
) -> Result<Tensor> {
    let rows = xs.elem_count() / inputs.max(1);
    let mut out = vec![T::zero(); rows * outputs];
    let rows = rows.div_ceil(rayon::current_num_threads()).max(fewest);
    with_slice(xs, |xs| {
        let tasks = out.par_chunks_mut((rows * outputs).max(1));
        tasks.zip(xs.par_chunks((rows * inputs).max(1))).try_for_each(|(out, xs)| task(out, xs))
    })?;
    let before = &xs.dims()[..xs.rank() - 1];
    Tensor::from_vec(out, [before, &[outputs]].concat(), xs.device())
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use proptest::prelude::*;

    use super::*;
    use crate::layers::numbers::{normal, property};

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    fn weights(inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        (normal(1, &[outputs, inputs]), normal(2, &[outputs]))
    }

    fn linear(inputs: usize, outputs: usize) -> Linear {
        let (weight, bias) = weights(inputs, outputs);
        Linear::new(weight, bias).unwrap()
    }

    fn in_bf16(x: &Tensor) -> Tensor {
        x.to_dtype(DType::BF16).unwrap()
    }

    fn in_f32(x: &Tensor) -> Tensor {
        x.to_dtype(DType::F32).unwrap()
    }

    /// Furthest from candle's result in f32 for the same numbers in bf16, in roundings of the result.
    fn roundings(xs: &Tensor, weight: &Tensor, bias: &Tensor, ys: &Tensor) -> f32 {
        let exact = plain(&in_f32(weight), &in_f32(bias), &in_f32(xs)).unwrap();
        assert_eq!((ys.dims(), ys.dtype()), (exact.dims(), DType::BF16));
        let allowed = ((exact.abs().unwrap() / 256.0).unwrap() + 1e-4).unwrap();
        let off = ((in_f32(ys) - exact).unwrap().abs().unwrap() / allowed).unwrap();
        off.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    proptest! {
        #![proptest_config(property(48))]
        #[test]
        fn fused_is_plain(
            frames in 1usize..4, tokens in 1usize..200, inputs in 1usize..40, outputs in 1usize..40,
        ) {
            let ((weight, bias), xs) = (weights(inputs, outputs), normal(0, &[frames, tokens, inputs]));
            let fused = fused(&weight, &bias, &xs).unwrap();
            prop_assert!(difference(&fused, &plain(&weight, &bias, &xs).unwrap()) < 1e-5);
        }

        /// The last one on this machine's own dot products, where it has them.
        #[test]
        fn bf16_is_plain(
            frames in 1usize..3, tokens in 1usize..250, inputs in 1usize..600, outputs in 1usize..600,
        ) {
            let (weight, bias) = weights(inputs, outputs);
            let xs = in_bf16(&normal(0, &[frames, tokens, inputs]));
            let (weight, bias) = (in_bf16(&weight), in_bf16(&bias));
            let widened = widened::forward(&weight, &bias, &xs).unwrap();
            prop_assert!(roundings(&xs, &weight, &bias, &widened) < 1.0);
            let linear = Linear::new(weight.clone(), bias.clone()).unwrap();
            prop_assert_eq!(matches!(linear.weight, Weight::Packed(_)), dots::are_fast());
            prop_assert!(roundings(&xs, &weight, &bias, &linear.forward(&xs).unwrap()) < 1.0);
        }
    }

    /// Where cuBLASLt knows nothing; what it computes is tested on a GPU.
    #[test]
    fn the_way_of_a_gpu_is_plain_too() {
        let ((weight, bias), xs) = (weights(8, 5), normal(0, &[2, 3, 8]));
        let plain = plain(&weight, &bias, &xs).unwrap();
        let there = |then| on_gpu(&weight, &bias, &xs, then).unwrap();
        assert!(difference(&there(Then::Nothing), &plain) < 1e-6);
        assert!(difference(&there(Then::Gelu), &gelu_tanh(&plain).unwrap()) < 1e-6);
        let residual = normal(3, &[2, 3, 5]);
        let sum = (&residual + &plain).unwrap();
        assert!(difference(&there(Then::Add(&residual)), &sum) < 1e-6);
        let linear = linear(8, 5);
        assert!(difference(&linear.forward_gelu(&xs).unwrap(), &there(Then::Gelu)) < 1e-5);
        assert!(difference(&linear.forward_add(&xs, &residual).unwrap(), &sum) < 1e-5);
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
        let ((weight, bias), xs) = (weights(8, 5), normal(0, &[3, 8]));
        let out =
            Linear::new(double(&weight), double(&bias)).unwrap().forward(&double(&xs)).unwrap();
        assert!(difference(&in_f32(&out), &linear(8, 5).forward(&xs).unwrap()) < 1e-5);
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let error = linear(8, 5).forward(&normal(0, &[3, 7])).unwrap_err().to_string();
        assert!(error.contains("8 inputs") && error.contains("[3, 7]"), "{error}");
        let (weight, bias) = weights(7, 5);
        let odd = Linear::new(in_bf16(&weight), in_bf16(&bias)).unwrap();
        assert!(odd.forward(&in_bf16(&normal(0, &[3, 8]))).is_err());
        assert!(odd.forward(&normal(0, &[3, 7])).is_err());
    }
}
