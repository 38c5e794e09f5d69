//! The two matrix products of a tile: in f32, or by dot products of bf16.

use candle_core::Result;
use half::bf16;

use super::tiled::KEYS;
use crate::layers::dots::{self, WIDTH};
use crate::layers::matmul::{Into, Matrix, multiply};
use crate::layers::panels::{Panels, Source};
use crate::layers::real::{Real, round, widen};

/// Queries, keys or values of a head, `stride` numbers from one token to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a, T> {
    /// From the first one on.
    pub(super) data: &'a [T],
    pub(super) count: usize,
    pub(super) stride: usize,
}

impl<'a, T> Rows<'a, T> {
    /// `count` of them from `start` on.
    pub(super) fn narrow(&self, start: usize, count: usize) -> Self {
        Self { data: &self.data[start * self.stride..], count, ..*self }
    }
}

/// What multiplies, for some queries of a head `d` wide.
pub(super) trait Products<T> {
    fn new(d: usize) -> Self;
    /// From now on for these queries.
    fn start(&mut self, q: Rows<'_, T>);
    /// `q kᵀ / sqrt(d)` to rows of [`KEYS`] numbers.
    fn scores(&mut self, scores: &mut [f32], k: Rows<'_, T>) -> Result<()>;
    /// Adds the product of rows of [`KEYS`] weights with the values to rows of `stride` sums.
    fn add(&mut self, sums: &mut [f32], stride: usize, p: &[f32], v: Rows<'_, T>) -> Result<()>;
}

/// In f32: other numbers are widened.
pub(super) struct Wide {
    d: usize,
    rows: usize,
    q: Vec<f32>,    // (rows, d), scaled
    tile: Vec<f32>, // (keys, d), where they are widened
}

impl<T: Real> Products<T> for Wide {
    fn new(d: usize) -> Self {
        Self { d, rows: 0, q: Vec::new(), tile: Vec::new() }
    }

    fn start(&mut self, q: Rows<'_, T>) {
        let scale = 1.0 / (self.d as f32).sqrt();
        self.rows = q.count;
        self.q.resize(q.count * self.d, 0.0);
        for (to, from) in self.q.chunks_mut(self.d).zip(q.data.chunks(q.stride)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.wide() * scale);
        }
    }

    fn scores(&mut self, scores: &mut [f32], k: Rows<'_, T>) -> Result<()> {
        let q = Matrix::new(&self.q, self.rows, self.d, self.d)?;
        let k = matrix(k, self.d, &mut self.tile)?;
        multiply(scores, KEYS, Into::Replace, q, k.transposed())
    }

    fn add(&mut self, sums: &mut [f32], stride: usize, p: &[f32], v: Rows<'_, T>) -> Result<()> {
        let p = Matrix::new(p, self.rows, v.count, KEYS)?;
        multiply(sums, stride, Into::Add, p, matrix(v, self.d, &mut self.tile)?)
    }
}

/// The rows where they are, or a wide copy of them.
fn matrix<'a, T: Real>(rows: Rows<'a, T>, d: usize, copy: &'a mut Vec<f32>) -> Result<Matrix<'a>> {
    if let Some(data) = T::as_f32(rows.data) {
        return Matrix::new(data, rows.count, d, rows.stride);
    }
    copy.resize(rows.count * d, 0.0);
    let tokens = copy.chunks_mut(d).zip(rows.data.chunks(rows.stride));
    tokens.for_each(|(to, from)| widen(&from[..d], to));
    Matrix::new(copy, rows.count, d, d)
}

/// In bf16, as the machine's own dot products have it.
pub(super) struct Dots {
    d: usize,
    rows: usize,
    q: Vec<bf16>, // (rows, d), d even
    p: Vec<bf16>, // (rows, KEYS)
    tile: Panels,
}

impl Products<bf16> for Dots {
    fn new(d: usize) -> Self {
        Self { d, rows: 0, q: Vec::new(), p: Vec::new(), tile: Panels::default() }
    }

    fn start(&mut self, q: Rows<'_, bf16>) {
        let stride = self.d.next_multiple_of(2);
        self.rows = q.count;
        self.q.resize(q.count * stride, bf16::ZERO);
        for (to, from) in self.q.chunks_mut(stride).zip(q.data.chunks(q.stride)) {
            to[..self.d].copy_from_slice(&from[..self.d]);
        }
    }

    fn scores(&mut self, scores: &mut [f32], k: Rows<'_, bf16>) -> Result<()> {
        self.tile.pack_rows(source(k, self.d));
        let scores = &mut scores[..self.rows * KEYS];
        scores.fill(0.0);
        let (stride, scale) = (self.d.next_multiple_of(2), 1.0 / (self.d as f32).sqrt());
        let q = dots::Rows { data: &self.q, stride, count: self.rows };
        let (sums, _) = scores.as_chunks_mut::<WIDTH>();
        self.tile.add_to(sums, KEYS / WIDTH, q, 0..self.tile.count())?;
        scores.iter_mut().for_each(|score| *score *= scale);
        Ok(())
    }

    fn add(&mut self, sums: &mut [f32], stride: usize, p: &[f32], v: Rows<'_, bf16>) -> Result<()> {
        self.tile.pack_columns(source(v, self.d));
        self.p.resize(self.rows * KEYS, bf16::ZERO);
        for (to, from) in self.p.chunks_mut(KEYS).zip(p.chunks(KEYS)) {
            round(&from[..v.count], &mut to[..v.count]);
            to[v.count..].fill(bf16::ZERO); // the last pair may have one key
        }
        let p = dots::Rows { data: &self.p, stride: KEYS, count: self.rows };
        let (sums, _) = sums.as_chunks_mut::<WIDTH>();
        self.tile.add_to(sums, stride / WIDTH, p, 0..self.tile.count())
    }
}

fn source(rows: Rows<'_, bf16>, cols: usize) -> Source<'_> {
    Source { data: rows.data, rows: rows.count, cols, stride: rows.stride }
}
