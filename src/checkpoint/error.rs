//! What can go wrong between a file and its tensors.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::TensorShape;

/// Result of everything in this module.
pub type Result<T> = std::result::Result<T, Error>;

/// How many names of a list a message shows before it counts the rest.
const SHOWN: usize = 4;

/// Why a checkpoint, LoRA or manifest cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: no such file, no permission, an unreadable disk.
    #[error("{}: cannot be read: {source}", path.display())]
    Open {
        /// The file or folder asked for.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is there but is not a checkpoint that this crate reads.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file at fault.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// The checkpoint is sound but belongs to another network.
    #[error("{}: {}", path.display(), mismatch(missing, unexpected, wrong_shape))]
    Mismatch {
        /// The checkpoint compared.
        path: PathBuf,
        /// Tensors that the network needs and the checkpoint lacks.
        missing: Vec<TensorShape>,
        /// Tensors of the checkpoint that the network has no place for.
        unexpected: Vec<TensorShape>,
        /// Tensors that both have, in different shapes.
        wrong_shape: Vec<WrongShape>,
    },
    /// A LoRA that does not fit the checkpoint it is merged into.
    #[error("{}: {} of the LoRA do not fit: {}", path.display(), count(problems.len(), "tensor"), first(problems))]
    Lora {
        /// The LoRA's file.
        path: PathBuf,
        /// One line for each tensor or pair at fault.
        problems: Vec<String>,
    },
    /// No manifest that is part of the crate has the name.
    #[error("{name}: no such model; there are {known}")]
    UnknownModel {
        /// As it was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A manifest that is not understood.
    #[error("{}: {reason}", path.display())]
    Manifest {
        /// The manifest's file, or the name of an embedded one.
        path: PathBuf,
        /// The field, what it holds and what is accepted.
        reason: String,
    },
    /// A file that could not be fetched, or that is not the one the manifest names.
    #[error("{file}: cannot be fetched: {reason}")]
    Fetch {
        /// Repository and path of the file.
        file: String,
        /// What the server sent or what was expected and got.
        reason: String,
    },
    /// The crate was built without the feature that this needs.
    #[error("built without the feature `{0}`")]
    MissingFeature(&'static str),
}

/// A tensor that has another shape in the checkpoint than in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongShape {
    /// Upstream's name.
    pub name: String,
    /// Shape in the network.
    pub expected: Vec<usize>,
    /// Shape in the checkpoint.
    pub got: Vec<usize>,
}

impl fmt::Display for WrongShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {:?}, got {:?}", self.name, self.expected, self.got)
    }
}

impl Error {
    pub(super) fn format(path: impl Into<PathBuf>, reason: impl fmt::Display) -> Self {
        Self::Format { path: path.into(), reason: reason.to_string() }
    }

    pub(super) fn open(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Open { path: path.into(), source }
    }
}

fn mismatch(missing: &[TensorShape], unexpected: &[TensorShape], wrong: &[WrongShape]) -> String {
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!("{} missing ({})", count(missing.len(), "tensor"), first(missing)));
    }
    if !unexpected.is_empty() {
        let total = count(unexpected.len(), "tensor");
        parts.push(format!("{total} not expected ({})", first(unexpected)));
    }
    if !wrong.is_empty() {
        parts.push(format!("{} of another shape ({})", count(wrong.len(), "tensor"), first(wrong)));
    }
    parts.join("; ")
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// The first few of a list, and how many more there are.
fn first<T: fmt::Display>(list: &[T]) -> String {
    let mut shown: Vec<String> = list.iter().take(SHOWN).map(T::to_string).collect();
    if list.len() > SHOWN {
        shown.push(format!("and {} more", list.len() - SHOWN));
    }
    shown.join(", ")
}
