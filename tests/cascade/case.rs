//! What a stream is made with: every choice that the definition leaves open.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use gstblockcascade::cascade::{
    AttentionMode, CacheLimits, CascadeConfig, HistoryBudget, HistoryPolicy, HistoryRules,
    PromptPolicy, SinkPosition, TextContexts, Workers,
};
use gstblockcascade::generator::noise::{Draw, Noise};
use gstblockcascade::model::{TextContext, VideoModel};

pub const FRAMES: usize = 3;

/// Lists whose timesteps, shifted by 5, are exact in f32: no reader can round them differently.
pub const STEPS: [&[u32]; 4] = [&[1000], &[1000, 0], &[1000, 750, 250], &[1000, 750, 550, 150]];
pub const SHIFT: f64 = 5.0;

#[derive(Clone, Debug)]
pub struct Case {
    pub steps: &'static [u32],
    pub stagger: usize,
    pub attention: AttentionMode,
    pub rules: HistoryRules,
    pub blocks: u64,
    pub context_timestep: f64,
    pub switch: Option<Switch>,
    pub workers: usize,
}

/// A change to the second text before a tick.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    pub policy: PromptPolicy,
    pub tick: u64,
}

impl Default for Case {
    /// Four blocks at full width over all of history.
    fn default() -> Self {
        let limits = CacheLimits { sink: 0, window: None };
        Self {
            steps: STEPS[2],
            stagger: 1,
            attention: AttentionMode::Bidirectional,
            rules: HistoryRules {
                policy: HistoryPolicy::Clean,
                limits,
                budget: HistoryBudget::History,
                sink_position: SinkPosition::Rebased,
            },
            blocks: 4,
            context_timestep: 0.0,
            switch: None,
            workers: 1,
        }
    }
}

impl Case {
    /// The sink and the window in blocks.
    pub fn limited(self, sink: usize, window: usize) -> Self {
        let limits = CacheLimits { sink, window: Some(window) };
        Self { rules: HistoryRules { limits, ..self.rules }, ..self }
    }

    /// With histories by pass.
    pub fn stage_matched(self) -> Self {
        let rules = HistoryRules { policy: HistoryPolicy::StageMatched, ..self.rules };
        Self { rules, ..self }
    }

    /// Forwards that a block makes.
    pub fn passes(&self) -> usize {
        match self.rules.policy {
            HistoryPolicy::Clean => self.steps.len() + 1,
            HistoryPolicy::StageMatched => self.steps.len(),
        }
    }

    pub fn config(&self, subject: &Subject) -> CascadeConfig {
        CascadeConfig {
            stagger: self.stagger,
            attention: self.attention,
            history: self.rules,
            frames_per_block: FRAMES,
            latent_size: subject.latent_size,
            context_timestep: self.context_timestep,
            blocks: Some(self.blocks),
        }
    }

    /// Every number of steps and every stagger, in both modes.
    pub fn timetables() -> impl Iterator<Item = Self> {
        let staggers = STEPS.iter().flat_map(|steps| (1..=steps.len() + 1).map(|g| (*steps, g)));
        staggers.flat_map(|(steps, stagger)| {
            [AttentionMode::Bidirectional, AttentionMode::Causal].map(|attention| Self {
                steps,
                stagger,
                attention,
                ..Self::default()
            })
        })
    }

    /// Every kind of limit, under both budgets and both positions of the sink.
    pub fn rules() -> impl Iterator<Item = HistoryRules> {
        let limits = [(0, None), (2, None), (0, Some(1)), (1, Some(0)), (1, Some(1)), (2, Some(3))];
        let budgets = [HistoryBudget::History, HistoryBudget::Constant];
        let positions = [SinkPosition::Rebased, SinkPosition::Absolute];
        limits.into_iter().flat_map(move |(sink, window)| {
            budgets.into_iter().flat_map(move |budget| {
                positions.map(|sink_position| {
                    let limits = CacheLimits { sink, window };
                    let policy = HistoryPolicy::Clean;
                    HistoryRules { policy, limits, budget, sink_position }
                })
            })
        })
    }

    /// This stream with the text changed before any of its first ticks, under each policy.
    pub fn switches(self) -> impl Iterator<Item = Self> {
        let policies = [
            PromptPolicy::InFlight,
            PromptPolicy::NextBlock,
            PromptPolicy::Recache,
            PromptPolicy::Cut,
        ];
        let ticks = 0..2 * self.stagger as u64 + self.steps.len() as u64 + 1;
        ticks.flat_map(move |tick| {
            let case = self.clone();
            policies.map(|policy| Self { switch: Some(Switch { policy, tick }), ..case.clone() })
        })
    }
}

/// A model that the cases are run on.
#[derive(Clone, Debug)]
pub struct Subject {
    pub model: Arc<dyn VideoModel>,
    pub latent_size: (usize, usize),
    pub texts: [Arc<TextContext>; 2],
}

impl Subject {
    /// The model on so many workers of one thread each.
    pub fn workers(&self, count: usize) -> Workers {
        Workers { models: vec![self.model.clone(); count], threads: Some(1) }
    }

    /// A text for so many workers.
    pub fn text(&self, number: usize, workers: usize) -> Arc<TextContexts> {
        Arc::new(vec![(*self.texts[number]).clone(); workers].into())
    }

    /// The noise that a block starts from (draw 0) or that is mixed in after step `draw - 1`.
    pub fn noise(&self, block: u64, draw: usize) -> Result<Tensor> {
        let (h, w) = self.latent_size;
        noise(block, draw, &[FRAMES, self.model.spec().latent_channels, h, w])
    }
}

/// Numbers of mean 0 and variance 1 that no two draws share.
pub fn noise(block: u64, draw: usize, shape: &[usize]) -> Result<Tensor> {
    let number = |i: usize| {
        let mut bits = (block << 40) ^ ((draw as u64) << 32) ^ i as u64;
        for _ in 0..3 {
            bits = (bits ^ (bits >> 29)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        ((bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 3f32.sqrt()
    };
    let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

/// [`noise`] for the cascade.
#[derive(Debug)]
pub struct Numbers;

impl Noise for Numbers {
    fn draw(&self, block: u64, draw: Draw, shape: &[usize]) -> Result<Tensor> {
        match draw {
            Draw::Initial => noise(block, 0, shape),
            Draw::After { step } => noise(block, step + 1, shape),
        }
    }
}
