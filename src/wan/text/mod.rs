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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;

    fn fixture(file: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/umt5/");
        std::fs::read(folder.to_owned() + file).unwrap()
    }

    fn model() -> Umt5Encoder {
        let cfg = serde_json::from_slice(&fixture("config.json")).unwrap();
        let weights = fixture("model.safetensors");
        let vb = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
        Umt5Encoder::new(&cfg, vb).unwrap()
    }

    #[test]
    fn a_prompt_is_cleaned_cut_and_encoded() {
        let encoder = PromptEncoder::new(tokenizer::tests::tokenizer("null", 5), model());
        let interrupt = Interrupt::default();
        let ours = encoder.encode(" a  red&nbsp;\u{1b}[1mfox runs", &interrupt).unwrap().0;
        let ids = [3, 4, 5, 6, 1]; // a, red, fox, run, end: the last s is one too many
        let expected = encoder.model.forward(&ids, &interrupt).unwrap();
        assert_eq!(ours.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
    }
}
