//! The tiny decoder against upstream's `TAEHV`.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use gstblockcascade::model::Interrupt;
use gstblockcascade::wan::tiny_vae::{TinyDecoder, TinyVaeConfig};
use serde::Deserialize;

use super::fixture::Fixture;
use super::report::Report;

#[derive(Deserialize)]
struct Config {
    tensor_order: Vec<(String, Vec<usize>)>,
}

pub fn check(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let Config { tensor_order } = fixture.config()?;
    let weights = tensor_order.into_iter().enumerate().map(|(index, (name, shape))| {
        let weights = Tensor::from_vec(weights(index, &shape), shape, &Device::Cpu);
        Ok((name, weights?))
    });
    let weights = weights.collect::<Result<HashMap<_, _>>>()?;
    let target = fixture.target();
    let config = TinyVaeConfig::taew2_1();
    let dtype = target.decoder_dtype(|dtype| config.dtype(dtype));
    let vb = VarBuilder::from_tensors(weights, dtype, &target.device);
    let decoder = TinyDecoder::new(&config, vb)?;
    let latents = fixture.tensor("latents")?;
    let pixels = decoder.step(&mut decoder.state(), latents, &Interrupt::default())?;
    let pixels = pixels.permute((0, 3, 1, 2))?; // (frames, 3, height, width)
    report.compare("pixels_untrimmed", &pixels, fixture.tensor("pixels_untrimmed")?)
}

/// The formula of the fixture's `config.json`.
fn weights(index: usize, shape: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let fan_in: usize = shape.iter().skip(1).product();
    let amplitude = if shape.len() > 1 { 1.6 / (fan_in as f64).sqrt() } else { 0.05 };
    let phase = 1.37 * index as f64;
    let angle = |k: f64| 0.731 * k + phase + 0.5 * (0.0173 * k).sin();
    (0..count).map(|k| (amplitude * angle(k as f64).sin()) as f32).collect()
}
