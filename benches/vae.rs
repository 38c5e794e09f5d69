//! One block, 3 latents to 12 frames, at 128 x 128 with the weights' sizes of Wan 2.1.

use std::hint::black_box;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use criterion::{Criterion, criterion_group, criterion_main};
use gstblockcascade::model::Interrupt;
use gstblockcascade::wan::vae::{WanDecoder, WanVaeConfig};

/// Normal weights of mean zero that keep the size of what they are applied to.
struct Random;

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        _name: &str,
        _init: candle_nn::Init,
        _dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let inputs = shape.elem_count() / shape.dims().first().copied().unwrap_or(1).max(1);
        Tensor::randn(0f32, (inputs as f32).powf(-0.5), shape, device)
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> Result<Tensor> {
        candle_core::bail!("no shape for {name}")
    }

    fn contains_tensor(&self, _name: &str) -> bool {
        true
    }
}

fn decode_block(c: &mut Criterion) -> Result<()> {
    let vb = VarBuilder::from_backend(Box::new(Random), DType::F32, Device::Cpu);
    let decoder = WanDecoder::new(&WanVaeConfig::wan21(), vb)?;
    let latents = Tensor::randn(0f32, 1., (3, 16, 16, 16), &Device::Cpu)?;
    let interrupt = Interrupt::default();
    let mut begun = decoder.state();
    decoder.step(&mut begun, &latents, &interrupt)?;
    let mut group = c.benchmark_group("vae");
    group.sample_size(10);
    group.bench_function("decode 3 latents, 128 x 128", |b| {
        b.iter(|| black_box(decoder.step(&mut begun.clone(), &latents, &interrupt)));
    });
    group.finish();
    Ok(())
}

fn benches(c: &mut Criterion) {
    decode_block(c).expect("the backend has every tensor");
}

criterion_group!(vae, benches);
criterion_main!(vae);
