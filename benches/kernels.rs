//! The five kernels that a CPU's time goes into; `benches/peers/run.sh` sets them beside PyTorch.

use std::hint::black_box;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module};
use criterion::{Criterion, criterion_group, criterion_main};
use gstblockcascade::checkpoint::random;
use gstblockcascade::layers::attention::attend;
use gstblockcascade::layers::conv::{Conv, Geometry};
use gstblockcascade::model::{
    DenoiseInput, FrameDecoder, Interrupt, Kv, KvExchange, TextEmbedding, VideoModel, Visible,
};
use gstblockcascade::wan::vae::{WanDecoder, WanFrameDecoder, WanVaeConfig};
use gstblockcascade::wan::{WanConfig, WanDit};

fn randn(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("a shape of positive sizes")
}

/// The feed-forward's first linear of the 1.3B.
fn linear(c: &mut Criterion) {
    let layer = Linear::new(randn(&[8960, 1536]), Some(randn(&[8960])));
    let xs = randn(&[1024, 1536]);
    c.bench_function("linear", |b| b.iter(|| layer.forward(black_box(&xs))));
}

fn attention(c: &mut Criterion) {
    let q = randn(&[1, 1024, 12, 128]);
    let keys = [Kv { k: randn(&[1, 4096, 12, 128]), v: randn(&[1, 4096, 12, 128]) }];
    c.bench_function("attention", |b| b.iter(|| attend(black_box(&q), &keys, 1)));
}

/// Two cached frames, four new ones.
fn conv3d_step(c: &mut Criterion) {
    let geometry = Geometry::same(3).causal(3);
    let conv = Conv::new(&randn(&[96, 96, 3, 3, 3]), Some(&randn(&[96])), geometry);
    let conv = conv.expect("sizes that fit");
    let (past, xs) = (randn(&[2, 96, 96, 96]), randn(&[4, 96, 96, 96]));
    c.bench_function("conv3d_step", |b| b.iter(|| conv.forward(Some(&past), black_box(&xs))));
}

/// Keys of six blocks of history beside the own ones.
struct Past(Kv);

impl KvExchange for Past {
    fn exchange(&mut self, _: usize, own: Vec<Kv>) -> Result<Visible> {
        Ok(Visible::Shared([vec![self.0.clone()], own].concat()))
    }
}

/// One layer of the 1.3B at 208x128, with the embeddings and the head around it.
fn dit_layer(c: &mut Criterion) {
    let config = WanConfig { num_layers: 1, ..WanConfig::t2v_1_3b() };
    let model = WanDit::new(&config, random(0, DType::F32, &Device::Cpu)).expect("sizes that fit");
    let text = model.text_context(&TextEmbedding(randn(&[77, 4096]))).expect("77 tokens of 4096");
    let latent = randn(&[3, 16, 16, 26]);
    let mut past = Past(Kv { k: randn(&[1, 1872, 12, 128]), v: randn(&[1, 1872, 12, 128]) });
    let timesteps = [937.5; 3];
    c.bench_function("dit_layer", |b| {
        b.iter(|| {
            let latent = black_box(&latent);
            let block =
                DenoiseInput { latent, first_frame: 18, timesteps: &timesteps, text: &text };
            model.predict_flow(&[block], &mut past)
        })
    });
}

/// Three latents to twelve frames of 128x128, in steady state.
fn vae_decode(c: &mut Criterion) {
    let vb = random(0, DType::F32, &Device::Cpu);
    let decoder = WanDecoder::new(&WanVaeConfig::wan21(), vb).expect("sizes that fit");
    let mut decoder = WanFrameDecoder::new(Arc::new(decoder));
    let latents = randn(&[3, 16, 16, 16]);
    let interrupt = Interrupt::default();
    let mut step = || decoder.step(black_box(&latents), &interrupt);
    step().expect("latents that fit");
    c.bench_function("vae_decode", |b| b.iter(&mut step));
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(10);
    targets = linear, attention, conv3d_step, dit_layer, vae_decode
}
criterion_main!(kernels);
