//! Prompt cleaning and the umT5 encoder against what their originals gave.

// Helpers outside #[test] functions panic too: a test's report is its panic.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor, safetensors};
use candle_nn::VarBuilder;
use gstblockcascade::model::Interrupt;
use gstblockcascade::wan::text::{Umt5Config, Umt5Encoder, clean};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// What f32 parity means in this repository: see tests/fixtures/README.md.
const TOLERANCE: f32 = 1e-4;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A tiny encoder of a fixture, and the prompts it was run on.
struct Golden {
    cfg: Umt5Config,
    weights: PathBuf,
    expected: HashMap<String, Tensor>,
}

impl Golden {
    fn load(name: &str) -> Self {
        let config = std::fs::read(fixture(name).join("config.json")).unwrap();
        let expected = fixture(name).join("expected.safetensors");
        Self {
            cfg: serde_json::from_slice(&config).unwrap(),
            weights: fixture(name).join("model.safetensors"),
            expected: safetensors::load(expected, &Device::Cpu).unwrap(),
        }
    }

    fn encoder(&self, dtype: DType, rename: fn(&str) -> String) -> Umt5Encoder {
        let weights = std::fs::read(&self.weights).unwrap();
        let vb = VarBuilder::from_buffered_safetensors(weights, dtype, &Device::Cpu).unwrap();
        Umt5Encoder::new(&self.cfg, vb.rename_f(rename)).unwrap()
    }

    /// The real tokens of each prompt, and the rows expected for the prompt with its padding.
    fn prompts(&self) -> Vec<(Vec<u32>, Tensor)> {
        let ids = self.expected["ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let mask = self.expected["mask"].to_vec2::<i64>().unwrap();
        let real = |(ids, mask): (Vec<u32>, Vec<i64>)| {
            ids[..mask.iter().filter(|&&m| m == 1).count()].to_vec()
        };
        let embeds = self.expected["embeds"].chunk(ids.len(), 0).unwrap();
        ids.into_iter()
            .zip(mask)
            .map(real)
            .zip(embeds.iter().map(|e| e.squeeze(0).unwrap()))
            .collect()
    }
}

fn max_abs(t: &Tensor) -> f32 {
    t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn encode(encoder: &Umt5Encoder, ids: &[u32]) -> Tensor {
    encoder.forward(ids, &Interrupt::default()).unwrap()
}

/// Compares both prompts of a fixture and reports the larger difference.
fn assert_parity(name: &str, rename: fn(&str) -> String) {
    let golden = Golden::load(name);
    let encoder = golden.encoder(DType::F32, rename);
    for (prompt, (ids, expected)) in golden.prompts().iter().enumerate() {
        let ours = encode(&encoder, ids).pad_with_zeros(0, 0, expected.dim(0).unwrap() - ids.len());
        let difference = max_abs(&(ours.unwrap() - expected).unwrap());
        eprintln!("{name} prompt {prompt}, {} tokens: {difference:e}", ids.len());
        assert!(difference <= TOLERANCE * max_abs(expected).max(1.), "{name} prompt {prompt}");
    }
}

#[test]
fn umt5_matches_upstream() {
    assert_parity("umt5", |name| name.into());
}

#[test]
fn umt5_matches_transformers() {
    assert_parity("hf_umt5", transformers_name);
}

/// The name that `UMT5EncoderModel` of transformers stores one of upstream's tensors under.
fn transformers_name(name: &str) -> String {
    let name = match name {
        "token_embedding.weight" => return "shared.weight".into(),
        "norm.weight" => return "encoder.final_layer_norm.weight".into(),
        name => name.replacen("blocks.", "encoder.block.", 1),
    };
    const LAYER: [(&str, &str); 7] = [
        ("norm1", "layer.0.layer_norm"),
        ("attn", "layer.0.SelfAttention"),
        ("pos_embedding.embedding", "layer.0.SelfAttention.relative_attention_bias"),
        ("norm2", "layer.1.layer_norm"),
        ("ffn.gate.0", "layer.1.DenseReluDense.wi_0"),
        ("ffn.fc1", "layer.1.DenseReluDense.wi_1"),
        ("ffn.fc2", "layer.1.DenseReluDense.wo"),
    ];
    let (ours, theirs) = LAYER.iter().find(|(ours, _)| name.contains(ours)).unwrap();
    name.replacen(ours, theirs, 1)
}

#[test]
fn bf16_stays_close_to_f32() {
    let golden = Golden::load("umt5");
    let encoder = golden.encoder(DType::BF16, |name| name.into());
    for (ids, expected) in golden.prompts() {
        let ours = encode(&encoder, &ids);
        assert_eq!(ours.dtype(), DType::BF16);
        let ours = ours.to_dtype(DType::F32).unwrap();
        let expected = expected.narrow(0, 0, ids.len()).unwrap();
        let dot = |a: &Tensor, b: &Tensor| {
            (a * b).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        let cosine = dot(&ours, &expected) / (dot(&ours, &ours) * dot(&expected, &expected)).sqrt();
        assert!(cosine >= 0.999, "cosine {cosine}");
    }
}

#[test]
fn a_later_token_changes_every_row() {
    // Attention looks both ways: the encoder is no language model.
    let golden = Golden::load("umt5");
    let encoder = golden.encoder(DType::F32, |name| name.into());
    let (a, b) = (encode(&encoder, &[5, 6, 7, 1]), encode(&encoder, &[5, 6, 8, 1]));
    assert!(max_abs(&(a.get(0).unwrap() - b.get(0).unwrap()).unwrap()) > 1e-6);
}

#[test]
fn bad_tokens_and_interrupts_are_errors() {
    let golden = Golden::load("umt5");
    let encoder = golden.encoder(DType::F32, |name| name.into());
    let interrupt = Interrupt::default();
    let error = encoder.forward(&[97], &interrupt).unwrap_err().to_string();
    assert!(error.contains("token 97") && error.contains("vocabulary of 97"), "{error}");
    assert!(encoder.forward(&[], &interrupt).is_err());
    interrupt.raise();
    assert!(encoder.forward(&[1], &interrupt).is_err());
}

#[test]
fn cleaning_matches_ftfy() {
    let table = std::fs::read(fixture("ftfy_prompts.json")).unwrap();
    let table: Vec<(String, String)> = serde_json::from_slice(&table).unwrap();
    let wrong: Vec<_> = table
        .into_iter()
        .map(|(prompt, expected)| (clean(&prompt), prompt, expected))
        .filter(|(ours, _, expected)| ours != expected)
        .collect();
    for (ours, prompt, expected) in &wrong {
        eprintln!("{prompt:?}\n  expected {expected:?}\n  got      {ours:?}");
    }
    assert!(wrong.is_empty(), "{} prompts differ", wrong.len());
}

#[test]
fn cleaning_a_huge_prompt_is_quick() {
    for unit in ["a", "Ã", "&amp;", "â€œ ", "\u{1b}[", "ð\u{9f}", "<", " "] {
        let start = std::time::Instant::now();
        let cleaned = clean(&unit.repeat((1 << 20) / unit.len()));
        eprintln!("{unit:?}: {:?}", start.elapsed());
        assert!(cleaned.len() <= 1 << 17);
        assert!(start.elapsed().as_secs() < 5, "{unit:?} took {:?}", start.elapsed());
    }
    assert_eq!(clean(&(" ".repeat(1 << 20) + "fox")), "fox");
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn cleaning_never_fails_and_leaves_single_spaces(prompt in any::<String>()) {
        let cleaned = clean(&prompt);
        prop_assert_eq!(cleaned.trim(), &cleaned);
        prop_assert!(!cleaned.contains("  ") && !cleaned.contains(['\n', '\t']));
    }

    /// Strings of what the repairs look for.
    #[test]
    fn cleaning_survives_mojibake(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "Ã", "Â", "â€œ", "â€", "ð", "\u{9f}", "\u{a0}", " ", "&", "amp;", "&#", "x41;", "<",
                "\u{1b}[", "31m", "\u{fffd}", "\0", "í", "\u{ad}", "À", "\u{80}", "Ð", "е", "√", "é",
            ]),
            0..40,
        )
    ) {
        let cleaned = clean(&parts.concat());
        prop_assert_eq!(cleaned.trim(), cleaned.as_str());
    }
}
