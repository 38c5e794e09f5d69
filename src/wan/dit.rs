//! The block-causal diffusion transformer: patches, layers, head.
//!
//! <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/causal_model.py>

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::config::{PATCH, WanConfig};
use super::embed::{Head, PatchEmbedding, TextProjection, TimeEmbedding};
use super::layer::{Shared, WanLayer};
use crate::device::moved;
use crate::layers::rope::{Grid, Rope, Rotation};
use crate::model::{DenoiseInput, KvExchange, TextContext, TextEmbedding, VideoModel, VideoSpec};

/// Wan 2.1's text-to-video transformer; nothing in it changes after loading.
#[derive(Debug)]
pub struct WanDit {
    config: WanConfig,
    spec: VideoSpec,
    rope: Rope,
    device: Device,
    dtype: DType,
    patch_embedding: PatchEmbedding,
    text_embedding: TextProjection,
    time_embedding: TimeEmbedding,
    layers: Vec<WanLayer>,
    head: Head,
}

impl WanDit {
    /// Loads all tensors under upstream's names, in the dtype of `vb` (modulation in f32).
    pub fn new(config: &WanConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let spec = config.spec()?;
        let layers = (0..config.num_layers).map(|i| WanLayer::new(config, vb.pp("blocks").pp(i)));
        Ok(Self {
            rope: Rope::new(spec.head_dim),
            device: vb.device().clone(),
            dtype: vb.dtype(),
            patch_embedding: PatchEmbedding::new(config, vb.pp("patch_embedding"))?,
            text_embedding: TextProjection::new(config, vb.pp("text_embedding"))?,
            time_embedding: TimeEmbedding::new(config, &vb)?,
            layers: layers.collect::<Result<_>>()?,
            head: Head::new(config, vb.pp("head"))?,
            config: config.clone(),
            spec,
        })
    }

    fn embed(&self, blocks: &[DenoiseInput<'_>], grid: Grid) -> Result<Tensor> {
        let tokens = blocks
            .iter()
            .map(|block| self.patch_embedding.forward(&moved(block.latent, &self.device)?));
        let tokens = Tensor::cat(&tokens.collect::<Result<Vec<_>>>()?, 0)?;
        tokens.reshape(((), grid.tokens(), self.config.dim)) // (frames, tokens, dim)
    }

    fn rotation(&self, blocks: &[DenoiseInput<'_>], grid: Grid) -> Result<Rotation> {
        let runs = blocks.iter().map(|block| {
            let frames = block.latent.dim(0)?;
            self.rope.rotation(block.first_frame, frames, grid, &self.device)
        });
        Rotation::concatenate(&runs.collect::<Result<Vec<_>>>()?)
    }

    /// Token rows and columns, the same for all blocks.
    fn grid(&self, blocks: &[DenoiseInput<'_>]) -> Result<Grid> {
        let Some(first) = blocks.first() else { bail!("a forward needs at least one block") };
        let (_, _, h, w) = first.latent.dims4()?;
        for block in blocks {
            let (frames, channels, bh, bw) = block.latent.dims4()?;
            if channels != self.config.in_dim {
                bail!("latent has {channels} channels, the model expects {}", self.config.in_dim);
            }
            if (bh, bw) != (h, w) || h % PATCH != 0 || w % PATCH != 0 || frames * h * w == 0 {
                bail!("latent is {frames}x{bh}x{bw}, expected frames of an even {h}x{w}");
            }
            if block.timesteps.len() != frames {
                bail!("{} timesteps for {frames} latent frames", block.timesteps.len());
            }
            let (layers, text_layers) = (self.layers.len(), block.text.layers.len());
            if text_layers != layers {
                bail!("text context has {text_layers} layers, the model expects {layers}");
            }
        }
        Ok(Grid { rows: h / PATCH, cols: w / PATCH })
    }
}

impl VideoModel for WanDit {
    fn spec(&self) -> &VideoSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &self.device
    }

    /// The rows that pad a prompt to `text_len` are equal, so one key with their count stands for
    /// all of them.
    fn text_context(&self, text: &TextEmbedding) -> Result<TextContext> {
        let (tokens, width) = text.0.dims2()?;
        let WanConfig { text_len, text_dim, .. } = self.config;
        if width != text_dim || tokens > text_len {
            bail!("text embedding is {tokens}x{width}, expected at most {text_len}x{text_dim}");
        }
        let pads = text_len - tokens;
        let rows = moved(&text.0, &self.device)?.to_dtype(self.dtype)?;
        let rows = rows.pad_with_zeros(0, 0, pads.min(1))?;
        let rows = self.text_embedding.forward(&rows)?;
        let layers = self.layers.iter().map(|layer| layer.text_kv(&rows));
        Ok(TextContext { layers: layers.collect::<Result<_>>()?, last_count: pads.max(1) })
    }

    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        kv: &mut dyn KvExchange,
    ) -> Result<Vec<Tensor>> {
        let grid = self.grid(blocks)?;
        let timesteps: Vec<f64> =
            blocks.iter().flat_map(|block| block.timesteps).copied().collect();
        let time = self.time_embedding.forward(&timesteps)?;
        let spans = spans(blocks, grid);
        let shared = Shared {
            time: &time.layers,
            rotation: self.rotation(blocks, grid)?,
            texts: texts(blocks, &spans),
            spans,
        };
        let mut xs = self.embed(blocks, grid)?;
        for (index, layer) in self.layers.iter().enumerate() {
            xs = layer.forward(index, &xs, &shared, kv)?;
        }
        let flow = self.head.forward(&xs, &time.head, grid)?.to_dtype(DType::F32)?;
        let frames = |span: &Range<usize>| span.start / grid.tokens()..span.end / grid.tokens();
        let frames = shared.spans.iter().map(frames);
        frames.map(|frames| flow.narrow(0, frames.start, frames.len())).collect()
    }
}

/// The tokens of each block in the concatenation.
fn spans(blocks: &[DenoiseInput<'_>], grid: Grid) -> Vec<Range<usize>> {
    let mut end = 0;
    let span = |block: &DenoiseInput<'_>| {
        let start = end;
        end += block.timesteps.len() * grid.tokens();
        start..end
    };
    blocks.iter().map(span).collect()
}

/// Neighbours with the same text share one attention call.
fn texts<'a>(
    blocks: &[DenoiseInput<'a>],
    spans: &[Range<usize>],
) -> Vec<(Range<usize>, &'a TextContext)> {
    let mut runs: Vec<(Range<usize>, &TextContext)> = Vec::new();
    for (block, span) in blocks.iter().zip(spans) {
        match runs.last_mut() {
            Some((run, text)) if std::ptr::eq(*text, block.text) => run.end = span.end,
            _ => runs.push((span.clone(), block.text)),
        }
    }
    runs
}
