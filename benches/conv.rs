//! One streaming step of the auto-encoder's widest layer: 3x3x3, 96 to 96 channels, 4 frames.

use std::hint::black_box;

use candle_core::{Device, Result, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gstblockcascade::layers::conv::{Conv, Geometry};

const CHANNELS: usize = 96;
const FRAMES: usize = 4;
const SIDE: usize = 96;

/// Throughput is in FLOP: read "elem/s" as FLOP/s.
fn causal_conv3d(c: &mut Criterion) -> Result<()> {
    let random = |shape: &[usize]| Tensor::randn(0f32, 0.02, shape, &Device::Cpu);
    let weight = random(&[CHANNELS, CHANNELS, 3, 3, 3])?;
    let conv = Conv::new(&weight, Some(&random(&[CHANNELS])?), Geometry::same(3).causal(3))?;
    let past = random(&[2, SIDE, SIDE, CHANNELS])?;
    let xs = random(&[FRAMES, SIDE, SIDE, CHANNELS])?;
    let mut group = c.benchmark_group("causal_conv3d");
    let flop = 2 * FRAMES * SIDE * SIDE * weight.elem_count();
    group.throughput(Throughput::Elements(flop as u64));
    group.bench_function("96 channels, 4 x 96 x 96", |b| {
        b.iter(|| black_box(conv.forward(Some(&past), &xs)));
    });
    group.finish();
    Ok(())
}

fn benches(c: &mut Criterion) {
    causal_conv3d(c).expect("shapes above fit");
}

criterion_group!(conv, benches);
criterion_main!(conv);
