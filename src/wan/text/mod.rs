//! A prompt on its way to the network: cleaned, cut into tokens, encoded by umT5.
//!
//! [`PromptEncoder`] is the way of a real checkpoint; [`RandomTextEncoder`] stands in for it where
//! the weights are random too. Both give `(tokens, dim)` for the real tokens only: the padding that
//! upstream adds up to `text_len` is folded away later, in cross-attention.
//!
//! Upstream: <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/t5.py> and
//! <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/tokenizers.py>.

mod clean;
mod encoder;
mod random;
mod tokenizer;

use candle_core::Result;

pub use clean::clean;
pub use encoder::{Umt5Config, Umt5Encoder};
pub use random::RandomTextEncoder;
pub use tokenizer::PromptTokenizer;

use crate::model::{Interrupt, TextEmbedding, TextEncoder};

/// umT5 behind its tokenizer: what a checkpoint encodes prompts with.
#[derive(Debug)]
pub struct PromptEncoder {
    tokenizer: PromptTokenizer,
    model: Umt5Encoder,
}

impl PromptEncoder {
    /// Joins a tokenizer and the network whose vocabulary it speaks.
    pub fn new(tokenizer: PromptTokenizer, model: Umt5Encoder) -> Self {
        Self { tokenizer, model }
    }
}

impl TextEncoder for PromptEncoder {
    fn encode(&self, prompt: &str, interrupt: &Interrupt) -> Result<TextEmbedding> {
        let ids = self.tokenizer.encode(&clean(prompt))?;
        self.model.forward(&ids, interrupt).map(TextEmbedding)
    }
}
