//! A block in flight, and what it is conditioned on.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::model::{DenoiseInput, TextContext, TextEmbedding, VideoModel};

/// A run of latent frames between its first and its last pass.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Place in the stream, counted in blocks.
    pub(super) index: u64,
    /// `(frames, channels, h, w)`, as noisy as its next pass expects.
    pub(super) latent: Tensor,
    /// What it is conditioned on; a prompt change may replace it.
    pub(super) text: Arc<TextContexts>,
}

impl Block {
    /// Its share of a forward of the worker `rank`, with a timestep for each frame.
    pub(super) fn input<'a>(&'a self, timesteps: &'a [f64], rank: usize) -> DenoiseInput<'a> {
        let first_frame = (self.index as usize).saturating_mul(timesteps.len());
        DenoiseInput { latent: &self.latent, first_frame, timesteps, text: &self.text.0[rank] }
    }
}

/// The text context of one prompt on each worker's device, by rank.
#[derive(Clone, Debug)]
pub struct TextContexts(Vec<TextContext>);

impl TextContexts {
    /// For workers with these models; those that share one share its context.
    pub fn new(models: &[Arc<dyn VideoModel>], text: &TextEmbedding) -> Result<Self> {
        let mut contexts: Vec<TextContext> = Vec::with_capacity(models.len());
        for (rank, model) in models.iter().enumerate() {
            let same = models[..rank].iter().position(|other| Arc::ptr_eq(other, model));
            contexts.push(match same {
                Some(other) => contexts[other].clone(),
                None => model.text_context(text)?,
            });
        }
        Ok(Self(contexts))
    }
}

impl From<Vec<TextContext>> for TextContexts {
    fn from(contexts: Vec<TextContext>) -> Self {
        Self(contexts)
    }
}
