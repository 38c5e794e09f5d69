//! Attention in f32 on a CPU, one tile of scores at a time (online softmax, arXiv 1805.02867).
//!
//! A task takes a run of queries of one head through all keys. Keys and values are read in place,
//! from as many pieces as there are; the heads' results are put beside each other at the end.

use candle_core::{Device, Result, Tensor};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Kv;
use crate::layers::matmul::{Into, Matrix, multiply};
use crate::layers::simd::{dispatch, exp, with_slice};

/// Queries of a task at most, and keys of a tile: the more queries, the fewer times keys are
/// brought into gemm's order; scores of a tile still fit a core's second-level cache.
const QUERIES: usize = 1024;
const KEYS: usize = 256;
/// Tasks that a thread should find, so that none waits long for the last one.
const TASKS_PER_THREAD: usize = 4;

pub(super) fn attend(q: &Tensor, keys: &[Kv], last_count: usize) -> Result<Tensor> {
    let (batch, n, heads, d) = q.dims4()?;
    let q = q.contiguous()?;
    let keys = keys
        .iter()
        .filter(|kv| kv.k.dims()[1] > 0)
        .map(|kv| Ok(Kv { k: kv.k.contiguous()?, v: kv.v.contiguous()? }))
        .collect::<Result<Vec<_>>>()?;
    let mut out = vec![0f32; batch * heads * n * d];
    let sizes = Sizes { n, heads, d, last_bias: (last_count as f32).ln() };
    with_slice(&q, |q| with_pieces(&keys, &[], &mut |k| sizes.run(q, k, &mut out)))?;
    Tensor::from_vec(out, (batch, heads, n, d), &Device::Cpu)?.transpose(1, 2)?.contiguous()
}

/// Keys and values of one piece, `batch` runs of `tokens` rows of `heads * d`.
#[derive(Clone, Copy)]
struct Piece<'a> {
    tokens: usize,
    k: &'a [f32],
    v: &'a [f32],
}

/// Borrows every piece's storage, one inside the other, then calls `f` with all of them.
fn with_pieces(
    keys: &[Kv],
    held: &[Piece<'_>],
    f: &mut dyn FnMut(&[Piece<'_>]) -> Result<()>,
) -> Result<()> {
    let Some((Kv { k, v }, rest)) = keys.split_first() else { return f(held) };
    let tokens = k.dim(1)?;
    with_slice(k, |k| {
        with_slice(v, |v| {
            let held: Vec<_> = held.iter().copied().chain([Piece { tokens, k, v }]).collect();
            with_pieces(rest, &held, f)
        })
    })
}

struct Sizes {
    n: usize,
    heads: usize,
    d: usize,
    last_bias: f32,
}

impl Sizes {
    fn run(&self, q: &[f32], keys: &[Piece<'_>], out: &mut [f32]) -> Result<()> {
        let (run, row) = (self.queries() * self.d, self.heads * self.d);
        let heads = out.chunks_mut(self.n * self.d).enumerate();
        let tasks = heads.flat_map(|(head, out)| {
            out.chunks_mut(run).enumerate().map(move |(chunk, out)| (head, chunk, out))
        });
        let scratch = || Scratch::new(self.queries(), self.d);
        tasks.collect::<Vec<_>>().into_par_iter().try_for_each_init(
            scratch,
            |scratch, (head, chunk, out)| {
                let (batch, head) = (head / self.heads, head % self.heads);
                let first = batch * self.n + chunk * self.queries();
                scratch.start(self, &q[first * row + head * self.d..], out.len() / self.d);
                let keys: Vec<_> = keys.iter().map(|piece| piece.of_batch(batch, row)).collect();
                scratch.attend(self, head, &keys)?;
                scratch.finish(out);
                Ok(())
            },
        )
    }

    /// Queries of a task: few enough that every thread finds several tasks.
    fn queries(&self) -> usize {
        let tasks = rayon::current_num_threads() * TASKS_PER_THREAD;
        let chunks = tasks.div_ceil(self.heads);
        self.n.div_ceil(chunks).clamp(1, QUERIES)
    }
}

impl Piece<'_> {
    fn of_batch(&self, batch: usize, row: usize) -> Self {
        let range = batch * self.tokens * row..(batch + 1) * self.tokens * row;
        Self { tokens: self.tokens, k: &self.k[range.clone()], v: &self.v[range] }
    }
}

/// What a task keeps for its queries and one head.
struct Scratch {
    rows: usize,
    q: Vec<f32>,      // (rows, d), scaled
    scores: Vec<f32>, // (rows, KEYS)
    sum: Vec<f32>,    // (rows, d): of exp(score - max) * v
    max: Vec<f32>,
    total: Vec<f32>, // of exp(score - max)
}

impl Scratch {
    fn new(rows: usize, d: usize) -> Self {
        Self {
            rows: 0,
            q: vec![0.0; rows * d],
            scores: vec![0.0; rows * KEYS],
            sum: vec![0.0; rows * d],
            max: vec![0.0; rows],
            total: vec![0.0; rows],
        }
    }

    /// For `rows` queries of a head; `q` starts at the first one.
    fn start(&mut self, sizes: &Sizes, q: &[f32], rows: usize) {
        let (d, row) = (sizes.d, sizes.heads * sizes.d);
        let scale = 1.0 / (d as f32).sqrt();
        self.rows = rows;
        for (to, from) in self.q.chunks_mut(d).zip(q.chunks(row)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
        self.sum.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
    }

    fn attend(&mut self, sizes: &Sizes, head: usize, keys: &[Piece<'_>]) -> Result<()> {
        let (d, row) = (sizes.d, sizes.heads * sizes.d);
        for (index, piece) in keys.iter().enumerate() {
            for start in (0..piece.tokens).step_by(KEYS) {
                let tokens = KEYS.min(piece.tokens - start);
                let at = start * row + head * d;
                let q = Matrix::new(&self.q, self.rows, d, d)?;
                let k = Matrix::new(&piece.k[at..], tokens, d, row)?;
                multiply(&mut self.scores, KEYS, Into::Replace, q, k.transposed())?;
                if index + 1 == keys.len() && start + tokens == piece.tokens {
                    self.add_to_column(tokens - 1, sizes.last_bias);
                }
                dispatch(Weigh { scratch: self, tokens, d });
                let p = Matrix::new(&self.scores, self.rows, tokens, KEYS)?;
                let v = Matrix::new(&piece.v[at..], tokens, d, row)?;
                multiply(&mut self.sum, d, Into::Add, p, v)?;
            }
        }
        Ok(())
    }

    fn add_to_column(&mut self, column: usize, bias: f32) {
        let rows = self.scores.chunks_mut(KEYS).take(self.rows);
        rows.for_each(|scores| scores[column] += bias);
    }

    /// Scores to weights `exp(score - max)`; what was summed so far follows a new maximum.
    #[inline(always)]
    fn weigh(&mut self, tokens: usize, d: usize) {
        for row in 0..self.rows {
            let scores = &mut self.scores[row * KEYS..][..tokens];
            let old = self.max[row];
            let max = largest(scores).max(old);
            scores.iter_mut().for_each(|s| *s = exp(*s - max));
            let correction = if old == max { 1.0 } else { exp(old - max) };
            self.max[row] = max;
            self.total[row] = self.total[row] * correction + total(scores);
            if correction != 1.0 {
                self.sum[row * d..][..d].iter_mut().for_each(|o| *o *= correction);
            }
        }
    }

    fn finish(&self, out: &mut [f32]) {
        let d = out.len() / self.rows;
        for ((out, sum), total) in out.chunks_mut(d).zip(self.sum.chunks(d)).zip(&self.total) {
            out.iter_mut().zip(sum).for_each(|(out, sum)| *out = sum / total);
        }
    }
}

/// [`Scratch::weigh`] for each instruction set; closures are not sure to be inlined.
struct Weigh<'a> {
    scratch: &'a mut Scratch,
    tokens: usize,
    d: usize,
}

impl WithSimd for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        self.scratch.weigh(self.tokens, self.d);
    }
}

/// Independent partial results, so that reductions vectorise.
const LANES: usize = 16;

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn total(values: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value);
    }
    lanes.iter().chain(rest).sum()
}
