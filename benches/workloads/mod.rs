//! What time goes into, each as something that can be run again and again. Weights and inputs are random:
//! the work is the same.

use std::hint::black_box;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
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
pub const WORKLOADS: [(&str, Make); 11] = [
    ("linear", |size| linear(&HOST, size)),
    ("linear_bf16", |size| linear(&HOST_BF16, size)),
    ("attention", |size| attention(&HOST, size)),
    ("attention_bf16", |size| attention(&HOST_BF16, size)),
    ("conv3d_step", conv3d_step),
    ("dit_first", |size| two_layers(&HOST, size, 0)),
    ("dit_first_bf16", |size| two_layers(&HOST_BF16, size, 0)),
    ("dit_steady", |size| two_layers(&HOST, size, 7)),
    ("dit_steady_bf16", |size| two_layers(&HOST_BF16, size, 7)),
    ("vae_decode", vae_decode),
    ("taehv_decode", taehv_decode),
];

/// What is computed on, and in which numbers.
#[derive(Clone, Debug)]
pub struct Target {
    pub device: Device,
    pub dtype: DType,
}

const HOST: Target = Target { device: Device::Cpu, dtype: DType::F32 };
const HOST_BF16: Target = Target { device: Device::Cpu, dtype: DType::BF16 };

impl Target {
    fn randn(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::randn(0f32, 1.0, shape, &self.device)?.to_dtype(self.dtype)
    }

    pub fn weights(&self) -> VarBuilder<'static> {
        random(0, self.dtype, &self.device)
    }

    /// In the numbers that a network has there.
    fn of(&self, dtype: impl Fn(DType) -> DType) -> Self {
        Self { device: self.device.clone(), dtype: dtype(self.dtype) }
    }
}

fn randn(shape: &[usize]) -> Result<Tensor> {
    HOST.randn(shape)
}

/// The feed-forward's first linear of the 1.3B.
fn linear(target: &Target, size: Size) -> Result<Work> {
    let (tokens, inputs, outputs) = match size {
        Size::Whole => (1024, 1536, 8960),
        Size::Small => (128, 256, 512),
    };
    let layer = Linear::new(target.randn(&[outputs, inputs])?, target.randn(&[outputs])?)?;
    let xs = target.randn(&[tokens, inputs])?;
    Ok(Box::new(move || layer.forward(black_box(&xs))))
}

fn attention(target: &Target, size: Size) -> Result<Work> {
    let (queries, keys, heads) = match size {
        Size::Whole => (1024, 4096, 12),
        Size::Small => (128, 512, 2),
    };
    let q = target.randn(&[1, queries, heads, 128])?;
    let kv = || target.randn(&[1, keys, heads, 128]);
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

/// A block at 208x128 behind so many others, in two layers of the 1.3B with the embeddings and the head.
fn two_layers(target: &Target, size: Size, past: usize) -> Result<Work> {
    let (config, latent) = match size {
        Size::Whole => (WanConfig { num_layers: 2, ..WanConfig::t2v_1_3b() }, (16, 26)),
        Size::Small => (WanConfig { num_layers: 1, ..WanConfig::pocket() }, (8, 8)),
    };
    dit(target, &config, latent, past * BLOCK)
}

/// Latent frames of a block.
pub const BLOCK: usize = 3;

/// Keys of some frames before the own ones.
struct Past(Option<Kv>);

impl KvExchange for Past {
    fn offer(&mut self, _: usize, own: Vec<Kv>) -> Result<Visible<Option<Kv>>> {
        Ok(Visible::Shared(self.0.iter().cloned().chain(own).collect()).into())
    }
}

/// A forward of one block behind so many latent frames; `latent` is rows and columns.
pub fn dit(
    target: &Target,
    config: &WanConfig,
    latent: (usize, usize),
    past: usize,
) -> Result<Work> {
    let model = WanDit::new(config, target.weights())?;
    let words = config.text_len.min(77);
    let text = TextEmbedding(target.randn(&[words, config.text_dim])?);
    let text = model.text_context(&text)?;
    let (height, width) = latent;
    let latent = target.randn(&[BLOCK, config.in_dim, height, width])?.to_dtype(DType::F32)?;
    let tokens = past * height * width / 4;
    let kv = || target.randn(&[1, tokens, config.num_heads, config.dim / config.num_heads]);
    let mut keys = Past(
        (past > 0).then(|| Ok::<_, candle_core::Error>(Kv { k: kv()?, v: kv()? })).transpose()?,
    );
    Ok(Box::new(move || {
        let block = DenoiseInput {
            latent: black_box(&latent),
            first_frame: past,
            timesteps: &[937.5; BLOCK],
            text: &text,
        };
        Ok(model.predict_flow(&[block], &mut keys)?.swap_remove(0))
    }))
}

/// Three latents to twelve frames of 64x64, in steady state.
fn vae_decode(size: Size) -> Result<Work> {
    match size {
        Size::Whole => vae(&HOST, &WanVaeConfig::wan21(), (8, 8)),
        Size::Small => vae(&HOST, &WanVaeConfig::pocket(), (4, 4)),
    }
}

/// Three latents to twelve frames of 208x128, in steady state.
fn taehv_decode(size: Size) -> Result<Work> {
    let config = TinyVaeConfig::taew2_1();
    match size {
        Size::Whole => taehv(&HOST, &config, (16, 26)),
        Size::Small => {
            let config = TinyVaeConfig { widths: vec![32, 16, 8], width: 8, ..config };
            taehv(&HOST, &config, (4, 4))
        }
    }
}

/// A block's latents to frames, in steady state.
pub fn vae(target: &Target, config: &WanVaeConfig, latent: (usize, usize)) -> Result<Work> {
    let target = &target.of(|dtype| config.dtype(dtype));
    let decoder = WanFrameDecoder::new(Arc::new(WanDecoder::new(config, target.weights())?));
    decode(target, decoder, &[BLOCK, config.z_dim, latent.0, latent.1])
}

/// The same with the tiny decoder.
pub fn taehv(target: &Target, config: &TinyVaeConfig, latent: (usize, usize)) -> Result<Work> {
    let target = &target.of(|dtype| config.dtype(dtype));
    let decoder = TinyFrameDecoder::new(Arc::new(TinyDecoder::new(config, target.weights())?));
    decode(target, decoder, &[BLOCK, config.z_dim, latent.0, latent.1])
}

fn decode(
    target: &Target,
    mut decoder: impl FrameDecoder + 'static,
    latents: &[usize],
) -> Result<Work> {
    let latents = target.randn(latents)?.to_dtype(DType::F32)?;
    let interrupt = Interrupt::default();
    let mut step = move || decoder.step(black_box(&latents), &interrupt);
    step()?; // a stream's first frame is another one's work
    Ok(Box::new(step))
}
