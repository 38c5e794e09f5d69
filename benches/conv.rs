//! Streaming steps of the auto-encoder's causal 3x3x3 convolutions.

use std::hint::black_box;

use candle_core::{Device, Result, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gstblockcascade::layers::conv::{Conv, Geometry};

/// Input and output channels, frames, side: each size of the decoder at 128 x 128, and the head.
const STEPS: [(usize, usize, usize, usize); 6] = [
    (96, 96, 4, 96),
    (384, 384, 3, 16),
    (384, 384, 6, 32),
    (192, 192, 12, 64),
    (96, 96, 12, 128),
    (96, 3, 12, 128),
];

/// Throughput is in FLOP: read "elem/s" as FLOP/s.
fn causal_conv3d(c: &mut Criterion) -> Result<()> {
    let random = |shape: &[usize]| Tensor::randn(0f32, 0.02, shape, &Device::Cpu);
    let mut group = c.benchmark_group("causal_conv3d");
    group.sample_size(10);
    for (inputs, outputs, frames, side) in STEPS {
        let weight = random(&[outputs, inputs, 3, 3, 3])?;
        let conv = Conv::new(&weight, Some(&random(&[outputs])?), Geometry::same(3).causal(3))?;
        let past = random(&[2, side, side, inputs])?;
        let xs = random(&[frames, side, side, inputs])?;
        let flop = 2 * frames * side * side * weight.elem_count();
        group.throughput(Throughput::Elements(flop as u64));
        let name = format!("{inputs} to {outputs} channels, {frames} x {side} x {side}");
        group.bench_function(name, |b| b.iter(|| black_box(conv.forward(Some(&past), &xs))));
    }
    group.finish();
    Ok(())
}

fn benches(c: &mut Criterion) {
    causal_conv3d(c).expect("shapes above fit");
}

criterion_group!(conv, benches);
criterion_main!(conv);
