//! Where a model's weights are.

use std::path::{Path, PathBuf};

use super::config::Decoder;
use super::error::{Error, Result};
use crate::checkpoint::{Located, Manifest, Role};

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsSource {
    /// Random ones of the right shapes: the speed is real, the picture is noise.
    Random {
        /// The same seed gives the same weights.
        seed: u64,
    },
    /// Checkpoints on disk.
    Files(WeightPaths),
}

/// The checkpoints of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightPaths {
    /// The transformer.
    pub dit: PathBuf,
    /// What is merged into it, at full strength, in this order.
    pub loras: Vec<PathBuf>,
    /// The text encoder.
    pub text_encoder: PathBuf,
    /// Its `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// The network that [`GeneratorConfig::decoder`](super::GeneratorConfig::decoder) names.
    pub decoder: PathBuf,
}

impl WeightPaths {
    /// Fills in each path that is empty with the model's own file, from `folder` or else from the
    /// Hugging Face cache. An error lists all that are missing.
    pub fn complete(
        self,
        model: &Manifest,
        folder: Option<&Path>,
        decoder: Decoder,
    ) -> Result<Self> {
        let mut search = Search { located: model.locate(folder), missing: Vec::new() };
        let own_lora = self.loras.is_empty() && model.file(Role::Lora).is_some();
        let paths = Self {
            dit: search.path(self.dit, Role::Dit),
            loras: match own_lora {
                true => vec![search.path(PathBuf::new(), Role::Lora)],
                false => self.loras,
            },
            text_encoder: search.path(self.text_encoder, Role::TextEncoder),
            tokenizer: search.path(self.tokenizer, Role::Tokenizer),
            decoder: search.path(self.decoder, decoder.role()),
        };
        if search.missing.is_empty() {
            return Ok(paths);
        }
        let (model, missing) = (model.name.clone(), search.missing.join(", "));
        Err(Error::MissingWeights { model, missing })
    }
}

/// Collects what is missing, so that all of it is said at once.
struct Search<'a> {
    located: Vec<Located<'a>>,
    missing: Vec<String>,
}

impl Search<'_> {
    /// The path given, or else the file of the role; an empty path if there is none.
    fn path(&mut self, given: PathBuf, role: Role) -> PathBuf {
        if given != Path::new("") {
            return given;
        }
        let missing = match self.located.iter().find(|located| located.file.role == role) {
            Some(Located { found: Some(path), .. }) => return path.clone(),
            Some(Located { file, wrong_size, .. }) => match wrong_size.first() {
                Some((path, got)) => {
                    format!("{} ({} has {got} bytes)", file.name(), path.display())
                }
                None => file.name().to_owned(),
            },
            None => format!("a file of role {role:?}, of which the model names none"),
        };
        self.missing.push(missing);
        PathBuf::new()
    }
}

impl Decoder {
    /// Its file in a manifest.
    fn role(self) -> Role {
        match self {
            Self::Full => Role::Vae,
            Self::Light => Role::LightVae,
            Self::Tiny => Role::Taehv,
            Self::LightTiny => Role::LightTaehv,
        }
    }
}
