//! The umT5 encoder: T5 with a table of relative position biases in every layer.
//!
//! A prompt is one matrix of activations, `(tokens, dim)`, from the embedding to the final norm.
//! Norms, scores, softmax and the gate's GELU are computed in f32, whatever the weights are; the
//! residual stream stays in the weights' dtype.
//!
//! Upstream: <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/t5.py>.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::{Linear, Module, VarBuilder, linear_no_bias, ops};
use serde::Deserialize;

use crate::model::Interrupt;

const EPS: f32 = 1e-6;

/// Sizes of a umT5 encoder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Umt5Config {
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Width of the residual stream and of the embedding that comes out.
    pub dim: usize,
    /// Width of all heads together; umT5 lets it differ from `dim`.
    pub dim_attn: usize,
    /// Width inside the gated feed-forward.
    pub dim_ffn: usize,
    /// Attention heads; they share `dim_attn` equally.
    pub num_heads: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Relative positions are told apart in this many buckets, half of them for keys to the right.
    pub num_buckets: usize,
    /// From this many tokens on, all distances fall into the last bucket.
    pub max_distance: usize,
}

impl Umt5Config {
    /// umT5-XXL, the text encoder of all Wan 2.1 checkpoints.
    pub fn xxl() -> Self {
        Self {
            vocab: 256_384,
            dim: 4096,
            dim_attn: 4096,
            dim_ffn: 10_240,
            num_heads: 64,
            num_layers: 24,
            num_buckets: 32,
            max_distance: 128,
        }
    }

    /// The embedded model's.
    pub fn pocket() -> Self {
        Self {
            vocab: 4096,
            dim: 128,
            dim_attn: 128,
            dim_ffn: 256,
            num_heads: 4,
            num_layers: 3,
            ..Self::xxl()
        }
    }

    fn validate(&self) -> Result<()> {
        if self.num_heads == 0 || !self.dim_attn.is_multiple_of(self.num_heads) {
            bail!("dim_attn {} cannot be shared by {} heads", self.dim_attn, self.num_heads)
        }
        if self.num_buckets < 4 || !self.num_buckets.is_multiple_of(4) {
            bail!("num_buckets is {}, expected a multiple of 4 above 0", self.num_buckets)
        }
        if self.max_distance <= self.num_buckets / 4 {
            let Self { max_distance, num_buckets, .. } = self;
            bail!("max_distance is {max_distance}, expected more than {num_buckets} buckets / 4")
        }
        Ok(())
    }

    /// Bucket of a key `relative` tokens to the right of its query: one a token for the nearest,
    /// then logarithmic up to `max_distance`.
    ///
    /// Upstream takes logarithms in f32; comparing powers gives the same thresholds without
    /// leaning on the rounding of a logarithm at exact powers.
    fn bucket(&self, relative: i64) -> usize {
        let half = self.num_buckets / 2;
        let base = if relative > 0 { half } else { 0 };
        let exact = half / 2;
        let distance = relative.unsigned_abs() as usize;
        if distance < exact {
            return base + distance;
        }
        let ratio = distance as f64 / exact as f64;
        let full = self.max_distance as f64 / exact as f64;
        let steps = (half - exact) as i32;
        let far = (1..steps).take_while(|&k| ratio.powi(steps) >= full.powi(k)).count();
        base + exact + far
    }

    /// Buckets of all (query, key) pairs, row by row: `(tokens * tokens)`.
    fn buckets(&self, tokens: usize) -> Vec<u32> {
        let tokens = tokens as i64;
        let pairs = (0..tokens).flat_map(|query| (0..tokens).map(move |key| key - query));
        pairs.map(|relative| self.bucket(relative) as u32).collect()
    }
}

/// The network and its weights.
#[derive(Debug)]
pub struct Umt5Encoder {
    cfg: Umt5Config,
    /// `(vocab, dim)`; only ever indexed.
    token_embedding: Tensor,
    blocks: Vec<Layer>,
    norm: Norm,
}

impl Umt5Encoder {
    /// Loads the weights by upstream's names, `blocks.0.attn.q.weight` and so on; their dtype is
    /// the one computed in.
    pub fn new(cfg: &Umt5Config, vb: VarBuilder<'_>) -> Result<Self> {
        cfg.validate()?;
        let blocks = vb.pp("blocks");
        Ok(Self {
            cfg: cfg.clone(),
            token_embedding: vb.get((cfg.vocab, cfg.dim), "token_embedding.weight")?,
            blocks: (0..cfg.num_layers)
                .map(|i| Layer::new(cfg, blocks.pp(i)))
                .collect::<Result<_>>()?,
            norm: Norm::new(cfg.dim, vb.pp("norm"))?,
        })
    }

    /// Encodes the tokens of one prompt, `ids` with the end of sequence and without padding, to
    /// `(tokens, dim)`.
    pub fn forward(&self, ids: &[u32], interrupt: &Interrupt) -> Result<Tensor> {
        self.check_ids(ids)?;
        let device = self.token_embedding.device();
        let mut x = self.token_embedding.index_select(&Tensor::new(ids, device)?, 0)?;
        let buckets = Tensor::new(self.cfg.buckets(ids.len()), device)?;
        for (i, layer) in self.blocks.iter().enumerate() {
            interrupt.check()?;
            x = layer.forward(&x, &buckets).map_err(|e| e.context(format!("umt5 layer {i}")))?;
        }
        self.norm.forward(&x)
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            bail!("no tokens to encode, expected at least the end of sequence")
        }
        match ids.iter().find(|&&id| id as usize >= self.cfg.vocab) {
            Some(id) => bail!("token {id} is outside the vocabulary of {}", self.cfg.vocab),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Layer {
    norm1: Norm,
    attn: Attention,
    norm2: Norm,
    ffn: FeedForward,
    pos_embedding: RelativeBias,
}

impl Layer {
    fn new(cfg: &Umt5Config, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            norm1: Norm::new(cfg.dim, vb.pp("norm1"))?,
            attn: Attention::new(cfg, vb.pp("attn"))?,
            norm2: Norm::new(cfg.dim, vb.pp("norm2"))?,
            ffn: FeedForward::new(cfg, vb.pp("ffn"))?,
            pos_embedding: RelativeBias::new(cfg, vb.pp("pos_embedding"))?,
        })
    }

    fn forward(&self, x: &Tensor, buckets: &Tensor) -> Result<Tensor> {
        let bias = self.pos_embedding.forward(buckets, x.dim(0)?)?;
        let x = (x + self.attn.forward(&self.norm1.forward(x)?, &bias)?)?;
        &x + self.ffn.forward(&self.norm2.forward(&x)?)?
    }
}

/// Root-mean-square norm, in f32.
#[derive(Debug)]
struct Norm {
    /// `(dim)`, f32.
    weight: Tensor,
}

impl Norm {
    fn new(dim: usize, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints_dtype(dim, "weight", Default::default(), DType::F32)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::rms_norm(&x.to_dtype(DType::F32)?, &self.weight, EPS)?.to_dtype(x.dtype())
    }
}

/// How much a head likes a key for its distance from the query.
#[derive(Debug)]
struct RelativeBias {
    /// `(heads, buckets)`, f32: the checkpoint's table, transposed.
    table: Tensor,
}

impl RelativeBias {
    fn new(cfg: &Umt5Config, vb: VarBuilder<'_>) -> Result<Self> {
        let table = vb.get((cfg.num_buckets, cfg.num_heads), "embedding.weight")?;
        Ok(Self { table: table.t()?.to_dtype(DType::F32)?.contiguous()? })
    }

    /// `buckets` is `(tokens * tokens)`; gives `(heads, tokens, tokens)`.
    fn forward(&self, buckets: &Tensor, tokens: usize) -> Result<Tensor> {
        self.table.index_select(buckets, 1)?.reshape(((), tokens, tokens))
    }
}

/// Self-attention without the usual `1 / sqrt(head_dim)`: umT5 was trained without.
#[derive(Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    num_heads: usize,
}

impl Attention {
    fn new(cfg: &Umt5Config, vb: VarBuilder<'_>) -> Result<Self> {
        let inward = |name| linear_no_bias(cfg.dim, cfg.dim_attn, vb.pp(name));
        Ok(Self {
            q: inward("q")?,
            k: inward("k")?,
            v: inward("v")?,
            o: linear_no_bias(cfg.dim_attn, cfg.dim, vb.pp("o"))?,
            num_heads: cfg.num_heads,
        })
    }

    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.heads(&self.q, x)?, self.heads(&self.k, x)?, self.heads(&self.v, x)?);
        let scores = q.matmul(&k.t()?)?.to_dtype(DType::F32)?; // (heads, query, key)
        let weights = ops::softmax_last_dim(&(scores + bias)?)?.to_dtype(x.dtype())?;
        let merged = weights.matmul(&v)?.transpose(0, 1)?.flatten_from(1)?; // (tokens, dim_attn)
        self.o.forward(&merged)
    }

    fn heads(&self, projection: &Linear, x: &Tensor) -> Result<Tensor> {
        let x = projection.forward(x)?.reshape((x.dim(0)?, self.num_heads, ()))?;
        x.transpose(0, 1)?.contiguous() // (heads, tokens, head_dim)
    }
}

/// Gated feed-forward: `fc2(fc1(x) * gelu(gate(x)))`.
#[derive(Debug)]
struct FeedForward {
    gate: Linear,
    fc1: Linear,
    fc2: Linear,
}

impl FeedForward {
    fn new(cfg: &Umt5Config, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            gate: linear_no_bias(cfg.dim, cfg.dim_ffn, vb.pp("gate.0"))?,
            fc1: linear_no_bias(cfg.dim, cfg.dim_ffn, vb.pp("fc1"))?,
            fc2: linear_no_bias(cfg.dim_ffn, cfg.dim, vb.pp("fc2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // candle's `gelu` is the tanh approximation, which the checkpoint was trained with.
        let gate = self.gate.forward(x)?.to_dtype(DType::F32)?.gelu()?.to_dtype(x.dtype())?;
        self.fc2.forward(&(self.fc1.forward(x)? * gate)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance at which each logarithmic bucket begins.
    const THRESHOLDS: [(i64, usize); 8] =
        [(8, 8), (12, 9), (16, 10), (23, 11), (32, 12), (46, 13), (64, 14), (91, 15)];

    #[test]
    fn buckets_are_exact_near_and_logarithmic_far() {
        let cfg = Umt5Config::xxl();
        for near in 0..8 {
            assert_eq!(cfg.bucket(-near), near as usize);
        }
        for (start, bucket) in THRESHOLDS {
            assert_eq!(cfg.bucket(-start), bucket, "at {start}");
            assert_eq!(cfg.bucket(1 - start), bucket - 1, "before {start}");
        }
        for far in [127, 128, 511, i64::MAX] {
            assert_eq!(cfg.bucket(-far), 15, "at {far}");
        }
    }

    #[test]
    fn keys_to_the_right_have_their_own_buckets() {
        let cfg = Umt5Config::xxl();
        for distance in 1..600 {
            assert_eq!(cfg.bucket(distance), 16 + cfg.bucket(-distance));
        }
        assert_eq!(cfg.buckets(3), [0, 17, 18, 1, 0, 17, 2, 1, 0]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let heads = Umt5Config { num_heads: 7, ..Umt5Config::xxl() };
        assert!(heads.validate().unwrap_err().to_string().contains("7 heads"));
        let buckets = Umt5Config { num_buckets: 3, ..Umt5Config::xxl() };
        assert!(buckets.validate().unwrap_err().to_string().contains("num_buckets is 3"));
        let distance = Umt5Config { max_distance: 8, ..Umt5Config::xxl() };
        assert!(distance.validate().unwrap_err().to_string().contains("max_distance is 8"));
    }
}
