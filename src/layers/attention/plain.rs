//! Attention from stock candle operations: the specification.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::Kv;

/// Queries that share one matrix of scores: what bounds the memory.
const QUERIES: usize = 512;

pub(super) fn attend(q: &Tensor, keys: &[Kv], last_count: usize) -> Result<Tensor> {
    let k = concatenate(keys.iter().map(|kv| &kv.k))?.transpose(2, 3)?.contiguous()?; // (b, heads, d, m)
    let v = concatenate(keys.iter().map(|kv| &kv.v))?.contiguous()?; // (b, heads, m, d)
    let bias = last_bias(k.dim(D::Minus1)?, last_count, q)?;
    let n = q.dim(1)?;
    let parts = (0..n).step_by(QUERIES).map(|start| {
        let q = q.narrow(1, start, QUERIES.min(n - start))?.transpose(1, 2)?.contiguous()?;
        attend_part(&q, &k, &v, &bias)?.transpose(1, 2)
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)
}

fn attend_part(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
    let scores = (q.matmul(k)?.to_dtype(DType::F32)? * scale)?.broadcast_add(bias)?; // softmax in f32
    softmax_last_dim(&scores)?.to_dtype(v.dtype())?.matmul(v)
}

/// `(b, tokens, heads, d)` pieces to one `(b, heads, tokens, d)`.
fn concatenate<'a>(pieces: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
    Tensor::cat(&pieces.collect::<Vec<_>>(), 1)?.transpose(1, 2)
}

fn last_bias(keys: usize, last_count: usize, like: &Tensor) -> Result<Tensor> {
    let mut bias = vec![0f32; keys];
    if let Some(last) = bias.last_mut() {
        *last = (last_count as f32).ln();
    }
    Tensor::from_vec(bias, keys, like.device())
}
