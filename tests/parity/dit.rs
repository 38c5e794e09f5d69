//! The DiT and the cascade against upstream's `CausalWanModel` and its loop.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use gstblockcascade::cascade::{
    AttentionMode, CacheLimits, Cascade, CascadeConfig, HistoryBudget, HistoryPolicy, HistoryRules,
    PromptPolicy, SinkPosition, TextContexts,
};
use gstblockcascade::generator::flow::FlowSchedule;
use gstblockcascade::generator::noise::{Draw, Noise};
use gstblockcascade::model::{
    DenoiseInput, Interrupt, Kv, KvExchange, TextContext, TextEmbedding, VideoModel, VideoSpec,
    Visible,
};
use gstblockcascade::wan::{WanConfig, WanDit};
use serde::Deserialize;

use super::fixture::Fixture;
use super::report::Report;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    model: WanConfig,
    frames: usize,
    frames_per_block: usize,
    shift: f64,
    denoising_step_list: Vec<u32>,
    local_attn_size: i64,
    sink_size: usize,
}

/// Everything that the runs of a folder share.
struct Setup<'a> {
    fixture: &'a Fixture,
    config: Config,
    model: Arc<Recorder>,
    schedule: FlowSchedule,
    noise: Arc<Recorded>,
    texts: [Arc<TextContexts>; 2],
}

pub fn check(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let setup = Setup::new(fixture)?;
    setup.check_schedule(report)?;
    setup.check_sequential(report)?;
    for name in fixture.names("latents_") {
        let expected = fixture.tensor(name)?;
        match name.strip_prefix("latents_cascade_stride").and_then(|rest| rest.split_once('_')) {
            Some((stagger, mode)) => {
                let mode = attention(mode)?;
                report.compare(name, &setup.run(stagger.parse()?, mode, None)?, expected)?;
            }
            None if name == "latents_sequential" => {}
            None if name == "latents_prompt_switch" => {
                let (sequential, blocks) = (setup.schedule.steps() + 1, setup.blocks());
                let got = setup.run(sequential, AttentionMode::Bidirectional, Some(blocks / 2))?;
                report.compare(name, &got, expected)?;
            }
            None => bail!("no check for {name}"),
        }
    }
    Ok(())
}

/// A single forward of a stream's first block, which any bidirectional Wan computes alike.
pub fn check_first_block(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let model = WanDit::new(&fixture.config()?, fixture.weights()?)?;
    let text = model.text_context(&TextEmbedding(fixture.tensor("prompt_embeds")?.clone()))?;
    let latent = fixture.tensor("latent")?;
    let timestep =
        f64::from(fixture.tensor("timestep")?.flatten_all()?.get(0)?.to_scalar::<f32>()?);
    let timesteps = vec![timestep; latent.dim(0)?];
    let block = DenoiseInput { latent, first_frame: 0, timesteps: &timesteps, text: &text };
    let flows = model.predict_flow(&[block], &mut Alone)?;
    report.compare("flow", flows.first().context("no flow")?, fixture.tensor("flow")?)
}

/// No history and nobody else in flight.
struct Alone;

impl KvExchange for Alone {
    fn offer(&mut self, _: usize, own: Vec<Kv>) -> candle_core::Result<Visible<Option<Kv>>> {
        Ok(Visible::Shared(own).into())
    }
}

fn attention(mode: &str) -> Result<AttentionMode> {
    match mode {
        "bidirectional" => Ok(AttentionMode::Bidirectional),
        "causal" => Ok(AttentionMode::Causal),
        other => bail!("no attention mode {other:?}"),
    }
}

impl<'a> Setup<'a> {
    fn new(fixture: &'a Fixture) -> Result<Self> {
        let config: Config = fixture.config()?;
        let model = WanDit::new(&config.model, fixture.weights()?)?;
        let text = |name| -> Result<_> {
            let context = model.text_context(&TextEmbedding(fixture.tensor(name)?.clone()))?;
            Ok(Arc::new(vec![context].into()))
        };
        let texts = [text("prompt_embeds")?, text("prompt_embeds_2")?];
        Ok(Self {
            fixture,
            schedule: FlowSchedule::new(&config.denoising_step_list, config.shift)?,
            noise: Arc::new(Recorded::new(fixture, config.frames_per_block)?),
            model: Arc::new(Recorder::new(model)),
            texts,
            config,
        })
    }

    fn blocks(&self) -> u64 {
        (self.config.frames / self.config.frames_per_block) as u64
    }

    fn check_schedule(&self, report: &mut Report) -> Result<()> {
        let expected = self.fixture.tensor("timesteps")?;
        let timesteps: Vec<f32> = self.schedule.timesteps().iter().map(|&t| t as f32).collect();
        report.compare("timesteps", &Tensor::new(timesteps, expected.device())?, expected)
    }

    /// The sequential run, every raw network output first.
    fn check_sequential(&self, report: &mut Report) -> Result<()> {
        let passes = self.schedule.steps() + 1;
        self.model.flows.lock().map_err(|_| anyhow::anyhow!("a run panicked"))?.clear();
        let latents = self.run(passes, AttentionMode::Bidirectional, None)?;
        let flows = self.model.flows.lock().map_err(|_| anyhow::anyhow!("a run panicked"))?.clone();
        for name in self.fixture.names("trace.") {
            let place = name.strip_prefix("trace.flow_b").and_then(|rest| rest.split_once("_s"));
            let (block, step) = place.with_context(|| format!("no check for {name}"))?;
            let index = block.parse::<usize>()? * passes + step.parse::<usize>()?;
            let flow = flows.get(index).with_context(|| format!("no pass for {name}"))?;
            report.compare(name, flow, self.fixture.tensor(name)?)?;
        }
        report.compare("latents_sequential", &latents, self.fixture.tensor("latents_sequential")?)
    }

    /// The stream's latents, `(frames, channels, h, w)`; the second prompt from a block on.
    fn run(&self, stagger: usize, mode: AttentionMode, switch: Option<u64>) -> Result<Tensor> {
        let config = self.cascade_config(stagger, mode)?;
        let [first, second] = &self.texts;
        let model: Arc<dyn VideoModel> = self.model.clone();
        let (schedule, noise) = (self.schedule.clone(), self.noise.clone());
        let mut cascade = Cascade::new(model, schedule, noise, first.clone(), config)?;
        let (mut latents, interrupt) = (Vec::new(), Interrupt::default());
        while !cascade.is_finished() {
            if switch.is_some() && cascade.admits() == switch {
                cascade.set_text(second.clone(), PromptPolicy::NextBlock);
            }
            latents.extend(cascade.tick(&interrupt)?.map(|block| block.latent));
        }
        Ok(Tensor::cat(&latents, 0)?)
    }

    fn cascade_config(&self, stagger: usize, attention: AttentionMode) -> Result<CascadeConfig> {
        let Config { frames_per_block, local_attn_size, sink_size, .. } = self.config;
        let sink = sink_size / frames_per_block;
        let window = usize::try_from(local_attn_size).ok().map(|frames| {
            let window = (frames / frames_per_block).checked_sub(sink + 1);
            window
                .with_context(|| format!("local_attn_size {frames} has no room for sink and block"))
        });
        let window = window.transpose()?;
        let noise = self.fixture.tensor("noise")?.dims4()?;
        Ok(CascadeConfig {
            stagger,
            attention,
            history: HistoryRules {
                policy: HistoryPolicy::Clean,
                limits: CacheLimits { sink, window },
                budget: HistoryBudget::History,
                sink_position: SinkPosition::Absolute,
            },
            frames_per_block,
            latent_size: (noise.2, noise.3),
            context_timestep: 0.0,
            blocks: Some(self.blocks()),
        })
    }
}

/// The noise that upstream drew.
#[derive(Debug)]
struct Recorded {
    initial: Tensor, // (frames, channels, h, w)
    renoise: Tensor, // (blocks, steps, frames per block, channels, h, w)
    frames_per_block: usize,
}

impl Recorded {
    fn new(fixture: &Fixture, frames_per_block: usize) -> Result<Self> {
        let initial = fixture.tensor("noise")?.clone();
        let renoise = fixture.tensor("renoise").context("renoise")?.clone();
        Ok(Self { initial, renoise, frames_per_block })
    }
}

impl Noise for Recorded {
    fn draw(&self, block: u64, draw: Draw, _: &[usize]) -> candle_core::Result<Tensor> {
        let block = block as usize;
        match draw {
            Draw::Initial => {
                self.initial.narrow(0, block * self.frames_per_block, self.frames_per_block)
            }
            Draw::After { step } => self.renoise.get(block)?.get(step),
        }
    }
}

/// A model that keeps the flow of the oldest block of each forward.
#[derive(Debug)]
struct Recorder {
    model: WanDit,
    flows: std::sync::Mutex<Vec<Tensor>>,
}

impl Recorder {
    fn new(model: WanDit) -> Self {
        Self { model, flows: Default::default() }
    }
}

impl VideoModel for Recorder {
    fn spec(&self) -> &VideoSpec {
        self.model.spec()
    }

    fn device(&self) -> &candle_core::Device {
        self.model.device()
    }

    fn text_context(&self, text: &TextEmbedding) -> candle_core::Result<TextContext> {
        self.model.text_context(text)
    }

    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        kv: &mut dyn KvExchange,
    ) -> candle_core::Result<Vec<Tensor>> {
        let flows = self.model.predict_flow(blocks, kv)?;
        if let Ok(mut kept) = self.flows.lock() {
            kept.extend(flows.first().cloned());
        }
        Ok(flows)
    }
}
