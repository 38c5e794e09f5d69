//! One transformer layer: self-attention over time, cross-attention to text, feed-forward.
//!
//! <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/causal_model.py>

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::config::WanConfig;
use crate::layers::attention::{Begun, attend};
use crate::layers::linear::Linear;
use crate::layers::norm::{LayerNorm, RmsNorm, add_gated};
use crate::layers::rope::Rotation;
use crate::model::{Kv, KvExchange, TextContext, Visible};

/// What every layer of one forward shares.
pub(super) struct Shared<'a> {
    /// `(frames, 6, dim)`.
    pub(super) time: &'a Tensor,
    pub(super) rotation: Rotation,
    /// The tokens of each block.
    pub(super) spans: Vec<Range<usize>>,
    /// Each text, with the run of tokens that it conditions.
    pub(super) texts: Vec<(Range<usize>, &'a TextContext)>,
}

#[derive(Debug)]
pub(super) struct WanLayer {
    modulation: Tensor, // (1, 6, dim), f32
    norm1: LayerNorm,
    self_attn: SelfAttention,
    norm3: LayerNorm,
    cross_attn: CrossAttention,
    norm2: LayerNorm,
    ffn: FeedForward,
}

impl WanLayer {
    pub(super) fn new(config: &WanConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let WanConfig { dim, eps, .. } = *config;
        Ok(Self {
            modulation: vb.clone().set_dtype(DType::F32).get((1, 6, dim), "modulation")?,
            norm1: LayerNorm::plain(dim, eps, &vb)?,
            self_attn: SelfAttention(Projections::new(config, vb.pp("self_attn"))?),
            norm3: LayerNorm::new(dim, eps, vb.pp("norm3"))?,
            cross_attn: CrossAttention(Projections::new(config, vb.pp("cross_attn"))?),
            norm2: LayerNorm::plain(dim, eps, &vb)?,
            ffn: FeedForward::new(config, vb.pp("ffn"))?,
        })
    }

    /// `xs` is `(frames, tokens, dim)`; `index` is the layer's own number.
    pub(super) fn forward(
        &self,
        index: usize,
        xs: &Tensor,
        shared: &Shared<'_>,
        kv: &mut dyn KvExchange,
    ) -> Result<Tensor> {
        let time = self.modulation.broadcast_add(shared.time)?;
        let [attention, feed_forward] = [Modulation::new(&time, 0)?, Modulation::new(&time, 3)?];
        let ys = attention.scale_shift(&self.norm1, xs)?;
        let ys = self.self_attn.forward(index, &ys, shared, kv)?;
        let xs = attention.gate(xs, &ys)?;
        let xs = self.cross_attn.forward(index, &self.norm3.forward(&xs)?, &xs, shared)?;
        let ys = self.ffn.forward(&feed_forward.scale_shift(&self.norm2, &xs)?)?;
        feed_forward.gate(&xs, &ys)
    }

    /// Cross-attention keys and values of a text that is already projected to `(tokens, dim)`.
    pub(super) fn text_kv(&self, text: &Tensor) -> Result<Kv> {
        let Projections { k, v, norm_k, .. } = &self.cross_attn.0;
        let heads = |x: Tensor| self.cross_attn.0.split_heads(&x);
        Ok(Kv { k: heads(norm_k.forward(&k.forward(text)?)?)?, v: heads(v.forward(text)?)? })
    }
}

/// The shift, one plus the scale, and the gate of half a layer, `(frames, 1, dim)` each, in f32.
struct Modulation {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Modulation {
    fn new(time: &Tensor, first: usize) -> Result<Self> {
        let part = |i| time.narrow(1, first + i, 1);
        Ok(Self { shift: part(0)?, scale: (part(1)? + 1.0)?, gate: part(2)? })
    }

    fn scale_shift(&self, norm: &LayerNorm, xs: &Tensor) -> Result<Tensor> {
        norm.modulated(xs, &self.scale, &self.shift)
    }

    fn gate(&self, xs: &Tensor, ys: &Tensor) -> Result<Tensor> {
        add_gated(xs, ys, &self.gate)
    }
}

/// The four linears and two norms that both attentions have.
#[derive(Debug)]
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    num_heads: usize,
}

impl Projections {
    fn new(config: &WanConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let WanConfig { dim, eps, num_heads, .. } = *config;
        Ok(Self {
            q: Linear::load(dim, dim, vb.pp("q"))?,
            k: Linear::load(dim, dim, vb.pp("k"))?,
            v: Linear::load(dim, dim, vb.pp("v"))?,
            o: Linear::load(dim, dim, vb.pp("o"))?,
            norm_q: RmsNorm::new(dim, eps, vb.pp("norm_q"))?, // over all heads together
            norm_k: RmsNorm::new(dim, eps, vb.pp("norm_k"))?,
            num_heads,
        })
    }

    fn queries(&self, xs: &Tensor) -> Result<Tensor> {
        self.split_heads(&self.norm_q.forward(&self.q.forward(xs)?)?)
    }

    /// `(.., dim)` to `(1, tokens, heads, head_dim)`.
    fn split_heads(&self, xs: &Tensor) -> Result<Tensor> {
        let (tokens, dim) = xs.flatten_to(candle_core::D::Minus2)?.dims2()?;
        xs.reshape((1, tokens, self.num_heads, dim / self.num_heads))
    }
}

#[derive(Debug)]
struct SelfAttention(Projections);

impl SelfAttention {
    fn forward(
        &self,
        layer: usize,
        xs: &Tensor,
        shared: &Shared<'_>,
        kv: &mut dyn KvExchange,
    ) -> Result<Tensor> {
        let Projections { q, k, v, norm_q, norm_k, num_heads, .. } = &self.0;
        let k = norm_k.forward_rotated(&k.forward(xs)?, *num_heads, &shared.rotation)?;
        let v = self.0.split_heads(&v.forward(xs)?)?;
        let own = |span| Ok(Kv { k: part(&k, span)?, v: part(&v, span)? });
        let own = shared.spans.iter().map(own).collect::<Result<Vec<_>>>()?;
        let seen = kv.offer(layer, own)?; // keys are on their way while queries are computed
        let q = norm_q.forward_rotated(&q.forward(xs)?, *num_heads, &shared.rotation)?;
        let parts = if seen.is_complete() {
            let seen = seen.filled(|| kv.receive(layer))?;
            let lists = lists(&q, &shared.spans, seen)?.into_iter();
            lists.map(|(q, keys)| attend(&q, &keys, 1)).collect::<Result<Vec<_>>>()?
        } else {
            let begun = begin(lists(&q, &shared.spans, seen)?)?;
            finish(begun, kv.receive(layer)?)?
        };
        self.0.o.forward(&Tensor::cat(&parts, 1)?.reshape(xs.shape())?)
    }
}

fn part(x: &Tensor, span: &Range<usize>) -> Result<Tensor> {
    x.narrow(1, span.start, span.len())
}

/// The queries that see each list of keys.
fn lists<T>(q: &Tensor, spans: &[Range<usize>], seen: Visible<T>) -> Result<Vec<(Tensor, Vec<T>)>> {
    match seen {
        Visible::Shared(list) => Ok(vec![(q.clone(), list)]),
        Visible::Each(lists) if lists.len() != spans.len() => {
            bail!("{} lists of keys for {} blocks", lists.len(), spans.len())
        }
        Visible::Each(lists) => {
            spans.iter().zip(lists).map(|(span, list)| Ok((part(q, span)?, list))).collect()
        }
    }
}

/// Attends to what is known already; with how many keys and values are on their way.
fn begin(lists: Vec<(Tensor, Vec<Option<Kv>>)>) -> Result<Vec<(Begun, usize)>> {
    let begun = |(q, keys): (Tensor, Vec<Option<Kv>>)| {
        let missing = keys.iter().filter(|kv| kv.is_none()).count();
        Ok((Begun::new(&q, keys.into_iter().flatten().collect())?, missing))
    };
    lists.into_iter().map(begun).collect()
}

/// Attends to the rest.
fn finish(begun: Vec<(Begun, usize)>, rest: Visible) -> Result<Vec<Tensor>> {
    let rest = match rest {
        Visible::Shared(list) => vec![list],
        Visible::Each(lists) => lists,
    };
    let missing = begun.iter().map(|(_, missing)| *missing);
    if !missing.eq(rest.iter().map(Vec::len)) {
        bail!("other keys have come than those that were on their way");
    }
    begun.into_iter().zip(&rest).map(|((begun, _), rest)| begun.finish(rest)).collect()
}

#[derive(Debug)]
struct CrossAttention(Projections);

impl CrossAttention {
    /// On top of a residual.
    fn forward(
        &self,
        layer: usize,
        xs: &Tensor,
        residual: &Tensor,
        shared: &Shared<'_>,
    ) -> Result<Tensor> {
        let q = self.0.queries(xs)?;
        let parts = shared.texts.iter().map(|(span, text)| {
            let keys = &text.layers[layer..=layer];
            attend(&q.narrow(1, span.start, span.len())?, keys, text.last_count)
        });
        let heads = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)?;
        self.0.o.forward_add(&heads.reshape(xs.shape())?, residual)
    }
}

#[derive(Debug)]
struct FeedForward {
    first: Linear,
    second: Linear,
}

impl FeedForward {
    fn new(config: &WanConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            first: Linear::load(config.dim, config.ffn_dim, vb.pp("0"))?,
            second: Linear::load(config.ffn_dim, config.dim, vb.pp("2"))?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward_gelu(xs)?)
    }
}
