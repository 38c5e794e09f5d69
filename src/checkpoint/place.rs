//! Where a file is: on disk, or in the crate itself.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use super::embedded::EmbeddedFile;
use super::error::{Error, Result};

/// Where a file of weights is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On disk.
    Disk(PathBuf),
    /// In the crate.
    Embedded(EmbeddedFile),
}

impl Place {
    /// The whole contents, for files that are small.
    pub fn read(&self) -> Result<Cow<'static, [u8]>> {
        match self {
            Self::Disk(path) => {
                std::fs::read(path).map(Cow::Owned).map_err(|e| Error::open(path, e))
            }
            Self::Embedded(file) => Ok(Cow::Borrowed(file.bytes())),
        }
    }
}

impl<P: AsRef<Path>> From<P> for Place {
    fn from(path: P) -> Self {
        Self::Disk(path.as_ref().to_owned())
    }
}

impl From<&Self> for Place {
    fn from(place: &Self) -> Self {
        place.clone()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(path) => path.display().fmt(f),
            Self::Embedded(file) => file.fmt(f),
        }
    }
}
