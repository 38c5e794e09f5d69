//! Which files a model is made of: those named one by one, else those found on disk.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use gstblockcascade::checkpoint::{Manifest, Role};
use gstblockcascade::generator::{Decoder, WeightPaths, WeightsSource};

use crate::roles;

/// Where weights come from.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Weights")]
pub struct WeightArgs {
    /// Uses random weights instead of files: the speed is real, the picture is noise
    #[arg(long, value_name = "SEED", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    random_weights: Option<u64>,
    /// Looks for files here, then in the cache that Hugging Face tools share
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The transformer
    #[arg(long, value_name = "FILE")]
    weights_dit: Option<PathBuf>,
    /// A LoRA to merge into the transformer, in place of the model's own; may be repeated
    #[arg(long, value_name = "FILE")]
    weights_lora: Vec<PathBuf>,
    /// The text encoder
    #[arg(long, value_name = "FILE")]
    weights_text_encoder: Option<PathBuf>,
    /// The text encoder's tokenizer.json
    #[arg(long, value_name = "FILE")]
    weights_tokenizer: Option<PathBuf>,
    /// The network that --decoder names
    #[arg(long, value_name = "FILE")]
    weights_decoder: Option<PathBuf>,
}

impl WeightArgs {
    /// The source of a model's weights; an error names all files that are missing.
    pub fn resolve(&self, model: &Manifest, decoder: Decoder) -> Result<WeightsSource> {
        if let Some(seed) = self.random_weights {
            return Ok(WeightsSource::Random { seed });
        }
        if model.files.is_empty() {
            return Ok(WeightsSource::Random { seed: 0 });
        }
        let mut search = Search { model, folder: self.folder.as_deref(), missing: Vec::new() };
        let loras = match model.file(Role::Lora) {
            Some(_) if self.weights_lora.is_empty() => vec![search.find(Role::Lora, None)],
            _ => self.weights_lora.clone(),
        };
        let paths = WeightPaths {
            dit: search.find(Role::Dit, self.weights_dit.as_deref()),
            loras,
            text_encoder: search.find(Role::TextEncoder, self.weights_text_encoder.as_deref()),
            tokenizer: search.find(Role::Tokenizer, self.weights_tokenizer.as_deref()),
            decoder: search.find(decoder.role(), self.weights_decoder.as_deref()),
        };
        search.done().map(|()| WeightsSource::Files(paths))
    }
}

/// Collects what is missing, so that all of it is said at once.
struct Search<'a> {
    model: &'a Manifest,
    folder: Option<&'a Path>,
    missing: Vec<String>,
}

impl Search<'_> {
    /// The path given, or else the file of the role; an empty path if there is none.
    fn find(&mut self, role: Role, given: Option<&Path>) -> PathBuf {
        if let Some(path) = given {
            return path.to_owned();
        }
        let located = self.model.locate(self.folder);
        let located = located.into_iter().find(|located| located.file.role == role);
        if let Some(path) = located.as_ref().and_then(|located| located.found.clone()) {
            return path;
        }
        let wrong = located.as_ref().and_then(|located| located.wrong_size.first());
        let state = match (wrong, &located) {
            (Some((path, got)), _) => format!(" ({} has {got} bytes)", path.display()),
            (None, Some(located)) => format!(" ({})", located.file.path),
            (None, None) => " (this model names none)".to_owned(),
        };
        self.missing.push(format!("{}{state}", roles::name(role)));
        PathBuf::new()
    }

    fn done(self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let (name, missing) = (&self.model.name, self.missing.join(", "));
        bail!(
            "weights of {name}: missing {missing}; run `blockcascade fetch {name}`, or name a \
             --folder, single files with --weights-..., or --random-weights"
        )
    }
}
