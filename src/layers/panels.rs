//! A matrix of bf16 in the order in which [`dots`](super::dots) multiply it.

use std::fmt::{self, Debug, Formatter};
use std::ops::Range;

use candle_core::Result;
use half::bf16;
use rayon::prelude::*;

use super::dots::{self, Pairs, Rows, Sums, WIDTH};

/// Pairs of a panel that are used again and again while they stay in a core's first-level cache.
const HOT: usize = 128;

/// `outputs` rows of `inputs` numbers; a panel has [`WIDTH`] of the rows, pair by pair. What is summed
/// up for outputs behind the last one means nothing.
#[derive(Clone, Default)]
pub struct Panels {
    outputs: usize,
    inputs: usize,
    pairs: Vec<Pairs>, // (panels, depth); of an odd input the second number is 0
}

/// A matrix in the order of a tensor, rows `stride` numbers apart.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub data: &'a [bf16],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl Source<'_> {
    /// The numbers of its rows, and not those of later ones.
    fn rows(&self) -> &[bf16] {
        &self.data[..self.data.len().min(self.rows * self.stride)]
    }
}

impl Panels {
    /// Packs rows that are outputs, in the caller's thread pool.
    pub fn pack(source: Source<'_>) -> Self {
        let mut packed = Self::default();
        packed.resize(source.rows, source.cols);
        let panels = packed.pairs.par_chunks_mut(source.cols.div_ceil(2).max(1));
        let rows = source.rows().par_chunks((WIDTH * source.stride).max(1));
        panels.zip(rows).for_each(|(panel, rows)| pack_panel(panel, rows, source));
        packed
    }

    /// The same in this thread, in place of what was packed before.
    pub fn pack_rows(&mut self, source: Source<'_>) {
        self.resize(source.rows, source.cols);
        let panels = self.pairs.chunks_mut(source.cols.div_ceil(2).max(1));
        let rows = source.rows().chunks((WIDTH * source.stride).max(1));
        panels.zip(rows).for_each(|(panel, rows)| pack_panel(panel, rows, source));
    }

    /// Packs columns that are outputs.
    pub fn pack_columns(&mut self, source: Source<'_>) {
        let Source { rows, cols, stride, .. } = source;
        self.resize(cols, rows);
        let panels = self.pairs.chunks_mut(rows.div_ceil(2).max(1));
        for (panel, first) in panels.zip((0..cols).step_by(WIDTH)) {
            let part = first..cols.min(first + WIDTH);
            for (pairs, rows) in panel.iter_mut().zip(source.rows().chunks(2 * stride)) {
                let upper = rows.get(stride..).filter(|upper| !upper.is_empty());
                join(&mut pairs.0, &rows[part.clone()], upper.map(|row| &row[part.clone()]));
            }
        }
    }

    fn resize(&mut self, outputs: usize, inputs: usize) {
        (self.outputs, self.inputs) = (outputs, inputs);
        self.pairs.resize(self.count() * self.depth(), Pairs([0; WIDTH]));
    }

    /// Rows of what was packed.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Numbers of each.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Pairs of each.
    pub fn depth(&self) -> usize {
        self.inputs.div_ceil(2)
    }

    /// Panels in all.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(WIDTH)
    }

    /// Adds the products of `xs`, rows of `2 * depth` numbers, with some panels to `sums`: those of a
    /// row are beside each other, and `stride` from those of the row before.
    pub fn add_to(
        &self,
        sums: &mut [Sums],
        stride: usize,
        xs: Rows<'_>,
        panels: Range<usize>,
    ) -> Result<()> {
        let depth = self.depth();
        let pairs = &self.pairs[panels.start * depth..panels.end * depth];
        for first in (0..depth).step_by(HOT) {
            let xs = Rows { data: &xs.data[2 * first..], ..xs };
            for (index, panel) in pairs.chunks(depth).enumerate() {
                let hot = &panel[first..depth.min(first + HOT)];
                dots::add(&mut sums[index..], stride, xs, hot)?;
            }
        }
        Ok(())
    }
}

impl Debug for Panels {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Panels({} x {})", self.outputs, self.inputs)
    }
}

fn pack_panel(panel: &mut [Pairs], rows: &[bf16], source: Source<'_>) {
    for (output, row) in rows.chunks(source.stride).enumerate() {
        let pairs = panel.iter_mut().zip(row[..source.cols].chunks(2));
        pairs.for_each(|(to, pair)| to.0[output] = joined(pair[0], pair.get(1)));
    }
}

fn joined(lower: bf16, upper: Option<&bf16>) -> u32 {
    let upper = upper.map_or(0, |x| x.to_bits());
    u32::from(lower.to_bits()) | u32::from(upper) << 16
}

/// Pairs of two rows, or of one and zeros.
fn join(pairs: &mut [u32], lower: &[bf16], upper: Option<&[bf16]>) {
    match upper {
        Some(upper) => {
            let rows = lower.iter().zip(upper);
            pairs.iter_mut().zip(rows).for_each(|(pair, (&l, u))| *pair = joined(l, Some(u)));
        }
        None => pairs.iter_mut().zip(lower).for_each(|(pair, &l)| *pair = joined(l, None)),
    }
}
