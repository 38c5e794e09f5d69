//! Streams that are run to be timed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use gstblockcascade::cascade::{BlockCost, Cascade, CleanBlock, PromptPolicy};
use gstblockcascade::generator::{
    Controls, Frame, Generator, GeneratorConfig, Parts, Prompt, PromptChange,
};
use gstblockcascade::model::{
    DenoiseInput, Interrupt, KvExchange, TextContext, TextEmbedding, VideoModel, VideoSpec,
};

/// What a stream shows, and what it changes to.
const PROMPTS: [&str; 2] = ["a red ball bounces on a beach", "a blue cube spins in the snow"];
/// The ways in which a prompt can take over.
pub const POLICIES: [(&str, PromptPolicy); 4] = [
    ("in-flight", PromptPolicy::InFlight),
    ("next-block", PromptPolicy::NextBlock),
    ("recache", PromptPolicy::Recache),
    ("cut", PromptPolicy::Cut),
];
/// Blocks that are decoded before the clock starts.
const WARM: u32 = 1;
/// Blocks whose decoding is timed.
const DECODED: u32 = 3;

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
    let decoded = decoded(config, &parts)?;
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

/// Frames a second of a stream's decoder, levels and their way to the host included, on noise.
fn decoded(config: &GeneratorConfig, parts: &Parts) -> Result<f64> {
    let idle = |model: &Arc<dyn VideoModel>| Arc::new(Idle(model.clone())) as Arc<dyn VideoModel>;
    let parts = Parts { models: parts.models.iter().map(idle).collect(), ..parts.clone() };
    decode(config, &parts, WARM)?;
    let (frames, time) = decode(config, &parts, DECODED)?;
    Ok(frames as f64 / time.as_secs_f64())
}

/// Frames of a stream of so many blocks, and how long their decoding took, waits excluded.
fn decode(config: &GeneratorConfig, parts: &Parts, blocks: u32) -> Result<(usize, Duration)> {
    let config = GeneratorConfig { blocks: Some(blocks.into()), ..config.clone() };
    let mut generator = Generator::from_parts(parts.clone(), &config, Controls::new(&config)?)?;
    let frames = generator.by_ref().try_fold(0, |frames, frame| frame.map(|_| frames + 1))?;
    let mean = generator.controls().timing().decode.mean;
    Ok((frames, mean * blocks))
}

/// Leaves noise as it is, at no cost.
#[derive(Debug)]
struct Idle(Arc<dyn VideoModel>);

impl VideoModel for Idle {
    fn spec(&self) -> &VideoSpec {
        self.0.spec()
    }

    fn device(&self) -> &Device {
        self.0.device()
    }

    fn text_context(&self, text: &TextEmbedding) -> candle_core::Result<TextContext> {
        self.0.text_context(text)
    }

    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        _: &mut dyn KvExchange,
    ) -> candle_core::Result<Vec<Tensor>> {
        blocks.iter().map(|block| block.latent.zeros_like()).collect()
    }
}

/// What the process holds in memory now.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gstblockcascade::checkpoint::Manifest;
    use gstblockcascade::generator::{FrameSize, WeightsSource};
    use gstblockcascade::model::FrameDecoder;

    /// Makes pictures that are no frames of the stream.
    #[derive(Debug)]
    struct Wrong;

    impl FrameDecoder for Wrong {
        fn step(&mut self, latents: &Tensor, _: &Interrupt) -> candle_core::Result<Tensor> {
            Tensor::zeros((1, 16, 16, 3), latents.dtype(), latents.device())
        }

        fn fresh(&self) -> Box<dyn FrameDecoder> {
            Box::new(Self)
        }
    }

    #[test]
    fn decoding_ends_with_frames() {
        let config = GeneratorConfig {
            weights: WeightsSource::Random { seed: 0 },
            size: Some(FrameSize { width: 32, height: 32 }),
            ..GeneratorConfig::new(Manifest::named("pocket").unwrap())
        };
        let mut parts = Parts::load(&config, &Interrupt::default()).unwrap();
        let (frames, time) = decode(&config, &parts, 2).unwrap();
        assert!(frames == 9 + 12 && time > Duration::ZERO, "{frames} in {time:?}");
        parts.decoder = Arc::new(Wrong);
        let error = decoded(&config, &parts).unwrap_err();
        assert!(error.to_string().contains("expected frames of"), "{error:#}");
    }
}
