//! The flags of `generate`, and the settings that they make.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::ValueEnum;
use gstblockcascade::cascade::{AttentionMode, HistoryBudget};
use gstblockcascade::device::DeviceSpec;
use gstblockcascade::generator::{self, FrameSize, GeneratorConfig, Prompt};

use super::length::{Length, LengthArgs};
use super::weights::{self, WeightArgs};
use crate::manifest;
use crate::steps::Steps;

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
    /// What to compute on: auto, cpu or cuda:N
    #[arg(long, default_value_t)]
    device: DeviceSpec,
    /// Number format of weights and activations
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
    /// Blocks in flight at most, up to one more than there are steps; 1 makes them one by one
    #[arg(long, value_name = "N", default_value_t = 1)]
    width: usize,
    /// What blocks in flight see of each other
    #[arg(long, value_enum, default_value_t)]
    attention: Attention,
    /// Whether blocks in flight come on top of the window or count against it
    #[arg(long, value_enum, default_value_t)]
    history_budget: Budget,
    /// Most recent clean blocks that a block sees [default: the model's]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// First blocks, seen by all others [default: the model's]
    #[arg(long, value_name = "N")]
    sink: Option<usize>,
    /// Falling denoising steps of 0 to 1000 [default: the model's]
    #[arg(long, value_name = "N,N,...")]
    steps: Option<Steps>,
}

impl Args {
    /// The settings, checked, and the length of the stream.
    pub fn config(&self) -> Result<(GeneratorConfig, Length)> {
        let mut model = manifest(&self.model)?;
        let preset = &mut model.preset;
        preset.window = self.cascade.window.unwrap_or(preset.window);
        preset.sink = self.cascade.sink.unwrap_or(preset.sink);
        if let Some(Steps(steps)) = &self.cascade.steps {
            preset.denoising_steps.clone_from(steps);
        }
        let length = self.length.resolve(preset)?;
        let config = GeneratorConfig {
            weights: self.weights.source(),
            device: self.device,
            dtype: self.dtype.into(),
            decoder: self.decoder.into(),
            size: self.size,
            cascade_width: self.cascade.width,
            attention: self.cascade.attention.into(),
            history_budget: self.cascade.history_budget.into(),
            prompt: self.prompt.clone(),
            seed: self.seed,
            blocks: Some(length.blocks),
            ..GeneratorConfig::new(model)
        };
        config.validate()?;
        weights::check(&config)?;
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

/// An argument with the values of a library's enum, and what each becomes there.
macro_rules! mirror {
    ($(#[$docs:meta])* $name:ident => $library:ty { $($(#[$help:meta])* $value:ident,)+ }) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, Default, ValueEnum)]
        pub enum $name { $($(#[$help])* $value,)+ }

        impl From<$name> for $library {
            fn from(value: $name) -> Self {
                match value { $($name::$value => Self::$value,)+ }
            }
        }
    };
}

mirror! {
    /// What blocks in flight see of each other.
    Attention => AttentionMode {
        #[default]
        /// All of them
        Bidirectional,
        /// Only itself and older ones
        Causal,
    }
}

mirror! {
    /// Whether blocks in flight count against the window.
    Budget => HistoryBudget {
        #[default]
        /// They come on top of it
        History,
        /// History gives way, so that a block sees no more than it would alone
        Constant,
    }
}

mirror! {
    /// Which network makes frames of latents.
    Decoder => generator::Decoder {
        #[default]
        /// The model's own
        Full,
        /// LightVAE: the same with a quarter of the channels
        Light,
        /// TAEHV: far less work, softer pictures
        Tiny,
        /// LightTAE: as tiny, trained on the full decoder's latents
        LightTiny,
    }
}

mirror! {
    /// Number format of weights and activations.
    Dtype => generator::Dtype {
        #[default]
        /// f32 on a CPU, bf16 on a GPU
        Auto,
        /// 32-bit floats
        F32,
        /// 16-bit floats with the range of 32-bit ones
        Bf16,
        /// 16-bit IEEE floats
        F16,
    }
}
