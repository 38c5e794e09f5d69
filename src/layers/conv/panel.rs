//! The innermost product of a convolution: a run of windows with a panel of weights, sums in registers.
#![allow(unsafe_code)] // `Group::add` reads without a check for each number: it has sliced what it reads

use std::array::from_fn;
use std::ops::Range;

use candle_core::{Result, bail};
use pulp::{Simd, WithSimd};

use crate::layers::simd::{dispatch, lanes, multiply_add};

/// Bytes of weights that are used again and again while they stay in a core's first-level cache.
const HOT_WEIGHTS: usize = 24 * 1024;

/// Outputs of a kernel that are computed at once, of so many: a narrow panel for a few, where the machine's vectors
/// are no wider, and a broad one of two wide vectors, which share what is read of a window.
pub(super) fn width(outputs: usize) -> usize {
    const BROAD: usize = 32;
    const WIDE: usize = 16;
    const NARROW: usize = 8;
    match lanes() {
        WIDE if outputs.is_multiple_of(BROAD) => BROAD,
        ..=NARROW if outputs <= NARROW => NARROW,
        _ => WIDE,
    }
}

/// Windows and weights of one frame of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taps<'a> {
    /// Input rows, `row` numbers each. Window `i` is `depth` numbers of each of `rows` rows in a row,
    /// from number `i * stride` on.
    pub(super) input: &'a [f32],
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) stride: usize,
    /// `(panels, rows, depth, width)`.
    pub(super) weight: &'a [f32],
    pub(super) width: usize,
}

impl Taps<'_> {
    /// Adds the products of the first windows to `sums`: a window's are `panels * width` numbers, those
    /// of the next `sum_stride` numbers further, which is a number of panels.
    pub(super) fn add_to(self, sums: &mut [f32], sum_stride: usize, windows: usize) -> Result<()> {
        let Self { row, rows, depth, stride, width, .. } = self;
        let panels = self.weight.len() / (rows * depth * width).max(1);
        let before = windows.saturating_sub(1);
        let read = rows.saturating_sub(1) * row + before * stride + depth;
        let written = before * sum_stride + panels * width;
        if written > sums.len() || read > self.input.len() || !sum_stride.is_multiple_of(width) {
            let (input, sums) = (self.input.len(), sums.len());
            bail!(
                "{windows} windows of {read} and {written} numbers do not fit {input} and {sums}"
            );
        }
        dispatch(Adding { taps: self, sums, sum_stride, windows, panels });
        Ok(())
    }
}

/// [`Taps::add_to`] for each instruction set.
struct Adding<'a> {
    taps: Taps<'a>,
    sums: &'a mut [f32],
    sum_stride: usize,
    windows: usize,
    panels: usize,
}

impl WithSimd for Adding<'_> {
    type Output = ();

    /// As many windows at once as keep the multipliers busy and all their sums in registers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match (self.taps.width / S::F32_LANES, S::REGISTER_COUNT) {
            (4, 32) => self.run::<S, 6, 4>(simd),
            (2, 32) => self.run::<S, 12, 2>(simd),
            (2, _) => self.run::<S, 6, 2>(simd),
            (1, _) => self.run::<S, 12, 1>(simd),
            _ => self.run::<S, 3, 2>(simd),
        }
    }
}

impl Adding<'_> {
    /// `P` windows and `V` vectors of a panel at once.
    #[inline(always)]
    fn run<S: Simd, const P: usize, const V: usize>(self, simd: S) {
        let Taps { rows, depth, width, .. } = self.taps;
        let (weight, _) = S::as_simd_f32s(self.taps.weight);
        let (sums, _) = S::as_mut_simd_f32s(self.sums);
        let vectors = width / S::F32_LANES;
        let chunk = (HOT_WEIGHTS / (depth * width * size_of::<f32>())).clamp(1, rows);
        for panel in 0..self.panels {
            for first in (0..vectors).step_by(V) {
                for row in (0..rows).step_by(chunk) {
                    let group = Group {
                        simd,
                        taps: self.taps,
                        rows: row..rows.min(row + chunk),
                        weight: &weight[panel * rows * depth * vectors + first..],
                        vectors,
                        sum_stride: self.sum_stride / S::F32_LANES,
                    };
                    let column = panel * vectors + first;
                    let whole = self.windows / P * P;
                    for window in (0..whole).step_by(P) {
                        group.add::<P, V>(window, &mut sums[window * group.sum_stride + column..]);
                    }
                    for window in whole..self.windows {
                        group.add::<1, V>(window, &mut sums[window * group.sum_stride + column..]);
                    }
                }
            }
        }
    }
}

/// Some rows of a kernel, and some outputs of it.
struct Group<'a, S: Simd> {
    simd: S,
    taps: Taps<'a>,
    rows: Range<usize>,
    /// From the first output on; `vectors` for each number of a window.
    weight: &'a [S::f32s],
    vectors: usize,
    /// From one window's sums to the next one's, in vectors.
    sum_stride: usize,
}

impl<S: Simd> Group<'_, S> {
    /// Adds the products of `P` windows from `window` on; `sum` starts at the first one's.
    #[inline(always)]
    fn add<const P: usize, const V: usize>(&self, window: usize, sum: &mut [S::f32s]) {
        let Taps { row, depth, stride, input, .. } = self.taps;
        let mut sums: [[S::f32s; V]; P] = from_fn(|p| from_fn(|v| sum[p * self.sum_stride + v]));
        for r in self.rows.clone() {
            let input = &input[r * row + window * stride..][..(P - 1) * stride + depth];
            let last = (depth - 1) * self.vectors + V;
            let weight = &self.weight[r * depth * self.vectors..][..last];
            for j in 0..depth {
                // SAFETY: `j < depth`, `v < V` and `p < P`: both slices end with the last of these.
                let w: [S::f32s; V] =
                    from_fn(|v| unsafe { *weight.get_unchecked(j * self.vectors + v) });
                for (p, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: as above.
                    let x = self.simd.splat_f32s(unsafe { *input.get_unchecked(p * stride + j) });
                    for (sum, &w) in sums.iter_mut().zip(&w) {
                        *sum = multiply_add(self.simd, x, w, *sum);
                    }
                }
            }
        }
        for (p, sums) in sums.iter().enumerate() {
            sum[p * self.sum_stride..][..V].copy_from_slice(sums);
        }
    }
}
