//! Files that are part of the crate: the weights of the model that needs no others.

use std::fmt;

/// A file that is part of the crate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedFile {
    /// Its path below `models/`.
    path: &'static str,
    bytes: &'static [u8],
}

macro_rules! embed {
    ($path:literal) => {
        EmbeddedFile { path: $path, bytes: include_bytes!(concat!("../../models/", $path)) }
    };
}

/// All of them; a static, so that the program holds each once.
static FILES: [EmbeddedFile; 4] = [
    embed!("pocket/dit.safetensors"),
    embed!("pocket/text_encoder.safetensors"),
    embed!("pocket/tokenizer.json"),
    embed!("pocket/vae.safetensors"),
];

impl EmbeddedFile {
    /// The file at a path below `models/`.
    pub(super) fn find(path: &str) -> Option<Self> {
        FILES.iter().find(|file| file.path == path).copied()
    }

    /// What is in it.
    pub fn bytes(&self) -> &'static [u8] {
        self.bytes
    }
}

impl fmt::Display for EmbeddedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (embedded)", self.path)
    }
}

/// The name alone: nobody wants to read millions of bytes.
impl fmt::Debug for EmbeddedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::super::Manifest;
    use super::*;

    #[test]
    fn manifests_have_the_size_and_hash_of_every_embedded_file() {
        let manifests: Vec<_> =
            Manifest::names().map(|name| Manifest::named(name).unwrap()).collect();
        for embedded in FILES {
            let mut files = manifests.iter().flat_map(|manifest| &manifest.files);
            let file = files.find(|file| file.embedded() == Some(embedded));
            let file = file.unwrap_or_else(|| panic!("no manifest names {embedded}"));
            let (size, sha256) = (embedded.bytes.len(), Sha256::digest(embedded.bytes));
            let got = (file.size, file.sha256.as_deref());
            let expected = (Some(size as u64), Some(&*format!("{sha256:x}")));
            assert!(
                got == expected,
                "{embedded}: size = {size}, sha256 = \"{sha256:x}\"; got {got:?}"
            );
        }
    }
}
