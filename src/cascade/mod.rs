//! Block Cascading (arXiv 2511.20426): several blocks denoised at once, each at its own step.
//!
//! A [`Timetable`] says which block makes which pass at a tick. At every tick the blocks in flight
//! make one forward together, over the [`History`] of clean blocks and over each other: on one
//! worker, or spread over several, each on its own device, that give each other keys and values once
//! a layer. Sequential generation is `stagger = passes`: one block in flight, the same code.

mod block;
mod crew;
mod history;
mod link;
mod peers;
mod timetable;
mod worker;

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use self::block::Block;
use self::crew::Crew;
use self::link::Link;
use self::worker::Tick;
use crate::generator::flow::{FlowSchedule, renoise, x0_from_flow};
use crate::generator::noise::{Draw, Noise};
use crate::layers::rope::Rope;
use crate::model::Interrupt;

pub use self::block::TextContexts;
pub use self::crew::Workers;
pub use self::history::{
    CacheLimits, History, HistoryBudget, HistoryPolicy, HistoryRules, HistoryView, SinkPosition,
};
pub use self::timetable::{Pass, Stage, Timetable};

/// What blocks in flight see of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionMode {
    /// All of them: in the paper it repairs the artefacts that causal attention shows at full width. The embedded
    /// model shows none there, and loses a little by this (its card has the figures).
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
    /// As in flight, and what history holds is computed anew under the new prompt, in one forward.
    /// Stage-matched histories have no clean blocks to compute: there it is as in flight.
    Recache,
    /// History and blocks in flight are dropped; the stream goes on from the block that would have
    /// become clean next.
    Cut,
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
    pub text: Arc<TextContexts>,
    /// What was spent since the clean block before.
    pub cost: BlockCost,
}

/// Work from one clean block to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCost {
    /// Beats in which every block in flight makes a pass.
    pub ticks: u64,
    /// Keys and values that workers gave each other, in bytes.
    pub exchanged_bytes: u64,
}

/// The blocks in flight of one stream, and the history behind them.
#[derive(Debug)]
pub struct Cascade {
    crew: Crew,
    schedule: FlowSchedule,
    noise: Arc<dyn Noise>,
    config: CascadeConfig,
    channels: usize,
    timetable: Timetable,
    text: Arc<TextContexts>,
    blocks: VecDeque<Block>,
    /// The clean blocks that history holds, as far as it may compute them anew, under the text of now.
    past: VecDeque<Block>,
    /// Whether it has to.
    is_stale: bool,
    /// The block that starts at tick 0 of the timetable: not the stream's first after a cut.
    first: u64,
    clock: u64,
    /// Since the last clean block.
    cost: BlockCost,
}

impl Cascade {
    /// A stream at its start, conditioned on `text`, which has a context for each worker. Of the
    /// workers only as many are used as there are blocks in flight.
    pub fn new(
        workers: impl Into<Workers>,
        schedule: FlowSchedule,
        noise: Arc<dyn Noise>,
        text: Arc<TextContexts>,
        config: CascadeConfig,
    ) -> Result<Self> {
        let workers = workers.into();
        let Some(model) = workers.models.first() else { bail!("a cascade needs a worker") };
        let policy = config.history.policy;
        let timetable = Timetable::under(policy, schedule.steps(), config.stagger);
        let spec = model.spec();
        let history =
            History::new(config.history, Rope::new(spec.head_dim), config.frames_per_block);
        let histories = match policy {
            HistoryPolicy::Clean => vec![history],
            HistoryPolicy::StageMatched => vec![history; schedule.steps()],
        };
        Ok(Self {
            channels: spec.latent_channels,
            crew: Crew::new(&workers, timetable.width(), &histories)?,
            timetable,
            schedule,
            noise,
            config,
            text,
            blocks: VecDeque::new(),
            past: VecDeque::new(),
            is_stale: false,
            first: 0,
            clock: 0,
            cost: BlockCost::default(),
        })
    }

    /// Conditions blocks on another text from the next tick on.
    pub fn set_text(&mut self, text: Arc<TextContexts>, policy: PromptPolicy) {
        let starts = self.admits(); // in flight already if the tick was tried and failed
        let (timetable, first, clock) = (self.timetable, self.first, self.clock);
        let touched = |block: &&mut Block| match policy {
            PromptPolicy::InFlight => timetable.clean_at(block.index - first) >= clock,
            PromptPolicy::NextBlock => starts == Some(block.index),
            PromptPolicy::Recache | PromptPolicy::Cut => true,
        };
        self.blocks.iter_mut().filter(touched).for_each(|block| block.text = text.clone());
        self.past.iter_mut().for_each(|block| block.text = text.clone());
        self.text = text;
        match policy {
            PromptPolicy::InFlight | PromptPolicy::NextBlock => {}
            PromptPolicy::Recache => {
                self.is_stale = self.config.history.policy == HistoryPolicy::Clean;
            }
            PromptPolicy::Cut => self.cut(),
        }
    }

    /// Starts again from the first block that is not clean, without a past.
    fn cut(&mut self) {
        self.first = self.first.saturating_add(self.timetable.next_clean(self.clock));
        self.clock = 0;
        self.blocks.clear();
        self.past.clear();
        self.is_stale = false;
        self.crew.forget();
    }

    /// The block that the coming tick starts, if it starts one.
    pub fn admits(&self) -> Option<u64> {
        let last = self.stages().last()?;
        (last.pass == Pass::Denoise { step: 0 }).then_some(last.block)
    }

    /// Whether every block of the stream is clean.
    pub fn is_finished(&self) -> bool {
        self.config.blocks.is_some_and(|blocks| {
            let left = blocks.saturating_sub(self.first);
            left.checked_sub(1).is_none_or(|last| self.clock > self.timetable.clean_at(last))
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
        self.recache(interrupt)?;
        self.admit(&stages)?;
        let flows = self.forward(&stages, interrupt)?;
        let latents = self.advance(&stages, &flows)?;
        self.blocks.iter_mut().zip(latents).for_each(|(block, latent)| block.latent = latent);
        self.crew.keep();
        self.clock += 1;
        self.cost.ticks += 1;
        let clean = self.clean(&stages);
        self.retire(&stages);
        Ok(clean)
    }

    fn stages(&self) -> impl Iterator<Item = Stage> {
        let (end, first) = (self.config.blocks.unwrap_or(u64::MAX), self.first);
        let stages = self.timetable.at(self.clock);
        let stages = stages.map(move |Stage { block, pass }| Stage { block: block + first, pass });
        stages.filter(move |stage| stage.block < end)
    }

    /// Brings history to the text of now, if it was asked to.
    fn recache(&mut self, interrupt: &Interrupt) -> Result<()> {
        if std::mem::take(&mut self.is_stale) && !self.past.is_empty() {
            let timesteps = vec![self.config.context_timestep; self.config.frames_per_block];
            let past = self.past.make_contiguous();
            let done = self.crew.recompute(past, &timesteps, interrupt);
            self.is_stale = done.is_err();
            done?;
        }
        Ok(())
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
        let shape = [self.config.frames_per_block, self.channels, h, w];
        self.noise.draw(block, draw, &shape)?.to_device(self.crew.device())
    }

    /// One forward of all blocks in flight.
    fn forward(&mut self, stages: &[Stage], interrupt: &Interrupt) -> Result<Vec<Tensor>> {
        let timestep = |stage: &Stage| match stage.pass {
            Pass::Denoise { step } => self.schedule.timesteps()[step],
            Pass::Cache => self.config.context_timestep,
        };
        let timesteps = |stage| vec![timestep(stage); self.config.frames_per_block];
        let mut tick = Tick {
            flying: stages.iter().copied().zip(&self.blocks).collect(),
            timesteps: stages.iter().map(timesteps).collect(),
            policy: self.config.history.policy,
            timetable: self.timetable,
            attention: self.config.attention,
            interrupt,
            workers: self.crew.len(),
            link: Link::default(),
        };
        tick.link = self.crew.link(&tick);
        let flows = self.crew.forward(&tick)?;
        self.cost.exchanged_bytes += tick.link.bytes();
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
    fn clean(&mut self, stages: &[Stage]) -> Option<CleanBlock> {
        let last = Pass::Denoise { step: self.schedule.steps() - 1 };
        let index = stages.iter().find(|stage| stage.pass == last)?.block;
        let block = self.blocks.iter().find(|block| block.index == index)?;
        let (latent, text) = (block.latent.clone(), block.text.clone());
        Some(CleanBlock { index, latent, text, cost: std::mem::take(&mut self.cost) })
    }

    /// The block that has made all its passes becomes part of the past.
    fn retire(&mut self, stages: &[Stage]) {
        let oldest = stages.first().map(|stage| stage.pass.index(self.schedule.steps()));
        if oldest.is_some_and(|pass| pass + 1 == self.timetable.passes()) {
            let retired = self.blocks.pop_front();
            self.past.extend(retired.map(|block| Block { text: self.text.clone(), ..block }));
        }
        while self.past.len() > self.crew.recomputed() {
            self.past.pop_front();
        }
    }
}
