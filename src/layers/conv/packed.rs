//! Weights as the direct path reads them.

use candle_core::{IndexOp, Result, Tensor};

use super::{Geometry, panel};

/// A kernel, or the four that it becomes where each input pixel is doubled along both sides: of the
/// three pixels that a row of a 3x3 kernel sees then, two are one pixel's, and their weights are added
/// once and for all. Each of the four computes one output pixel of every two by two.
#[derive(Debug)]
pub(super) struct Packed {
    /// `(frames, subpixels * subpixels, panels, rows, columns * in, panel width)`; outputs beyond the last
    /// are zeros.
    pub(super) weight: Tensor,
    /// Output pixels along a side that an input pixel has.
    pub(super) subpixels: usize,
    /// Of one kernel.
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Outputs of a panel, and panels.
    pub(super) width: usize,
    panels: usize,
}

impl Packed {
    /// From `(out, in, frames, rows, columns)`.
    pub(super) fn new(weight: &Tensor, geometry: &Geometry) -> Result<Self> {
        let (outputs, inputs, frames, rows, cols) = weight.dims5()?;
        let width = panel::width(outputs);
        let panels = outputs.div_ceil(width);
        let shape = |kernels, rows, cols| vec![frames, kernels, panels, rows, cols * inputs, width];
        // One number in place of all, which a network gets that is only asked for its shapes, stays
        // one.
        if weight.stride().iter().all(|&stride| stride == 0) {
            let weight = weight.i((0, 0, 0, 0, 0))?.broadcast_as(shape(1, rows, cols))?;
            return Ok(Self { weight, subpixels: 1, rows, cols, width, panels });
        }
        let kernels = if doubles(geometry) && (rows, cols) == (3, 3) {
            let [above, below] = halves(weight, 3)?;
            let ([a, b], [c, d]) = (halves(&above, 4)?, halves(&below, 4)?);
            vec![a, b, c, d]
        } else {
            vec![weight.clone()]
        };
        let (_, _, _, rows, cols) = kernels[0].dims5()?;
        let pack = |kernel: &Tensor| in_panels(kernel, width)?.reshape(shape(1, rows, cols));
        let packed = kernels.iter().map(pack).collect::<Result<Vec<_>>>()?;
        let (weight, subpixels) = (Tensor::cat(&packed, 1)?, kernels.len().isqrt());
        Ok(Self { weight, subpixels, rows, cols, width, panels })
    }

    /// Outputs of all panels.
    pub(super) fn outputs(&self) -> usize {
        self.panels * self.width
    }
}

/// Whether output pixels are those of the input, doubled.
fn doubles(geometry: &Geometry) -> bool {
    (geometry.enlarge, geometry.padding, geometry.stride) == (2, (1, 1), 1)
}

/// What of three weights along `dim` the first and the second half of a doubled pixel see: two pixels
/// each.
fn halves(weight: &Tensor, dim: usize) -> Result<[Tensor; 2]> {
    let tap = |i| weight.narrow(dim, i, 1);
    let first = Tensor::cat(&[tap(0)?, (tap(1)? + tap(2)?)?], dim)?;
    let second = Tensor::cat(&[(tap(0)? + tap(1)?)?, tap(2)?], dim)?;
    Ok([first, second])
}

/// `(frames, panels, rows * columns, in, width)`, contiguous.
fn in_panels(weight: &Tensor, width: usize) -> Result<Tensor> {
    let (outputs, inputs, frames, rows, cols) = weight.dims5()?;
    let panels = outputs.div_ceil(width);
    let weight = weight.contiguous()?.pad_with_zeros(0, 0, panels * width - outputs)?;
    let weight = weight.reshape((panels, width, inputs, frames, rows * cols))?;
    weight.permute((3, 0, 4, 2, 1))?.contiguous()
}
