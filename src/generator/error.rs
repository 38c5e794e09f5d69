//! What can go wrong between a prompt and its frames.

use candle_core::Error as Cause;

use crate::checkpoint;

/// One variant for each thing that a caller does differently.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of range or does not fit the others.
    #[error("{field}: {reason}")]
    Config {
        /// The setting's name.
        field: &'static str,
        /// The value, and what is accepted.
        reason: String,
    },
    /// Files that a model needs are neither in the given folder nor in the Hugging Face cache.
    #[error(
        "{model}: not on disk: {missing}; `blockcascade fetch {model}{roles}` gets what is missing"
    )]
    MissingWeights {
        /// The model's name.
        model: String,
        /// Which files.
        missing: String,
        /// What `blockcascade fetch` has to be told behind the model's name; nothing, as a rule.
        roles: String,
    },
    /// A checkpoint, LoRA, tokenizer or manifest is not there or cannot be used.
    #[error(transparent)]
    Weights(checkpoint::Error),
    /// A device is absent, or failed while the model was placed on it.
    #[error("device {device}: {source}")]
    Device {
        /// As it was asked for.
        device: String,
        /// What the device said.
        source: Cause,
    },
    /// Text encoding, denoising or decoding failed; the stream cannot go on.
    #[error("{work}: {source}")]
    Worker {
        /// What was being done.
        work: String,
        /// Why it failed.
        source: Cause,
    },
    /// [`Controls::cancel`](super::Controls::cancel) was called; nothing is lost.
    #[error("cancelled")]
    Cancelled,
    /// The program was built without what is asked for.
    #[error("this build has no support for {0}: build with the cargo feature of that name")]
    MissingFeature(&'static str),
}

impl Error {
    /// A setting that is refused.
    pub(crate) fn config(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Config { field, reason: reason.into() }
    }

    pub(super) fn worker(work: impl Into<String>, source: Cause) -> Self {
        Self::Worker { work: work.into(), source }
    }
}

/// The result of everything in [`generator`](super).
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<checkpoint::Error> for Error {
    fn from(error: checkpoint::Error) -> Self {
        match error {
            checkpoint::Error::MissingFeature(feature) => Self::MissingFeature(feature),
            other => Self::Weights(other),
        }
    }
}
