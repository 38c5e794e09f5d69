//! What a CPU's time goes into, each as something that can be run again and again. Weights and inputs are
//! random: the work is the same.

use std::hint::black_box;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use gstblockcascade::checkpoint::random;
use gstblockcascade::layers::attention::attend;
use gstblockcascade::layers::conv::{Conv, Geometry};
use gstblockcascade::layers::linear::Linear;
use gstblockcascade::model::{
    DenoiseInput, FrameDecoder, Interrupt, Kv, KvExchange, TextEmbedding, VideoModel, Visible,
};
use gstblockcascade::wan::tiny_vae::{TinyDecoder, TinyFrameDecoder, TinyVaeConfig};
use gstblockcascade::wan::vae::{WanDecoder, WanFrameDecoder, WanVaeConfig};
use gstblockcascade::wan::{WanConfig, WanDit};

/// Something that is run.
pub type Work = Box<dyn FnMut() -> Result<Tensor>>;

/// What makes it.
pub type Make = fn(Size) -> Result<Work>;

/// How much of it: as models have it, or so little that an emulator gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Whole,
    Small,
}

/// Names, and how each is made.
pub const WORKLOADS: [(&str, Make); 7] = [
    ("linear", linear),
    ("attention", attention),
    ("conv3d_step", conv3d_step),
    ("dit_first", dit_first),
    ("dit_steady", dit_steady),
    ("vae_decode", vae_decode),
    ("taehv_decode", taehv_decode),
];

fn randn(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
}

/// The feed-forward's first linear of the 1.3B.
fn linear(size: Size) -> Result<Work> {
    let (tokens, inputs, outputs) = match size {
        Size::Whole => (1024, 1536, 8960),
        Size::Small => (128, 256, 512),
    };
    let layer = Linear::new(randn(&[outputs, inputs])?, randn(&[outputs])?);
    let xs = randn(&[tokens, inputs])?;
    Ok(Box::new(move || layer.forward(black_box(&xs))))
}

fn attention(size: Size) -> Result<Work> {
    let (queries, keys, heads) = match size {
        Size::Whole => (1024, 4096, 12),
        Size::Small => (128, 512, 2),
    };
    let q = randn(&[1, queries, heads, 128])?;
    let kv = || randn(&[1, keys, heads, 128]);
    let keys = [Kv { k: kv()?, v: kv()? }];
    Ok(Box::new(move || attend(black_box(&q), &keys, 1)))
}

/// Two cached frames, four new ones.
fn conv3d_step(size: Size) -> Result<Work> {
    let (channels, side) = match size {
        Size::Whole => (96, 96),
        Size::Small => (16, 24),
    };
    let geometry = Geometry::same(3).causal(3);
    let weight = randn(&[channels, channels, 3, 3, 3])?;
    let conv = Conv::new(&weight, Some(&randn(&[channels])?), geometry)?;
    let frames = |count| randn(&[count, side, side, channels]);
    let (past, xs) = (frames(2)?, frames(4)?);
    Ok(Box::new(move || conv.forward(Some(&past), black_box(&xs))))
}

/// A stream's first block at 208x128, in two layers of the 1.3B with the embeddings and the head.
fn dit_first(size: Size) -> Result<Work> {
    dit(size, 0)
}

/// The same with seven blocks of history.
fn dit_steady(size: Size) -> Result<Work> {
    dit(size, 7)
}

/// Keys of some blocks before the own ones.
struct Past(Option<Kv>);

impl KvExchange for Past {
    fn exchange(&mut self, _: usize, own: Vec<Kv>) -> Result<Visible> {
        Ok(Visible::Shared(self.0.iter().cloned().chain(own).collect()))
    }
}

fn dit(size: Size, past: usize) -> Result<Work> {
    const FRAMES: usize = 3;
    let (config, height, width) = match size {
        Size::Whole => (WanConfig { num_layers: 2, ..WanConfig::t2v_1_3b() }, 16, 26),
        Size::Small => (WanConfig { num_layers: 1, ..WanConfig::pocket() }, 8, 8),
    };
    let model = WanDit::new(&config, random(0, DType::F32, &Device::Cpu))?;
    let words = config.text_len.min(77);
    let text = model.text_context(&TextEmbedding(randn(&[words, config.text_dim])?))?;
    let latent = randn(&[FRAMES, config.in_dim, height, width])?;
    let tokens = past * FRAMES * height * width / 4;
    let kv = || randn(&[1, tokens, config.num_heads, config.dim / config.num_heads]);
    let mut keys = Past(
        (past > 0).then(|| Ok::<_, candle_core::Error>(Kv { k: kv()?, v: kv()? })).transpose()?,
    );
    Ok(Box::new(move || {
        let block = DenoiseInput {
            latent: black_box(&latent),
            first_frame: past * FRAMES,
            timesteps: &[937.5; FRAMES],
            text: &text,
        };
        Ok(model.predict_flow(&[block], &mut keys)?.swap_remove(0))
    }))
}

/// Three latents to twelve frames of 64x64, in steady state.
fn vae_decode(size: Size) -> Result<Work> {
    let (config, side) = match size {
        Size::Whole => (WanVaeConfig::wan21(), 8),
        Size::Small => (WanVaeConfig::pocket(), 4),
    };
    let decoder = WanDecoder::new(&config, random(0, DType::F32, &Device::Cpu))?;
    decode(WanFrameDecoder::new(Arc::new(decoder)), &[3, config.z_dim, side, side])
}

/// Three latents to twelve frames of 208x128, in steady state.
fn taehv_decode(size: Size) -> Result<Work> {
    let config = TinyVaeConfig::taew2_1();
    let (config, height, width) = match size {
        Size::Whole => (config, 16, 26),
        Size::Small => (TinyVaeConfig { widths: vec![32, 16, 8], width: 8, ..config }, 4, 4),
    };
    let decoder = TinyDecoder::new(&config, random(0, DType::F32, &Device::Cpu))?;
    decode(TinyFrameDecoder::new(Arc::new(decoder)), &[3, config.z_dim, height, width])
}

fn decode(mut decoder: impl FrameDecoder + 'static, latents: &[usize]) -> Result<Work> {
    let (latents, interrupt) = (randn(latents)?, Interrupt::default());
    let mut step = move || decoder.step(black_box(&latents), &interrupt);
    step()?; // a stream's first frame is another one's work
    Ok(Box::new(step))
}
