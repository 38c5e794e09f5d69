//! Which files a model is made of: those named one by one, else its own.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use gstblockcascade::generator::{Error, GeneratorConfig, WeightPaths, WeightsSource};

/// Where weights come from.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Weights")]
pub struct WeightArgs {
    /// Uses random weights instead of files: the speed is real, the picture is noise
    #[arg(long, value_name = "SEED", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    #[arg(conflicts_with_all = ["folder", "weights_dit", "weights_lora"])]
    #[arg(conflicts_with_all = ["weights_text_encoder", "weights_tokenizer", "weights_decoder"])]
    random_weights: Option<u64>,
    /// Looks for files here, then in the cache that Hugging Face tools share
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The transformer
    #[arg(long, value_name = "FILE")]
    weights_dit: Option<PathBuf>,
    /// A LoRA to merge into the transformer, after the model's own; may be repeated
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
    /// The source of a model's weights.
    pub fn source(&self) -> WeightsSource {
        if let Some(seed) = self.random_weights {
            return WeightsSource::Random { seed };
        }
        WeightsSource::Files(WeightPaths {
            folder: self.folder.clone(),
            dit: self.weights_dit.clone(),
            loras: self.weights_lora.clone(),
            text_encoder: self.weights_text_encoder.clone(),
            tokenizer: self.weights_tokenizer.clone(),
            decoder: self.weights_decoder.clone(),
        })
    }
}

/// Whether all files of the model's own are there; an error says which are missing, and how to get them: `model` is as it was
/// asked for.
pub fn check(config: &GeneratorConfig, model: &str) -> Result<()> {
    config.check_weights().map_err(|error| match error {
        Error::MissingWeights { missing, roles, .. } => anyhow!(
            "{model}: not on disk: {missing}; run `blockcascade fetch {model}{roles}`, or name a --folder, \
             single files with --weights-..., or --random-weights",
        ),
        error => error.into(),
    })
}
