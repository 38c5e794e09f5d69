//! `gpu DEVICE small|whole WORKLOAD...`: what a GPU's time goes into when it makes 832x480, a process for
//! all, a line of JSON for each: median and slowest of the runs in ms, and what was in use at most.
//! `benches/gpu/run.sh` sets it beside PyTorch.

#![allow(clippy::print_stdout)] // what it is for

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Result, Tensor};
use gstblockcascade::device::{self, DeviceSpec};
use gstblockcascade::model::Interrupt;
use gstblockcascade::wan::WanConfig;
use gstblockcascade::wan::text::{Umt5Config, Umt5Encoder};
use gstblockcascade::wan::tiny_vae::TinyVaeConfig;
use gstblockcascade::wan::vae::WanVaeConfig;
use serde_json::json;

use workloads::{Size, Target, Work, dit, taehv, vae};

#[allow(dead_code)] // the workloads of CPUs
#[path = "../workloads/mod.rs"]
mod workloads;

/// Rows and columns of a latent: of 832x480, and of what a CPU gets through.
const WHOLE: (usize, usize) = (60, 104);
const SMALL: (usize, usize) = (8, 8);
const RUNS: usize = 20;
const WARM: usize = 5;

type Make = fn(&Target, Size) -> Result<Work>;

const WORKLOADS: [(&str, Make); 9] = [
    ("dit_1_3b_kv6", |target, size| dit_1_3b(target, size, 6)),
    ("dit_1_3b_kv9", |target, size| dit_1_3b(target, size, 9)),
    ("dit_1_3b_kv12", |target, size| dit_1_3b(target, size, 12)),
    ("dit_1_3b_kv18", |target, size| dit_1_3b(target, size, 18)),
    ("dit_1_3b_kv21", |target, size| dit_1_3b(target, size, 21)),
    ("dit_14b_4_layers_kv21", dit_14b),
    ("vae", |target, size| match size {
        Size::Whole => vae(target, &WanVaeConfig::wan21(), WHOLE),
        Size::Small => vae(target, &WanVaeConfig::pocket(), SMALL),
    }),
    ("taehv", |target, size| taehv(target, &TinyVaeConfig::taew2_1(), latent(size))),
    ("umt5_77", umt5),
];

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (device, size, names) = match words.as_slice() {
        [device, size, names @ ..] if size == "whole" => (device, Size::Whole, names),
        [device, size, names @ ..] if size == "small" => (device, Size::Small, names),
        _ => return Err("usage: gpu DEVICE small|whole [WORKLOAD...]".into()),
    };
    let device = device.parse::<DeviceSpec>()?.open()?;
    let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    let target = Target { device, dtype };
    for (name, make) in WORKLOADS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            println!("{}", measure(&target, name, make(&target, size)?)?);
        }
    }
    Ok(())
}

fn measure(target: &Target, name: &str, mut work: Work) -> Result<serde_json::Value> {
    device::keep_memory(&target.device)?;
    device::peak_memory(&target.device)?; // counts from here
    let mut run = || {
        let begun = Instant::now();
        work()?;
        target.device.synchronize()?;
        Ok::<_, candle_core::Error>(begun.elapsed().as_secs_f64() * 1e3)
    };
    (0..WARM).try_for_each(|_| run().map(drop))?;
    let mut times = (0..RUNS).map(|_| run()).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    let used = device::peak_memory(&target.device)?.map(|bytes| bytes >> 20);
    Ok(json!({
        "bench": name, "peer": "ours", "ms": times[RUNS / 2], "worst_ms": times[RUNS - 1], "mib": used,
    }))
}

fn latent(size: Size) -> (usize, usize) {
    match size {
        Size::Whole => WHOLE,
        Size::Small => SMALL,
    }
}

/// A block behind so many latent frames.
fn dit_1_3b(target: &Target, size: Size, past: usize) -> Result<Work> {
    let config = match size {
        Size::Whole => WanConfig::t2v_1_3b(),
        Size::Small => WanConfig::pocket(),
    };
    dit(target, &config, latent(size), past)
}

fn dit_14b(target: &Target, size: Size) -> Result<Work> {
    let config = match size {
        Size::Whole => WanConfig { num_layers: 4, ..WanConfig::t2v_14b() },
        Size::Small => WanConfig::pocket(),
    };
    dit(target, &config, latent(size), 21)
}

/// A prompt of 77 tokens.
fn umt5(target: &Target, size: Size) -> Result<Work> {
    let config = match size {
        Size::Whole => Umt5Config::xxl(),
        Size::Small => Umt5Config::pocket(),
    };
    let encoder = Umt5Encoder::new(&config, target.weights())?;
    let ids: Vec<u32> = (0..77).collect();
    Ok(Box::new(move || -> Result<Tensor> { encoder.forward(&ids, &Interrupt::default()) }))
}
