//! A folder of golden tensors.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use gstblockcascade::checkpoint::Checkpoint;
use gstblockcascade::wan::vae::WanVaeConfig;
use serde::de::DeserializeOwned;

use super::target::Target;

const CONFIG: &str = "config.json";
const EXPECTED: &str = "expected.safetensors";

/// All folders at or below `root` that hold a fixture, or parts of one; sorted.
pub fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    // By their real paths, so that a link to a folder above ends the walk.
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        let context = || folder.display().to_string();
        if !seen.insert(folder.canonicalize().with_context(context)?) {
            continue;
        }
        if [CONFIG, EXPECTED].iter().any(|part| folder.join(part).exists()) {
            found.push(folder.clone());
        }
        for entry in std::fs::read_dir(&folder).with_context(context)? {
            let path = entry.with_context(context)?.path();
            open.extend(path.is_dir().then_some(path));
        }
    }
    found.sort();
    Ok(found)
}

pub struct Fixture {
    folder: PathBuf,
    config: serde_json::Value,
    target: Target,
    expected: HashMap<String, Tensor>,
    /// Names of the golden tensors that were asked for.
    used: RefCell<HashSet<String>>,
}

impl Fixture {
    pub fn open(folder: &Path, target: &Target) -> Result<Self> {
        let config = std::fs::read_to_string(folder.join(CONFIG)).context(CONFIG)?;
        let expected = folder.join(EXPECTED);
        Ok(Self {
            folder: folder.to_owned(),
            config: serde_json::from_str(&config).context(CONFIG)?,
            expected: candle_core::safetensors::load(expected, &target.device).context(EXPECTED)?,
            target: target.clone(),
            used: RefCell::default(),
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
        self.used.borrow_mut().insert(name.to_owned());
        self.expected.get(name).with_context(|| format!("{EXPECTED} has no {name}"))
    }

    /// Names of golden tensors that nobody asked for, sorted.
    pub fn unused(&self) -> Vec<&str> {
        let used = self.used.borrow();
        self.names("").into_iter().filter(|name| !used.contains(*name)).collect()
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
        self.weights_in(self.target.dtype)
    }

    /// The same for an auto-encoder.
    pub fn decoder_weights(&self, config: &WanVaeConfig) -> Result<VarBuilder<'static>> {
        self.weights_in(self.target.decoder_dtype(|dtype| config.dtype(dtype)))
    }

    fn weights_in(&self, dtype: DType) -> Result<VarBuilder<'static>> {
        let checkpoint = Checkpoint::open(self.folder.join("model.safetensors"))?;
        Ok(checkpoint.var_builder(dtype, &self.target.device))
    }

    pub fn target(&self) -> &Target {
        &self.target
    }
}
