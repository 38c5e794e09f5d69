//! A stand-in for umT5 where the video network's weights are random too.

use candle_core::{DType, Device, Result, Tensor, bail};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};

use super::clean;
use crate::model::{Interrupt, TextEmbedding, TextEncoder};

/// Gives every word its own fixed row of noise: no language is understood, but equal prompts give
/// equal embeddings, different ones differ, and lengths are realistic.
///
/// For speed measurements and tests of presets with random weights, where 11 GB of equally random
/// umT5 would add loading time and no meaning.
#[derive(Clone, Debug)]
pub struct RandomTextEncoder {
    /// Width of a row, `text_dim` of the video network.
    pub dim: usize,
    /// Longest embedding in rows, the end included.
    pub text_len: usize,
    /// Chooses the noise of all words.
    pub seed: u64,
    /// Element type of the embeddings.
    pub dtype: DType,
    /// Where the embeddings are put; the noise is drawn on the host, alike for all devices.
    pub device: Device,
}

impl RandomTextEncoder {
    /// `dim` values of N(0, 1), a function of the seed and the word alone.
    fn row(&self, word: &str) -> Vec<f32> {
        let key = Sha256::new().chain_update(self.seed.to_le_bytes()).chain_update(word).finalize();
        let rng = ChaCha8Rng::from_seed(key.into());
        StandardNormal.sample_iter(rng).take(self.dim).collect()
    }
}

impl TextEncoder for RandomTextEncoder {
    fn encode(&self, prompt: &str, interrupt: &Interrupt) -> Result<TextEmbedding> {
        interrupt.check()?;
        let Some(longest) = self.text_len.checked_sub(1) else {
            bail!("text length is 0, expected room for the end of sequence")
        };
        let prompt = clean(prompt);
        // Cleaned text has no empty words, so the empty one is free to mark the end.
        let words = prompt.split_whitespace().take(longest).chain([""]);
        let rows: Vec<f32> = words.flat_map(|word| self.row(word)).collect();
        let tokens = rows.len() / self.dim.max(1);
        let embedding = Tensor::from_vec(rows, (tokens, self.dim), &self.device)?;
        embedding.to_dtype(self.dtype).map(TextEmbedding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(encoder: &RandomTextEncoder, prompt: &str) -> Vec<Vec<f32>> {
        encoder.encode(prompt, &Interrupt::default()).unwrap().0.to_vec2().unwrap()
    }

    fn encoder(seed: u64, text_len: usize) -> RandomTextEncoder {
        RandomTextEncoder { dim: 256, text_len, seed, dtype: DType::F32, device: Device::Cpu }
    }

    #[test]
    fn a_row_is_its_word() {
        let encoder = encoder(1, 512);
        let (fox, foxes) = (rows(&encoder, "a red fox"), rows(&encoder, " the  red foxes "));
        assert_eq!((fox.len(), foxes.len()), (4, 4));
        assert_eq!((&fox[1], &fox[3]), (&foxes[1], &foxes[3]));
        assert!(fox[0] != foxes[0] && fox[2] != foxes[2]);
        assert_eq!(rows(&encoder, ""), [fox[3].clone()]);
    }

    #[test]
    fn the_seed_chooses_the_noise() {
        assert_ne!(rows(&encoder(1, 512), "fox"), rows(&encoder(2, 512), "fox"));
    }

    #[test]
    fn rows_are_standard_normal() {
        let values = rows(&encoder(7, 512), &"word ".repeat(3)).concat();
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
        assert!(mean.abs() < 0.15 && (variance - 1.).abs() < 0.2, "{mean} {variance}");
    }

    #[test]
    fn a_long_prompt_is_cut_and_still_ends() {
        let encoder = encoder(1, 3);
        let cut = rows(&encoder, "one two three four");
        assert_eq!(cut, rows(&encoder, "one two"));
    }
}
