//! Block Cascading (arXiv 2511.20426): several blocks denoised at once, each at its own step.
//!
//! A [`Timetable`] says which block makes which pass at a tick. At every tick the blocks in flight
//! make one forward together, over the [`History`] of clean blocks and over each other. Sequential
//! generation is `stagger = passes`: one block in flight, the same code.

mod block;
mod history;
mod peers;
mod timetable;

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use self::block::Block;
use self::peers::Peers;
use crate::generator::flow::{FlowSchedule, renoise, x0_from_flow};
use crate::generator::noise::{Draw, Noise};
use crate::layers::rope::Rope;
use crate::model::{DenoiseInput, Interrupt, TextContext, VideoModel};

pub use self::history::{
    CacheLimits, History, HistoryBudget, HistoryRules, HistoryView, SinkPosition,
};
pub use self::timetable::{Pass, Stage, Timetable};

/// What blocks in flight see of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionMode {
    /// All of them: repairs the artefacts that causal attention can show at full width.
    #[default]
    Bidirectional,
    /// Only itself and older ones.
    Causal,
}

/// Which blocks a prompt change touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptPolicy {
    /// Every block that still has a denoising step ahead.
    #[default]
    InFlight,
    /// Only blocks that start from now on.
    NextBlock,
}

/// How blocks of a stream are made; fixed for its whole length.
#[derive(Clone, Debug)]
pub struct CascadeConfig {
    /// Ticks between two blocks' starts.
    pub stagger: usize,
    /// What blocks in flight see of each other.
    pub attention: AttentionMode,
    /// What they see of the past.
    pub history: HistoryRules,
    /// Latent frames of a block.
    pub frames_per_block: usize,
    /// Latent rows and columns.
    pub latent_size: (usize, usize),
    /// Timestep of the cache pass.
    pub context_timestep: f64,
    /// Blocks of the stream; `None` has no end.
    pub blocks: Option<u64>,
}

/// A block whose last denoising step is done.
#[derive(Clone, Debug)]
pub struct CleanBlock {
    /// Place in the stream, counted in blocks.
    pub index: u64,
    /// `(frames, channels, h, w)`.
    pub latent: Tensor,
    /// What its last denoising step was conditioned on.
    pub text: Arc<TextContext>,
}

/// The blocks in flight of one stream, and the history behind them.
#[derive(Debug)]
pub struct Cascade {
    model: Arc<dyn VideoModel>,
    schedule: FlowSchedule,
    noise: Arc<dyn Noise>,
    config: CascadeConfig,
    timetable: Timetable,
    text: Arc<TextContext>,
    history: History,
    blocks: VecDeque<Block>,
    clock: u64,
}

impl Cascade {
    /// A stream at its start, conditioned on `text`.
    pub fn new(
        model: Arc<dyn VideoModel>,
        schedule: FlowSchedule,
        noise: Arc<dyn Noise>,
        text: Arc<TextContext>,
        config: CascadeConfig,
    ) -> Self {
        let rope = Rope::new(model.spec().head_dim);
        Self {
            timetable: Timetable::new(schedule.steps(), config.stagger),
            history: History::new(config.history, rope, config.frames_per_block),
            model,
            schedule,
            noise,
            config,
            text,
            blocks: VecDeque::new(),
            clock: 0,
        }
    }

    /// Conditions blocks on another text from the next tick on.
    pub fn set_text(&mut self, text: Arc<TextContext>, policy: PromptPolicy) {
        let starts = self.admits(); // in flight already if the tick was tried and failed
        let touched = |block: &&mut Block| match policy {
            PromptPolicy::InFlight => self.timetable.clean_at(block.index) >= self.clock,
            PromptPolicy::NextBlock => starts == Some(block.index),
        };
        self.blocks.iter_mut().filter(touched).for_each(|block| block.text = text.clone());
        self.text = text;
    }

    /// The block that the coming tick starts, if it starts one.
    pub fn admits(&self) -> Option<u64> {
        let last = self.stages().last()?;
        (last.pass == Pass::Denoise { step: 0 }).then_some(last.block)
    }

    /// Whether every block of the stream is clean.
    pub fn is_finished(&self) -> bool {
        self.config.blocks.is_some_and(|blocks| {
            blocks.checked_sub(1).is_none_or(|last| self.clock > self.timetable.clean_at(last))
        })
    }

    /// Every block in flight makes one pass. Returns the block that it made clean, if any.
    ///
    /// An error, an interrupt included, leaves the state as it was: the tick can be tried again.
    pub fn tick(&mut self, interrupt: &Interrupt) -> Result<Option<CleanBlock>> {
        let stages: Vec<Stage> = self.stages().collect();
        if stages.is_empty() {
            return Ok(None); // every block has made every pass
        }
        self.admit(&stages)?;
        let caches = stages.first().is_some_and(|stage| stage.pass == Pass::Cache);
        self.history.prepare(stages.len())?;
        let mut peers = Peers {
            history: self.history.view(stages.len()),
            attention: self.config.attention,
            interrupt,
            caches,
            clean: Vec::new(),
        };
        let flows = self.forward(&stages, &mut peers)?;
        let clean = peers.clean;
        let latents = self.advance(&stages, &flows)?;
        self.blocks.iter_mut().zip(latents).for_each(|(block, latent)| block.latent = latent);
        if caches {
            self.history.append(clean);
            self.blocks.pop_front();
        }
        self.clock += 1;
        Ok(self.clean(&stages))
    }

    fn stages(&self) -> impl Iterator<Item = Stage> {
        let end = self.config.blocks.unwrap_or(u64::MAX);
        self.timetable.at(self.clock).filter(move |stage| stage.block < end)
    }

    /// A block at its first pass starts from noise, under the text of now.
    fn admit(&mut self, stages: &[Stage]) -> Result<()> {
        let Some(Stage { block: index, pass: Pass::Denoise { step: 0 } }) = stages.last().copied()
        else {
            return Ok(());
        };
        if self.blocks.back().is_none_or(|block| block.index != index) {
            let latent = self.draw(index, Draw::Initial)?;
            self.blocks.push_back(Block { index, latent, text: self.text.clone() });
        }
        Ok(())
    }

    fn draw(&self, block: u64, draw: Draw) -> Result<Tensor> {
        let (h, w) = self.config.latent_size;
        let shape = [self.config.frames_per_block, self.model.spec().latent_channels, h, w];
        self.noise.draw(block, draw, &shape)?.to_device(self.model.device())
    }

    /// One forward of all blocks in flight.
    fn forward(&self, stages: &[Stage], peers: &mut Peers<'_>) -> Result<Vec<Tensor>> {
        let frames = self.config.frames_per_block;
        let timestep = |stage: &Stage| match stage.pass {
            Pass::Denoise { step } => self.schedule.timesteps()[step],
            Pass::Cache => self.config.context_timestep,
        };
        let timesteps: Vec<_> = stages.iter().map(|stage| vec![timestep(stage); frames]).collect();
        let inputs = self.blocks.iter().zip(&timesteps).map(|(block, timesteps)| DenoiseInput {
            latent: &block.latent,
            first_frame: (block.index as usize).saturating_mul(frames),
            timesteps,
            text: &block.text,
        });
        let flows = self.model.predict_flow(&inputs.collect::<Vec<_>>(), peers)?;
        if flows.len() != stages.len() {
            bail!("the model returned {} flows for {} blocks", flows.len(), stages.len());
        }
        Ok(flows)
    }

    /// The latents after a tick: renoised for the next step, or clean.
    fn advance(&self, stages: &[Stage], flows: &[Tensor]) -> Result<Vec<Tensor>> {
        let next = |((stage, block), flow): ((&Stage, &Block), &Tensor)| {
            let Pass::Denoise { step } = stage.pass else { return Ok(block.latent.clone()) };
            let x0 = x0_from_flow(&block.latent, flow, self.schedule.sigmas()[step])?;
            if step + 1 == self.schedule.steps() {
                return Ok(x0);
            }
            let noise = self.draw(stage.block, Draw::After { step })?;
            renoise(&x0, &noise, self.schedule.sigmas()[step + 1])
        };
        stages.iter().zip(&self.blocks).zip(flows).map(next).collect()
    }

    /// The block that a tick with these stages made clean: at most one, for starts are staggered.
    fn clean(&self, stages: &[Stage]) -> Option<CleanBlock> {
        let last = Pass::Denoise { step: self.schedule.steps() - 1 };
        let index = stages.iter().find(|stage| stage.pass == last)?.block;
        let block = self.blocks.iter().find(|block| block.index == index)?;
        Some(CleanBlock { index, latent: block.latent.clone(), text: block.text.clone() })
    }
}
