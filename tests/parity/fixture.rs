//! A folder of golden tensors, and the report on all of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use gstblockcascade::checkpoint::Checkpoint;
use serde::de::DeserializeOwned;

/// Largest |difference| allowed, relative to `max(1, max |expected|)`.
const TOLERANCE: f32 = 2e-4;

pub struct Fixture {
    pub folder: PathBuf,
    config: serde_json::Value,
    expected: HashMap<String, Tensor>,
}

impl Fixture {
    pub fn open(folder: &Path) -> Result<Self> {
        let config = std::fs::read_to_string(folder.join("config.json"))?;
        let expected = folder.join("expected.safetensors");
        Ok(Self {
            folder: folder.to_owned(),
            config: serde_json::from_str(&config)?,
            expected: candle_core::safetensors::load(expected, &Device::Cpu)?,
        })
    }

    pub fn kind(&self) -> Result<&str> {
        self.config["kind"].as_str().context("config.json has no kind")
    }

    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_value(self.config.clone())?)
    }

    /// A golden tensor, input or output.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.expected.get(name).with_context(|| format!("expected.safetensors has no {name}"))
    }

    /// Names of golden tensors that start with `prefix`, sorted.
    pub fn names(&self, prefix: &str) -> Vec<&str> {
        let names = self.expected.keys().map(String::as_str);
        let mut names: Vec<_> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_unstable();
        names
    }

    /// The folder's weights, under whichever names, through the loader that users have.
    pub fn weights(&self) -> Result<VarBuilder<'static>> {
        let checkpoint = Checkpoint::open(self.folder.join("model.safetensors"))?;
        Ok(checkpoint.var_builder(DType::F32, &Device::Cpu))
    }
}

#[derive(Default)]
pub struct Report {
    tensors: usize,
    folders: usize,
    failures: usize,
    worst: f32,
}

impl Report {
    pub fn folder(&mut self, folder: &Path) {
        self.folders += 1;
        println!("{}", folder.file_name().unwrap_or_default().to_string_lossy());
    }

    /// Compares one tensor; a difference is reported, not returned.
    pub fn compare(&mut self, name: &str, got: &Tensor, expected: &Tensor) -> Result<()> {
        if got.dims() != expected.dims() {
            self.failed(&format!("{name}: shape {:?}, expected {:?}", got.dims(), expected.dims()));
            return Ok(());
        }
        let expected = expected.to_dtype(DType::F32)?;
        let got = got.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let largest = expected.abs()?.max_all()?.to_scalar::<f32>()?.max(1.0);
        let difference = (got - expected)?.abs()?.flatten_all()?.to_vec1::<f32>()?;
        // A NaN is a failure, which a plain maximum would hide.
        let difference = difference.into_iter().map(|x| if x.is_nan() { f32::INFINITY } else { x });
        let difference = difference.fold(0.0, f32::max) / largest;
        self.tensors += 1;
        self.worst = self.worst.max(difference);
        let verdict = if difference <= TOLERANCE { "ok" } else { "FAIL" };
        self.failures += usize::from(difference > TOLERANCE);
        println!("  {verdict:4} {difference:8.1e}  {name}");
        Ok(())
    }

    pub fn failed(&mut self, reason: &str) {
        self.failures += 1;
        println!("  FAIL {reason}");
    }

    pub fn finish(self) -> ExitCode {
        let Self { tensors, folders, failures, worst } = self;
        println!("parity: {tensors} tensors in {folders} folders, worst {worst:.1e}");
        if failures > 0 {
            println!("{failures} beyond {TOLERANCE:.0e}");
        }
        if failures == 0 && tensors > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
