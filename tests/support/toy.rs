//! The arithmetic of networks that several test programs have in place of real ones: clean latents
//! are the prompt's length, in hundredths.

use candle_core::{DType, Device, Result, Tensor, bail};
use gstblockcascade::model::{
    DenoiseInput, Interrupt, Kv, TextContext, TextEmbedding, TextEncoder, VideoSpec,
};

pub const LAYERS: usize = 3;

/// Wan's.
pub const SPEC: VideoSpec = VideoSpec {
    latent_channels: 1,
    spatial_stride: 8,
    patch: 2,
    layers: LAYERS,
    heads: 1,
    head_dim: 6,
};

/// Keys and values that say nothing.
pub fn kv() -> Result<Kv> {
    let k = Tensor::zeros((1, 3, 1, 6), DType::F32, &Device::Cpu)?;
    Ok(Kv { v: k.clone(), k })
}

pub fn text_context(text: &TextEmbedding) -> TextContext {
    let kv = Kv { k: text.0.clone(), v: text.0.clone() };
    TextContext { layers: vec![kv], last_count: 1 }
}

/// `(x - length) / sigma`.
pub fn flow(block: &DenoiseInput<'_>) -> Result<Tensor> {
    let length = block.text.layers[0].k.mean_all()?.to_scalar::<f32>()?;
    let sigma = (block.timesteps[0] / 1000.0).max(0.001);
    (block.latent - f64::from(length))? / sigma
}

/// A prompt's embedding is its length, in hundredths.
#[derive(Debug)]
pub struct Lengths;

impl TextEncoder for Lengths {
    fn encode(&self, prompt: &str, _: &Interrupt) -> Result<TextEmbedding> {
        if prompt == "refuse" {
            bail!("toy refusal");
        }
        Ok(TextEmbedding(Tensor::new(&[[prompt.len() as f32 / 100.0]], &Device::Cpu)?))
    }
}
