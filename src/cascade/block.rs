//! A block in flight.

use std::sync::Arc;

use candle_core::Tensor;

use crate::model::TextContext;

/// A run of latent frames between its first and its last pass.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Place in the stream, counted in blocks.
    pub(super) index: u64,
    /// `(frames, channels, h, w)`, as noisy as its next pass expects.
    pub(super) latent: Tensor,
    /// What it is conditioned on; a prompt change may replace it.
    pub(super) text: Arc<TextContext>,
}
