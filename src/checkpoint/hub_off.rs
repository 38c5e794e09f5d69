//! What stands in for the hub when the crate is built without it.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::manifest::{ModelFile, Progress};

/// Fetches files from the Hugging Face hub; not in this build.
#[derive(Debug)]
pub struct Hub {
    /// Nobody can make one.
    never: std::convert::Infallible,
}

impl Hub {
    /// An error that names the feature `hub`.
    pub fn from_env() -> Result<Self> {
        Err(Error::MissingFeature("hub"))
    }

    /// An error that names the feature `hub`.
    pub fn at(_endpoint: &str, _cache: &Path) -> Result<Self> {
        Err(Error::MissingFeature("hub"))
    }

    /// Never called: there is no `Hub` in this build.
    pub fn fetch(&self, _file: &ModelFile, _progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        match self.never {}
    }
}
