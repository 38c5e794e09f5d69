//! Attention from stock candle operations: the specification.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::Kv;

/// Queries that share one matrix of scores: what bounds the memory.
const QUERIES: usize = 512;

pub(super) fn attend(q: &Tensor, keys: &[Kv], last_count: usize) -> Result<Tensor> {
    let k = concatenate(keys.iter().map(|kv| &kv.k))?.transpose(2, 3)?; // (b, heads, d, m)
    let k = unrounded(&k.contiguous()?)?;
    let v = concatenate(keys.iter().map(|kv| &kv.v))?.contiguous()?; // (b, heads, m, d)
    let bias = match last_count {
        1 => None,
        _ => Some(last_bias(k.dim(D::Minus1)?, last_count, q)?),
    };
    let n = q.dim(1)?;
    let parts = (0..n).step_by(QUERIES).map(|start| {
        let q = q.narrow(1, start, QUERIES.min(n - start))?.transpose(1, 2)?.contiguous()?;
        attend_part(&unrounded(&q)?, &k, &v, bias.as_ref())?.transpose(1, 2)
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)
}

fn attend_part(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
    let scores = (q.matmul(k)?.to_dtype(DType::F32)? * scale)?; // softmax in f32
    let scores = bias.map_or(Ok(scores.clone()), |bias| scores.broadcast_add(bias))?;
    softmax_last_dim(&scores)?.to_dtype(v.dtype())?.matmul(v)
}

/// What scores are made of. Those of bf16 would come in bf16: of a score of 100, 0.25 would be lost.
fn unrounded(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::BF16 { x.to_dtype(DType::F32) } else { Ok(x.clone()) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::numbers::normal;

    /// Beside the same numbers in f32: the weights are rounded, which shows little, and the scores are
    /// not, which would show much.
    #[test]
    fn large_scores_of_bf16_are_not_rounded() {
        let numbers = |seed, count, scale| {
            let numbers = normal(seed, &[1, count, 2, 64]).affine(scale, 0.0).unwrap();
            numbers.to_dtype(DType::BF16).unwrap()
        };
        let (q, k, v) = (numbers(0, 40, 8.0), numbers(1, 300, 8.0), numbers(2, 300, 1.0));
        let single = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
        let exact = attend(&single(&q), &[Kv { k: single(&k), v: single(&v) }], 1).unwrap();
        let out = attend(&q, &[Kv { k, v }], 1).unwrap();
        assert_eq!(out.dtype(), DType::BF16);
        let off = (single(&out) - exact).unwrap().abs().unwrap().max_all().unwrap();
        let off: f32 = off.to_scalar().unwrap();
        assert!(off < 0.02, "{off}");
    }
}
