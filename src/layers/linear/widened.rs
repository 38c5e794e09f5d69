//! A linear in bf16 on any CPU: a tile of its weights at a time is widened to f32.

use candle_core::{Result, Tensor};
use half::bf16;

use super::{ROWS, by_rows};
use crate::layers::matmul::{Into, Matrix, multiply};
use crate::layers::real::{round, widen};
use crate::layers::simd::with_slice;

/// Outputs of a tile.
const OUTPUTS: usize = 256;

pub(super) fn forward(weight: &Tensor, bias: &Tensor, xs: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    with_slice(weight, |weight| {
        with_slice(bias, |bias| {
            let tiles = Tiles { weight, bias, inputs };
            by_rows(xs, (inputs, outputs), ROWS, |out, xs| tiles.multiply(out, xs))
        })
    })
}

struct Tiles<'a> {
    weight: &'a [bf16],
    bias: &'a [bf16],
    inputs: usize,
}

impl Tiles<'_> {
    fn multiply(&self, out: &mut [bf16], xs: &[bf16]) -> Result<()> {
        let (inputs, outputs) = (self.inputs, self.bias.len());
        let mut wide = vec![0.0; xs.len()];
        widen(xs, &mut wide);
        let xs = Matrix::new(&wide, wide.len() / inputs, inputs, inputs)?;
        let mut weight = vec![0.0; OUTPUTS.min(outputs) * inputs];
        let mut sums = vec![0.0; wide.len() / inputs * OUTPUTS.min(outputs)];
        for first in (0..outputs).step_by(OUTPUTS) {
            let count = OUTPUTS.min(outputs - first);
            widen(&self.weight[first * inputs..][..count * inputs], &mut weight[..count * inputs]);
            sums.chunks_mut(count).for_each(|sums| widen(&self.bias[first..][..count], sums));
            let weight = Matrix::new(&weight, count, inputs, inputs)?.transposed();
            multiply(&mut sums, count, Into::Add, xs, weight)?;
            let rows = out.chunks_mut(outputs).zip(sums.chunks(count));
            rows.for_each(|(out, sums)| round(sums, &mut out[first..][..count]));
        }
        Ok(())
    }
}
