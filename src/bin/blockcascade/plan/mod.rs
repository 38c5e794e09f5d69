//! `plan`: what a model would do on some GPUs, by every way to use them.
//!
//! A model of arithmetic, not a measurement. In the order of its parts: [`forward`] counts FLOP and
//! bytes, [`rates`] makes seconds of them, [`pace`] lays those along a timetable, [`strategy`] says
//! which forwards a tick has and what is exchanged, [`advice`] picks. What comments call performance.md is a study
//! that is not part of the repository; the figures of it that matter are repeated here.

mod advice;
mod case;
mod decoder;
mod forward;
mod pace;
#[cfg(test)]
mod published;
mod rates;
mod strategy;
mod table;

use anyhow::{Result, bail};
use gstblockcascade::cascade::CacheLimits;
use gstblockcascade::checkpoint::{Manifest, Preset};
use gstblockcascade::generator::{FrameSize, GeneratorConfig, WeightsSource};
use serde_json::json;

use self::case::Case;
use self::forward::Network;
use self::rates::{Format, Gpu, RateArgs, Rates};
use self::strategy::{Forecast, Strategy};
use crate::choices::Decoder;
use crate::preset::PresetArgs;
use crate::{manifest, print};

/// Most GPUs that are planned for: a few machines.
const MAX_GPUS: usize = 64;

/// Predicts speed, latency and memory on several GPUs, for each way to use them.
///
/// Arithmetic from the model's sizes and the rates of good kernels, not a measurement: `bench` makes
/// those. Sequence parallelism (Ulysses) and fp8 are there to compare with: this program has neither.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the model, or its manifest
    #[arg(long, default_value = "self-forcing-1.3b")]
    model: String,
    /// GPUs that there are, the decoder's among them
    #[arg(long, value_name = "N", default_value_t = 4)]
    gpus: usize,
    /// What GPUs they are
    #[arg(long, value_enum, default_value_t = Gpu::H100)]
    gpu: Gpu,
    /// Size of the frames, in multiples of 16 [default: the model's]
    #[arg(long, value_name = "WxH")]
    size: Option<FrameSize>,
    #[command(flatten)]
    preset: PresetArgs,
    /// Which network makes frames of latents
    #[arg(long, value_enum, default_value_t)]
    decoder: Decoder,
    /// Number format of weights and products
    #[arg(long, value_enum, default_value_t = Format::Bf16)]
    dtype: Format,
    /// Prints JSON, in seconds and bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rates: RateArgs,
}

/// A strategy, and what it would do or why it cannot.
#[derive(Debug)]
pub struct Row {
    strategy: Strategy,
    forecast: Result<Forecast, String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let config = args.config()?;
    let case = args.case(&config)?;
    let rows = rows(&case);
    let advice = advice::lines(&rows, config.model.preset.fps);
    if args.json {
        let answer = json!({ "strategies": table::json(&rows), "advice": advice });
        return print(&format!("{answer:#}\n"));
    }
    let head = args.head(&config, &case)?;
    print(&format!("{head}\n{}\n{}\n", table::text(&rows), advice.join("\n")))
}

fn rows(case: &Case) -> Vec<Row> {
    let row = |strategy: Strategy| Row { strategy, forecast: strategy.forecast(case) };
    Strategy::all(case).into_iter().map(row).collect()
}

impl Args {
    /// The model with this command's settings, checked as those of `generate` are; no decoder needs
    /// a file here.
    fn config(&self) -> Result<GeneratorConfig> {
        let mut model = manifest(&self.model)?;
        self.preset.apply(&mut model.preset);
        let config = GeneratorConfig {
            weights: WeightsSource::Random { seed: 0 },
            decoder: self.decoder.into(),
            size: self.size,
            ..GeneratorConfig::new(model)
        };
        config.validate()?;
        Ok(config)
    }

    fn case(&self, config: &GeneratorConfig) -> Result<Case> {
        if !(1..=MAX_GPUS).contains(&self.gpus) {
            bail!("gpus: got {}, expected 1 to {MAX_GPUS}", self.gpus);
        }
        let rates = self.rates.over(self.gpu, self.dtype)?;
        let Manifest { architecture, preset, .. } = &config.model;
        let network = Network::new(&config.model, config.frame_size())?;
        let decode = decoder::flop(config.decoder, *architecture, network.positions);
        let decode = decode / rates.convolution;
        Ok(Case {
            limits: CacheLimits { sink: preset.sink, window: Some(preset.window) },
            steps: preset.denoising_steps.len(),
            frames: decoder::frames(preset.frames_per_block),
            gpus: self.gpus,
            rates,
            memory: self.gpu.memory(),
            weights: network.parameters * self.dtype.bytes(),
            prompt: network.prompt() / rates.gemm,
            decode: [decode, decode * decoder::first_part(preset.frames_per_block)],
            network,
        })
    }

    /// What the table is of.
    fn head(&self, config: &GeneratorConfig, case: &Case) -> Result<String> {
        let Manifest { name, architecture, preset, .. } = &config.model;
        let Preset { frames_per_block, window, sink, .. } = preset;
        let Rates { gemm, attention, convolution, memory, link, .. } = case.rates;
        let [gemm, attention, convolution] = [gemm, attention, convolution].map(|rate| rate / 1e12);
        let text_encoder = forward::text_encoder_bytes(*architecture)? / 1e9;
        let (gpus, gpu, dtype) = (self.gpus, self.gpu, format!("{:?}", self.dtype).to_lowercase());
        Ok(format!(
            "{name} at {size}: {steps} steps and a cache pass, blocks of {frames_per_block} latents, \
             sink {sink}, window {window}\n\
             {gpus} x {gpu:?}, {dtype}: products {gemm:.0}, attention {attention:.0}, decoder \
             {convolution:.0} TFLOP/s, memory {memory:.0}, link {link:.0} GB/s\n\
             decoding {decode:.0} ms a block of {frames:.0} frames, text {prompt:.0} ms a prompt; \
             not in memory: the decoder, the text encoder ({text_encoder:.1} GB)\n",
            size = config.frame_size(),
            steps = case.steps,
            memory = memory / 1e9,
            link = link / 1e9,
            decode = case.decode[0] * 1e3,
            frames = case.frames,
            prompt = case.prompt * 1e3,
        ))
    }
}
