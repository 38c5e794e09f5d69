//! Checkpoint files to named tensors.
//!
//! A [`Checkpoint`] is a list of tensors in `.safetensors`, sharded `.safetensors`, PyTorch's `.pt` and
//! `.pth` of either kind, or embedded bytes. Opening one reads only headers: names become upstream's (in `names.rs`), every
//! length is checked against the file. [`Checkpoint::check`] compares the list with what a network
//! asks for ([`requested`]), [`Checkpoint::with_lora`] adds a LoRA, and [`Checkpoint::var_builder`]
//! hands the tensors out one by one, each converted once on its way to the device.
//!
//! [`Manifest`] says which files make a model: some are embedded in the crate, the others lie on disk,
//! where [`Hub`] fetches them when asked to. A [`Place`] is either.

mod backend;
mod cache;
mod embedded;
mod error;
mod legacy;
mod lora;
mod manifest;
mod names;
mod open;
mod pickle;
mod place;
mod random;
mod requested;
mod safetensors;
mod source;
mod stored;
mod torch;

#[cfg(feature = "hub")]
mod hub;
#[cfg(not(feature = "hub"))]
#[path = "hub_off.rs"]
mod hub;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use crate::model::Interrupt;
use lora::Delta;
use source::Source;
use stored::Stored;

pub use ::safetensors::Dtype as StoredDtype;
pub use embedded::EmbeddedFile;
pub use error::{Error, Result, WrongShape};
pub use hub::Hub;
pub(crate) use manifest::TIMESTEP_SHIFTS;
pub use manifest::{
    Architecture, Family, Licence, Located, Manifest, ModelFile, Preset, Progress, Role,
};
pub use place::Place;
pub use random::random;
pub use requested::requested;

/// The tensors of one or more files, by upstream's names. Holds files open but no weights.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// What was opened: a file, a folder or the name of bytes in memory.
    path: PathBuf,
    tensors: BTreeMap<String, Entry>,
    /// What LoRAs add, by the name of the weight they change.
    deltas: HashMap<String, Vec<Delta>>,
    interrupt: Interrupt,
}

/// A tensor and the file it is in, which other entries share.
#[derive(Clone, Debug)]
struct Entry {
    source: Arc<Source>,
    stored: Stored,
}

/// One tensor of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// Upstream's name.
    pub name: &'a str,
    /// Element type in the file.
    pub dtype: StoredDtype,
    /// Length of each axis.
    pub shape: &'a [usize],
    /// The file that holds the tensor, one of several in a sharded checkpoint.
    pub file: &'a Path,
}

/// Name and shape of a tensor that a network asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorShape {
    /// Upstream's name.
    pub name: String,
    /// Length of each axis.
    pub shape: Vec<usize>,
}

impl fmt::Display for TensorShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.shape)
    }
}

impl Checkpoint {
    /// Opens a `.safetensors` file, an index of several, a `.pt` or `.pth` file, a folder with one
    /// of these, or an embedded file. Reads headers only.
    pub fn open(place: impl Into<Place>) -> Result<Self> {
        open::place(&place.into(), open::WEIGHTS)
    }

    /// Reads a checkpoint in memory, `.safetensors` or `.pt`; `name` stands for it in messages.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        open::file(Source::memory(name, bytes.into()), open::WEIGHTS)
    }

    /// What was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(name, entry)| TensorInfo {
            name,
            dtype: entry.stored.dtype,
            shape: &entry.stored.shape,
            file: entry.source.path(),
        })
    }

    /// Whether the checkpoint is the network's: it has every `expected` tensor in its shape and in
    /// floating point, and no other than those and the `known`, which belong to parts of the network
    /// that are not used.
    pub fn check(&self, expected: &[TensorShape], known: &[TensorShape]) -> Result<()> {
        let (mut missing, mut wrong_shape) = (Vec::new(), Vec::new());
        for tensor in expected {
            match self.tensors.get(&tensor.name) {
                None => missing.push(tensor.clone()),
                Some(entry) if entry.stored.shape != tensor.shape => wrong_shape.push(WrongShape {
                    name: tensor.name.clone(),
                    expected: tensor.shape.clone(),
                    got: entry.stored.shape.clone(),
                }),
                Some(_) => {}
            }
        }
        let unexpected = self.unexpected(expected, known);
        if missing.is_empty() && unexpected.is_empty() && wrong_shape.is_empty() {
            return self.check_dtypes(expected);
        }
        Err(Error::Mismatch { path: self.path.clone(), missing, unexpected, wrong_shape })
    }

    fn check_dtypes(&self, expected: &[TensorShape]) -> Result<()> {
        let entries = expected.iter().filter_map(|tensor| self.tensors.get_key_value(&tensor.name));
        match entries.into_iter().find(|(_, entry)| !entry.stored.is_float()) {
            None => Ok(()),
            Some((name, Entry { stored, .. })) => {
                let reason = format!("{name}: expected floating point, got {}", stored.dtype);
                Err(Error::format(&self.path, reason))
            }
        }
    }

    fn unexpected(&self, expected: &[TensorShape], known: &[TensorShape]) -> Vec<TensorShape> {
        let named: std::collections::HashSet<&str> =
            expected.iter().chain(known).map(|tensor| tensor.name.as_str()).collect();
        let others = self.tensors.iter().filter(|(name, _)| !named.contains(name.as_str()));
        others
            .filter(|(name, _)| !names::is_vocabulary(name))
            .map(|(name, entry)| TensorShape {
                name: name.clone(),
                shape: entry.stored.shape.clone(),
            })
            .collect()
    }

    /// Adds a LoRA to the weights, each at the moment it is read: `W + strength·(alpha/rank)·B·A`
    /// in f32. May be called again with another.
    pub fn with_lora(mut self, lora: impl Into<Place>, strength: f64) -> Result<Self> {
        let lora = open::place(&lora.into(), open::LORA)?;
        for (name, delta) in lora::deltas(&lora, &self, strength)? {
            self.deltas.entry(name).or_default().push(delta);
        }
        Ok(self)
    }

    /// Keeps of every tensor that has more rows than in `wanted`, and fits it otherwise, the last ones.
    pub fn with_last_rows<'a>(mut self, wanted: impl IntoIterator<Item = &'a TensorShape>) -> Self {
        for TensorShape { name, shape } in wanted {
            if let Some(entry) = self.tensors.get_mut(name) {
                entry.stored.keep_last_rows(shape);
            }
        }
        self
    }

    /// Stops loading before the next tensor once `interrupt` is raised.
    pub fn with_interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Hands the tensors out as `dtype` (f32, f16 or bf16) on `device`. Host memory holds no more
    /// than what was handed out and the tensor being read.
    pub fn var_builder(self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self), dtype, device.clone())
    }
}
