//! Attention on a CPU, one tile of scores at a time (online softmax, arXiv 1805.02867); scores and sums
//! are in f32.
//!
//! A task takes a run of queries of one head through the keys that there are so far. Keys and values are
//! read in place, from as many pieces as there are; the heads' results are put beside each other at the
//! end.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Kv;
use super::products::{Dots, Products, Rows, Wide};
use crate::layers::dots::{self, WIDTH};
use crate::layers::real::Real;
use crate::layers::simd::{dispatch, exp, is_host, with_slice, with_slices};

/// Queries of a task at most, and keys of a tile: the more queries, the fewer times keys are
/// brought into gemm's order; scores of a tile still fit a core's second-level cache.
const QUERIES: usize = 1024;
pub(super) const KEYS: usize = 256;
/// Tasks that a thread should find, so that none waits long for the last one.
const TASKS_PER_THREAD: usize = 4;
/// Rows of the result that a task finishes, at least.
const ROWS: usize = 64;

/// Queries and what they have come to so far: sums of `exp(score - max) * v`, by head.
#[derive(Debug)]
pub(super) struct Partial {
    q: Tensor,
    sizes: Sizes,
    sum: Vec<f32>, // (batch, heads, n, stride), d of them
    max: Vec<f32>,
    total: Vec<f32>, // of exp(score - max)
}

impl Partial {
    pub(super) fn new(q: &Tensor) -> Result<Self> {
        let (batch, n, heads, d) = q.dims4()?;
        let (rows, stride) = (batch * heads * n, d.next_multiple_of(WIDTH));
        Ok(Self {
            q: q.contiguous()?,
            sizes: Sizes { n, heads, d, stride },
            sum: vec![0.0; rows * stride],
            max: vec![f32::NEG_INFINITY; rows],
            total: vec![0.0; rows],
        })
    }

    /// Whether it can be computed here.
    pub(super) fn is_for(q: &Tensor, keys: &[Kv]) -> bool {
        let are = |dtype| {
            let is_known = |kv: &Kv| is_host(&kv.k, dtype) && is_host(&kv.v, dtype);
            is_host(q, dtype) && keys.iter().all(is_known)
        };
        are(DType::F32) || are(DType::BF16)
    }

    /// Attends to these keys, too; the very last one stands for `last_count` equal ones.
    pub(super) fn add(&mut self, keys: &[Kv], last_count: usize) -> Result<()> {
        match self.q.dtype() {
            DType::BF16 if dots::are_fast() => self.add_as::<bf16, Dots>(keys, last_count),
            DType::BF16 => self.add_as::<bf16, Wide>(keys, last_count),
            _ => self.add_as::<f32, Wide>(keys, last_count),
        }
    }

    /// The same, multiplied in such a way.
    pub(super) fn add_as<T: Real, P: Products<T>>(
        &mut self,
        keys: &[Kv],
        last_count: usize,
    ) -> Result<()> {
        let keys: Vec<_> = keys.iter().filter(|kv| kv.k.dims()[1] > 0).collect();
        let (sizes, q, last_bias) = (self.sizes, self.q.clone(), (last_count as f32).ln());
        with_slice(&q, |q| {
            with_pieces(&keys, |keys| sizes.run::<T, P>(q, keys, last_bias, self.tasks()))
        })
    }

    /// A run of queries of one head each.
    fn tasks(&mut self) -> Vec<Task<'_>> {
        let Sizes { n, stride, .. } = self.sizes;
        let run = self.sizes.queries();
        let heads = self.sum.chunks_mut(n * stride).zip(self.max.chunks_mut(n));
        let heads = heads.zip(self.total.chunks_mut(n)).enumerate();
        let tasks = heads.flat_map(|(head, ((sum, max), total))| {
            let runs = sum.chunks_mut(run * stride).zip(max.chunks_mut(run));
            let runs = runs.zip(total.chunks_mut(run)).enumerate();
            runs.map(move |(index, ((sum, max), total))| Task {
                head,
                first: index * run,
                sums: Sums { stride, sum, max, total },
            })
        });
        tasks.collect()
    }

    /// `(batch, n, heads, d)`, in the dtype of the queries.
    pub(super) fn finish(self) -> Result<Tensor> {
        match self.q.dtype() {
            DType::BF16 => self.finish_as::<bf16>(),
            _ => self.finish_as::<f32>(),
        }
    }

    fn finish_as<T: Real>(self) -> Result<Tensor> {
        let Sizes { n, heads, d, stride } = self.sizes;
        let (batch, row) = (self.max.len() / (heads * n).max(1), heads * d);
        let mut out = vec![T::zero(); batch * n * row];
        out.par_chunks_mut(row).with_min_len(ROWS).enumerate().for_each(|(token, out)| {
            let first = token / n * heads * n + token % n;
            for (head, out) in out.chunks_mut(d).enumerate() {
                let at = first + head * n;
                let (sum, total) = (&self.sum[at * stride..], self.total[at]);
                out.iter_mut().zip(sum).for_each(|(out, sum)| *out = T::nearest(sum / total));
            }
        });
        Tensor::from_vec(out, (batch, n, heads, d), &Device::Cpu)
    }
}

/// Keys and values of one piece, `batch` runs of `tokens` rows of `heads * d`.
#[derive(Clone, Copy)]
struct Piece<'a, T> {
    tokens: usize,
    k: &'a [T],
    v: &'a [T],
}

/// Lends the storage of all pieces to `f`.
fn with_pieces<T: Real>(keys: &[&Kv], f: impl FnOnce(&[Piece<'_, T>]) -> Result<()>) -> Result<()> {
    let tensors: Vec<_> = keys.iter().flat_map(|kv| [kv.k.clone(), kv.v.clone()]).collect();
    with_slices(&tensors, |slices| {
        let tokens = keys.iter().map(|kv| kv.k.dims()[1]);
        let pairs = slices.as_chunks::<2>().0.iter().zip(tokens);
        f(&pairs.map(|(&[k, v], tokens)| Piece { tokens, k, v }).collect::<Vec<_>>())
    })
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    n: usize,
    heads: usize,
    d: usize,
    stride: usize, // whole vectors
}

/// Some queries of one head, and their sums.
struct Task<'a> {
    /// Of all batches.
    head: usize,
    first: usize,
    sums: Sums<'a>,
}

impl Sizes {
    fn run<T: Real, P: Products<T>>(
        &self,
        q: &[T],
        keys: &[Piece<'_, T>],
        last_bias: f32,
        tasks: Vec<Task<'_>>,
    ) -> Result<()> {
        let row = self.heads * self.d;
        let scratch = || Scratch::<P>::new(self.queries(), self.d);
        tasks.into_par_iter().try_for_each_init(scratch, |scratch, task| {
            let (batch, head) = (task.head / self.heads, task.head % self.heads);
            let q = &q[(batch * self.n + task.first) * row + head * self.d..];
            scratch.products.start(Rows { data: q, count: task.sums.max.len(), stride: row });
            let keys: Vec<_> = keys.iter().map(|piece| piece.of_head(batch, head, self)).collect();
            scratch.attend(task.sums, &keys, last_bias)
        })
    }

    /// Queries of a task: few enough that every thread finds several tasks.
    fn queries(&self) -> usize {
        let tasks = rayon::current_num_threads() * TASKS_PER_THREAD;
        let chunks = tasks.div_ceil(self.heads);
        self.n.div_ceil(chunks).clamp(1, QUERIES)
    }
}

impl<'a, T> Piece<'a, T> {
    /// Keys and values of one head.
    fn of_head(&self, batch: usize, head: usize, sizes: &Sizes) -> [Rows<'a, T>; 2] {
        let row = sizes.heads * sizes.d;
        let range = batch * self.tokens * row + head * sizes.d..(batch + 1) * self.tokens * row;
        let rows =
            |data: &'a [T]| Rows { data: &data[range.clone()], count: self.tokens, stride: row };
        [rows(self.k), rows(self.v)]
    }
}

/// What queries of one head have come to.
struct Sums<'a> {
    stride: usize,
    sum: &'a mut [f32],
    max: &'a mut [f32],
    total: &'a mut [f32],
}

/// What a thread needs for a task.
struct Scratch<P> {
    products: P,
    d: usize,
    scores: Vec<f32>, // (rows, KEYS)
}

impl<P> Scratch<P> {
    fn new<T: Real>(rows: usize, d: usize) -> Self
    where
        P: Products<T>,
    {
        Self { products: P::new(d), d, scores: vec![0.0; rows * KEYS] }
    }

    fn attend<T: Real>(
        &mut self,
        mut sums: Sums<'_>,
        keys: &[[Rows<'_, T>; 2]],
        last_bias: f32,
    ) -> Result<()>
    where
        P: Products<T>,
    {
        for (index, [k, v]) in keys.iter().enumerate() {
            for start in (0..k.count).step_by(KEYS) {
                let tokens = KEYS.min(k.count - start);
                self.products.scores(&mut self.scores, k.narrow(start, tokens))?;
                if index + 1 == keys.len() && start + tokens == k.count {
                    self.add_to_column(tokens - 1, last_bias);
                }
                dispatch(Weigh { scores: &mut self.scores, sums: &mut sums, d: self.d, tokens });
                self.products.add(sums.sum, sums.stride, &self.scores, v.narrow(start, tokens))?;
            }
        }
        Ok(())
    }

    fn add_to_column(&mut self, column: usize, bias: f32) {
        self.scores.chunks_mut(KEYS).for_each(|scores| scores[column] += bias);
    }
}

/// Scores to weights `exp(score - max)`; what was summed so far follows a new maximum.
struct Weigh<'a, 'b> {
    scores: &'a mut [f32],
    sums: &'a mut Sums<'b>,
    d: usize,
    tokens: usize,
}

impl WithSimd for Weigh<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { scores, sums, d, tokens } = self;
        for (row, scores) in scores.chunks_mut(KEYS).take(sums.max.len()).enumerate() {
            let scores = &mut scores[..tokens];
            let old = sums.max[row];
            let max = largest(scores).max(old);
            scores.iter_mut().for_each(|s| *s = exp(*s - max));
            let correction = if old == max { 1.0 } else { exp(old - max) };
            sums.max[row] = max;
            sums.total[row] = sums.total[row] * correction + total(scores);
            if correction != 1.0 {
                let sum = &mut sums.sum[row * sums.stride..][..d];
                sum.iter_mut().for_each(|o| *o *= correction);
            }
        }
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
