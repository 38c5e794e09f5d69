//! A linear in bf16 whose weights are packed for the machine's own dot products.

use candle_core::{D, Result, Tensor};
use half::bf16;

use super::by_rows;
use crate::layers::dots::{Rows, WIDTH};
use crate::layers::panels::{Panels, Source};
use crate::layers::real::{round, widen};
use crate::layers::simd::with_slice;

/// Fewest rows of a task: all weights pass by for each.
const FEWEST: usize = 12;

/// Rows and panels at once: inputs and sums of so many rows fit a core's second-level cache.
const ROWS: usize = 192;
const PANELS: usize = 4;

pub(super) fn pack(weight: &Tensor) -> Result<Panels> {
    let (rows, cols) = weight.dims2()?;
    with_slice(weight, |data| Ok(Panels::pack(Source { data, rows, cols, stride: cols })))
}

pub(super) fn forward(panels: &Panels, bias: &Tensor, xs: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = (panels.outputs(), panels.inputs());
    let stride = 2 * panels.depth();
    let xs = xs.pad_with_zeros(D::Minus1, 0, stride - inputs)?;
    with_slice(bias, |bias| {
        let bias = starts(bias);
        by_rows(&xs, (stride, outputs), FEWEST, |out, xs| task(panels, &bias, out, xs))
    })
}

/// The bias of each panel.
fn starts(bias: &[bf16]) -> Vec<[f32; WIDTH]> {
    let mut starts = vec![[0.0; WIDTH]; bias.len().div_ceil(WIDTH)];
    starts.iter_mut().zip(bias.chunks(WIDTH)).for_each(|(to, from)| widen(from, to));
    starts
}

fn task(panels: &Panels, bias: &[[f32; WIDTH]], out: &mut [bf16], xs: &[bf16]) -> Result<()> {
    let (outputs, stride) = (panels.outputs(), 2 * panels.depth());
    let mut sums = vec![[0.0; WIDTH]; ROWS * PANELS];
    for first in (0..panels.count()).step_by(PANELS) {
        let some = first..panels.count().min(first + PANELS);
        for (out, xs) in out.chunks_mut(ROWS * outputs).zip(xs.chunks(ROWS * stride)) {
            let rows = Rows { data: xs, stride, count: xs.len() / stride };
            let sums = &mut sums[..rows.count * some.len()];
            sums.chunks_mut(some.len()).for_each(|row| row.copy_from_slice(&bias[some.clone()]));
            panels.add_to(sums, some.len(), rows, some.clone())?;
            for (out, sums) in out.chunks_mut(outputs).zip(sums.chunks(some.len())) {
                let out = &mut out[first * WIDTH..];
                let count = out.len().min(some.len() * WIDTH);
                round(&sums.as_flattened()[..count], &mut out[..count]);
            }
        }
    }
    Ok(())
}
