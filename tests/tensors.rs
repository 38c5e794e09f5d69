//! Networks ask for exactly the tensors of published checkpoints, listed in `tests/tensors`.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests, which clippy does not see

use std::path::Path;

use gstblockcascade::checkpoint::{TensorShape, requested};
use gstblockcascade::wan::text::{Umt5Config, Umt5Encoder};
use gstblockcascade::wan::tiny_vae::{TinyDecoder, TinyEncoder, TinyVaeConfig};
use gstblockcascade::wan::vae::{WanDecoder, WanEncoder, WanVaeConfig};
use gstblockcascade::wan::{WanConfig, WanDit};

/// One tensor a line, `name<TAB>dimxdim`, sorted.
fn lines(tensors: Vec<TensorShape>) -> Vec<String> {
    let line = |TensorShape { name, shape }| {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        format!("{name}\t{}", shape.join("x"))
    };
    let mut lines: Vec<String> = tensors.into_iter().map(line).collect();
    lines.sort();
    lines
}

fn check(file: &str, count: usize, asked: candle_core::Result<Vec<TensorShape>>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensors").join(file);
    let mut published: Vec<String> =
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
    published.sort();
    let asked = lines(asked.unwrap());
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).cloned().collect()
    };
    let (missing, unasked) = (only(&asked, &published), only(&published, &asked));
    assert!(
        missing.is_empty() && unasked.is_empty(),
        "{file}: asked for but not in it {missing:#?}, in it but not asked for {unasked:#?}"
    );
    assert_eq!((asked.len(), published.len()), (count, count), "{file}: a tensor twice");
}

fn wan_vae(config: &WanVaeConfig) -> candle_core::Result<Vec<TensorShape>> {
    requested(|vb| Ok((WanDecoder::new(config, vb.clone())?, WanEncoder::new(config, vb)?)))
}

fn tiny_vae(config: &TinyVaeConfig) -> candle_core::Result<Vec<TensorShape>> {
    requested(|vb| Ok((TinyDecoder::new(config, vb.clone())?, TinyEncoder::new(config, vb)?)))
}

#[test]
fn dit() {
    let asked = |config: WanConfig| requested(|vb| WanDit::new(&config, vb));
    check("dit_1_3b.tsv", 825, asked(WanConfig::t2v_1_3b()));
    check("dit_14b.tsv", 1095, asked(WanConfig::t2v_14b()));
}

#[test]
fn auto_encoders() {
    check("vae_wan21.tsv", 194, wan_vae(&WanVaeConfig::wan21()));
    check("lightvae_wan21.tsv", 194, wan_vae(&WanVaeConfig::light()));
}

#[test]
fn tiny_auto_encoders() {
    check("taew2_1.tsv", 128, tiny_vae(&TinyVaeConfig::taew2_1()));
    check("taew2_1.tsv", 128, tiny_vae(&TinyVaeConfig::light()));
}

#[test]
fn text_encoder() {
    let config = Umt5Config::xxl();
    check("umt5_xxl_wan.tsv", 242, requested(|vb| Umt5Encoder::new(&config, vb)));
}
