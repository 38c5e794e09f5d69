//! Streams that are run to be timed.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use gstblockcascade::cascade::{BlockCost, Cascade, CleanBlock, PromptPolicy};
use gstblockcascade::generator::{
    Controls, Frame, FrameSize, Generator, GeneratorConfig, Parts, Prompt, PromptChange,
};
use gstblockcascade::model::Interrupt;

/// What a stream shows, and what it changes to.
const PROMPTS: [&str; 2] = ["a red ball bounces on a beach", "a blue cube spins in the snow"];
/// The ways in which a prompt can take over.
pub const POLICIES: [(&str, PromptPolicy); 4] = [
    ("in-flight", PromptPolicy::InFlight),
    ("next-block", PromptPolicy::NextBlock),
    ("recache", PromptPolicy::Recache),
    ("cut", PromptPolicy::Cut),
];
/// Latent frames that are decoded before the clock starts.
const WARM: usize = 2;
/// Latent frames whose decoding is timed.
const DECODED: usize = 8;

/// What was measured of one width.
#[derive(Debug)]
pub struct Row {
    pub width: usize,
    pub devices: String,
    /// Frames a second while nothing is decoded.
    pub denoised: f64,
    /// Frames a second while nothing is denoised.
    pub decoded: f64,
    /// Frames a second of the whole.
    pub delivered: f64,
    pub first_frame: Duration,
    /// In the order of [`POLICIES`].
    pub prompts: [PromptLatency; POLICIES.len()],
    /// Of a block, in the middle of the stream.
    pub ticks: u64,
    pub exchanged_bytes: u64,
    /// Of the process, when the row was done; where the system tells.
    pub memory_bytes: Option<u64>,
}

/// From a new prompt to its first frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptLatency {
    pub time: Duration,
    /// Frames of the old prompt that came in between.
    pub frames: u64,
}

/// Measures one width, over networks that are loaded.
pub fn row(width: usize, config: &GeneratorConfig, parts: &Parts, blocks: u64) -> Result<Row> {
    let models = parts.models[..config.devices.len()].to_vec();
    let parts = Parts { models, ..parts.clone() };
    let mut stream = Stream::new(config, parts.clone())?;
    // Before the stream itself runs: it goes on until its queues are full.
    let (denoised, cost) = stream.denoised(blocks)?;
    let decoder_device = config.decoder_device.map_or(Ok(Device::Cpu), |device| device.open())?;
    let decoded = decoded(&parts, config.frame_size(), &decoder_device)?;
    let first_frame = stream.first_frame()?;
    let delivered = stream.frames_per_second(blocks)?;
    Ok(Row {
        width,
        devices: config.devices.to_string(),
        denoised,
        decoded,
        delivered,
        first_frame,
        prompts: stream.prompt_latencies()?,
        ticks: cost.ticks,
        exchanged_bytes: cost.exchanged_bytes,
        memory_bytes: memory(),
    })
}

/// A stream that is read as fast as it comes.
struct Stream {
    generator: Generator,
    /// Frames of a block behind the first.
    block: u64,
    /// Blocks until all that rolls does, and until as many are in flight as can be.
    fill: u64,
    width: u64,
}

impl Stream {
    fn new(config: &GeneratorConfig, parts: Parts) -> Result<Self> {
        let config = GeneratorConfig { prompt: PROMPTS[0].into(), ..config.clone() };
        let generator = Generator::from_parts(parts, &config, Controls::new(&config)?)?;
        let (format, preset) = (generator.format(), &config.model.preset);
        Ok(Self {
            block: format.first_frame(2) - format.first_frame(1),
            fill: (preset.window + preset.sink + config.cascade_width) as u64,
            width: config.cascade_width as u64,
            generator,
        })
    }

    /// Frames a second where nobody decodes or reads, and what a block costs.
    fn denoised(&self, blocks: u64) -> Result<(f64, BlockCost)> {
        let mut cascade = self.generator.cascade(PROMPTS[0])?;
        clean_blocks(&mut cascade, self.fill)?.latent.device().synchronize()?;
        let begun = Instant::now();
        let last = clean_blocks(&mut cascade, blocks)?;
        last.latent.device().synchronize()?;
        Ok(((blocks * self.block) as f64 / begun.elapsed().as_secs_f64(), last.cost))
    }

    fn first_frame(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        read(&mut self.generator)?;
        Ok(begun.elapsed())
    }

    fn frames_per_second(&mut self, blocks: u64) -> Result<f64> {
        self.skip(self.fill * self.block)?;
        let begun = Instant::now();
        self.skip(blocks * self.block)?;
        Ok((blocks * self.block) as f64 / begun.elapsed().as_secs_f64())
    }

    /// Of one prompt after the other, the cascade full again before each.
    fn prompt_latencies(&mut self) -> Result<[PromptLatency; POLICIES.len()]> {
        let mut latencies = [PromptLatency::default(); POLICIES.len()];
        for (number, latency) in latencies.iter_mut().enumerate() {
            let text = PROMPTS[(number + 1) % PROMPTS.len()];
            // A cut, which is the last one, alone leaves less history.
            self.skip(self.width * self.block)?;
            *latency = self.prompt_latency(text, POLICIES[number].1)?;
        }
        Ok(latencies)
    }

    fn prompt_latency(&mut self, text: &str, policy: PromptPolicy) -> Result<PromptLatency> {
        let change = Some(PromptChange { policy, ..PromptChange::default() });
        let begun = Instant::now();
        let prompt = Prompt { change, ..text.into() };
        let id = self.generator.controls().set_prompt(prompt);
        let mut frames = 0;
        while read(&mut self.generator)?.prompt.id < id {
            frames += 1;
        }
        Ok(PromptLatency { time: begun.elapsed(), frames })
    }

    fn skip(&mut self, frames: u64) -> Result<()> {
        (0..frames).try_for_each(|_| read(&mut self.generator).map(|_| ()))
    }
}

fn read(generator: &mut Generator) -> Result<Frame> {
    match generator.next_frame()? {
        Some(frame) => Ok(frame),
        None => bail!("the stream ended though it has no end"),
    }
}

/// Denoises so many blocks, at least one, and returns the last one.
fn clean_blocks(cascade: &mut Cascade, blocks: u64) -> Result<CleanBlock> {
    let (interrupt, mut clean) = (Interrupt::default(), 0);
    loop {
        let block = cascade.tick(&interrupt)?;
        clean += u64::from(block.is_some());
        match block {
            Some(block) if clean >= blocks => return Ok(block),
            _ => {}
        }
    }
}

/// Frames a second of the decoder alone, on noise.
fn decoded(parts: &Parts, size: FrameSize, device: &Device) -> Result<f64> {
    let spec = parts.models[0].spec();
    let latent = |side: u32| side as usize / spec.spatial_stride;
    let shape = (1, spec.latent_channels, latent(size.height), latent(size.width));
    let latents = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_device(device)?;
    let (mut decoder, interrupt) = (parts.decoder.fresh(), Interrupt::default());
    let mut decode = |count| -> Result<usize> {
        let mut frames = 0;
        for _ in 0..count {
            let pixels = decoder.step(&latents, &interrupt)?;
            frames += pixels.dim(0)?;
            pixels.device().synchronize()?;
        }
        Ok(frames)
    };
    decode(WARM)?;
    let begun = Instant::now();
    Ok(decode(DECODED)? as f64 / begun.elapsed().as_secs_f64())
}

/// What the process holds in memory now.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}
