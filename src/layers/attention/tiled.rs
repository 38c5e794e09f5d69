//! Attention on a CPU, one tile of scores at a time (online softmax, arXiv 1805.02867); scores and sums
//! are in f32.
//!
//! A task takes a run of queries of one head through all keys. Keys and values are read in place,
//! from as many pieces as there are; the heads' results are put beside each other at the end.

use candle_core::{Device, Result, Tensor};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Kv;
use super::products::{Products, Rows};
use crate::layers::dots::WIDTH;
use crate::layers::real::Real;
use crate::layers::simd::{dispatch, exp, with_slice};

/// Queries of a task at most, and keys of a tile: the more queries, the fewer times keys are
/// brought into gemm's order; scores of a tile still fit a core's second-level cache.
const QUERIES: usize = 1024;
pub(super) const KEYS: usize = 256;
/// Tasks that a thread should find, so that none waits long for the last one.
const TASKS_PER_THREAD: usize = 4;

pub(super) fn attend<T: Real, P: Products<T>>(
    q: &Tensor,
    keys: &[Kv],
    last_count: usize,
) -> Result<Tensor> {
    let (batch, n, heads, d) = q.dims4()?;
    let q = q.contiguous()?;
    let keys = keys
        .iter()
        .filter(|kv| kv.k.dims()[1] > 0)
        .map(|kv| Ok(Kv { k: kv.k.contiguous()?, v: kv.v.contiguous()? }))
        .collect::<Result<Vec<_>>>()?;
    let mut out = vec![T::zero(); batch * heads * n * d];
    let sizes = Sizes { n, heads, d, last_bias: (last_count as f32).ln() };
    with_slice(&q, |q| with_pieces(&keys, &[], &mut |k| sizes.run::<T, P>(q, k, &mut out)))?;
    Tensor::from_vec(out, (batch, heads, n, d), &Device::Cpu)?.transpose(1, 2)?.contiguous()
}

/// Keys and values of one piece, `batch` runs of `tokens` rows of `heads * d`.
#[derive(Clone, Copy)]
struct Piece<'a, T> {
    tokens: usize,
    k: &'a [T],
    v: &'a [T],
}

/// Borrows every piece's storage, one inside the other, then calls `f` with all of them.
fn with_pieces<T: Real>(
    keys: &[Kv],
    held: &[Piece<'_, T>],
    f: &mut dyn FnMut(&[Piece<'_, T>]) -> Result<()>,
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
    fn run<T: Real, P: Products<T>>(
        &self,
        q: &[T],
        keys: &[Piece<'_, T>],
        out: &mut [T],
    ) -> Result<()> {
        let (run, row) = (self.queries() * self.d, self.heads * self.d);
        let heads = out.chunks_mut(self.n * self.d).enumerate();
        let tasks = heads.flat_map(|(head, out)| {
            out.chunks_mut(run).enumerate().map(move |(chunk, out)| (head, chunk, out))
        });
        let scratch = || Scratch::<P>::new(self.queries(), self.d);
        tasks.collect::<Vec<_>>().into_par_iter().try_for_each_init(
            scratch,
            |scratch, (head, chunk, out)| {
                let (batch, head) = (head / self.heads, head % self.heads);
                let first = batch * self.n + chunk * self.queries();
                let q = &q[first * row + head * self.d..];
                scratch.start(Rows { data: q, count: out.len() / self.d, stride: row });
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

impl<T> Piece<'_, T> {
    fn of_batch(&self, batch: usize, row: usize) -> Self {
        let range = batch * self.tokens * row..(batch + 1) * self.tokens * row;
        Self { tokens: self.tokens, k: &self.k[range.clone()], v: &self.v[range] }
    }
}

/// What a task keeps for its queries and one head.
struct Scratch<P> {
    products: P,
    rows: usize,
    d: usize,
    stride: usize,    // of `sum`: whole vectors
    scores: Vec<f32>, // (rows, KEYS)
    sum: Vec<f32>,    // (rows, stride), d of them: of exp(score - max) * v
    max: Vec<f32>,
    total: Vec<f32>, // of exp(score - max)
}

impl<P> Scratch<P> {
    fn new<T: Real>(rows: usize, d: usize) -> Self
    where
        P: Products<T>,
    {
        let stride = d.next_multiple_of(WIDTH);
        Self {
            products: P::new(d),
            rows: 0,
            d,
            stride,
            scores: vec![0.0; rows * KEYS],
            sum: vec![0.0; rows * stride],
            max: vec![0.0; rows],
            total: vec![0.0; rows],
        }
    }

    /// For some queries of a head.
    fn start<T: Real>(&mut self, q: Rows<'_, T>)
    where
        P: Products<T>,
    {
        self.rows = q.count;
        self.products.start(q);
        self.sum.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
    }

    fn attend<T: Real>(&mut self, sizes: &Sizes, head: usize, keys: &[Piece<'_, T>]) -> Result<()>
    where
        P: Products<T>,
    {
        let (d, row) = (sizes.d, sizes.heads * sizes.d);
        for (index, piece) in keys.iter().enumerate() {
            for start in (0..piece.tokens).step_by(KEYS) {
                let tokens = KEYS.min(piece.tokens - start);
                let at = start * row + head * d;
                let k = Rows { data: &piece.k[at..], count: tokens, stride: row };
                let v = Rows { data: &piece.v[at..], ..k };
                self.products.scores(&mut self.scores, k)?;
                if index + 1 == keys.len() && start + tokens == piece.tokens {
                    self.add_to_column(tokens - 1, sizes.last_bias);
                }
                dispatch(Weigh { scratch: self, tokens });
                self.products.add(&mut self.sum, self.stride, &self.scores, v)?;
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
    fn weigh(&mut self, tokens: usize) {
        for row in 0..self.rows {
            let scores = &mut self.scores[row * KEYS..][..tokens];
            let old = self.max[row];
            let max = largest(scores).max(old);
            scores.iter_mut().for_each(|s| *s = exp(*s - max));
            let correction = if old == max { 1.0 } else { exp(old - max) };
            self.max[row] = max;
            self.total[row] = self.total[row] * correction + total(scores);
            if correction != 1.0 {
                let sum = &mut self.sum[row * self.stride..][..self.d];
                sum.iter_mut().for_each(|o| *o *= correction);
            }
        }
    }

    fn finish<T: Real>(&self, out: &mut [T]) {
        let sums = self.sum.chunks(self.stride).zip(&self.total);
        for (out, (sum, total)) in out.chunks_mut(self.d).zip(sums) {
            out.iter_mut().zip(sum).for_each(|(out, sum)| *out = T::nearest(sum / total));
        }
    }
}

/// [`Scratch::weigh`] for each instruction set; closures are not sure to be inlined.
struct Weigh<'a, P> {
    scratch: &'a mut Scratch<P>,
    tokens: usize,
}

impl<P> WithSimd for Weigh<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        self.scratch.weigh(self.tokens);
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
