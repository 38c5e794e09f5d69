//! The flags of `generate`, and the settings that they make.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use gstblockcascade::device::{DeviceSpec, Devices};
use gstblockcascade::generator::{FrameSize, GeneratorConfig, Prompt};

use super::length::{Length, LengthArgs};
use super::weights::{self, WeightArgs};
use crate::choices::{Decoder, Dtype};
use crate::manifest;
use crate::preset::PresetArgs;
use crate::view::ViewArgs;

/// Makes a video of a prompt.
#[derive(clap::Args)]
pub struct Args {
    /// What to show
    prompt: String,
    /// Another prompt from a block on, counted from 0; may be repeated
    #[arg(long, value_name = "BLOCK:TEXT")]
    prompt_at: Vec<PromptAt>,
    /// Name of the model, or its manifest
    #[arg(long, default_value = "pocket")]
    model: String,
    #[command(flatten)]
    length: LengthArgs,
    /// Size of the frames, in multiples of 16 [default: the model's]
    #[arg(long, value_name = "WxH")]
    size: Option<FrameSize>,
    /// The same seed gives the same frames
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which network makes frames of latents
    #[arg(long, value_enum, default_value_t)]
    decoder: Decoder,
    /// What to compute on: auto, cpu or cuda:N, or a list with a worker for each, such as cuda:0,1
    #[arg(long, visible_alias = "device", value_name = "DEVICE,...", default_value_t)]
    devices: Devices,
    /// What to decode on [default: the first of the devices]
    #[arg(long, value_name = "DEVICE")]
    decoder_device: Option<DeviceSpec>,
    /// Threads of each worker on a CPU [default: its share of the cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Number format of the transformer and, on a GPU, of the decoder, of which tiny ones have f16 for bf16; the
    /// text encoder is in bf16 unless this is f32
    #[arg(long, value_enum, default_value_t)]
    dtype: Dtype,
    /// NAME.y4m, - for standard output, a folder, or pictures such as frame-%05d.png
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Overwrites what is there
    #[arg(long)]
    pub force: bool,
    // Last, because what follows a group of flags would be listed under its heading.
    #[command(flatten)]
    cascade: CascadeArgs,
    #[command(flatten)]
    weights: WeightArgs,
}

/// How blocks are made.
#[derive(clap::Args)]
#[command(next_help_heading = "Cascade")]
struct CascadeArgs {
    /// Blocks in flight at most, up to the passes that each makes: its steps and, unless history is
    /// stage-matched, one more; 1 makes them one by one
    #[arg(long, visible_alias = "cascade-width", value_name = "N", default_value_t = 1)]
    width: usize,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    preset: PresetArgs,
}

impl Args {
    /// The settings, checked, and the length of the stream.
    pub fn config(&self) -> Result<(GeneratorConfig, Length)> {
        let mut model = manifest(&self.model)?;
        self.cascade.preset.apply(&mut model.preset);
        let length = self.length.resolve(&model.preset)?;
        let config = self.cascade.view.applied(GeneratorConfig {
            weights: self.weights.source(),
            devices: self.devices.clone(),
            decoder_device: self.decoder_device,
            threads: self.threads,
            dtype: self.dtype.into(),
            decoder: self.decoder.into(),
            size: self.size,
            cascade_width: self.cascade.width,
            prompt: self.prompt.clone(),
            seed: self.seed,
            blocks: Some(length.blocks),
            ..GeneratorConfig::new(model)
        });
        config.validate()?;
        weights::check(&config, &self.model)?;
        Ok((config, length))
    }

    /// The prompts that are set for later blocks of a stream of `blocks`.
    pub fn prompts(&self, blocks: u64) -> Result<Vec<Prompt>> {
        let prompt = |PromptAt { block, text }: &PromptAt| {
            if *block >= blocks {
                bail!("prompt-at: got block {block}, expected 0 to {}", blocks - 1);
            }
            Ok(Prompt { from_block: Some(*block), ..text.clone().into() })
        };
        self.prompt_at.iter().map(prompt).collect()
    }
}

/// `BLOCK:TEXT`.
#[derive(Clone, Debug)]
struct PromptAt {
    block: u64,
    text: String,
}

impl FromStr for PromptAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once(':').and_then(|(block, text)| Some((block.parse().ok()?, text)));
        let (block, prompt) = parts.ok_or("expected BLOCK:TEXT, such as 4:night falls")?;
        Ok(Self { block, text: prompt.trim().to_owned() })
    }
}
