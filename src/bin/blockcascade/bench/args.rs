//! The flags of `bench`, and the settings that they make.

use std::str::FromStr;

use anyhow::Result;
use gstblockcascade::cascade::Timetable;
use gstblockcascade::device::{DeviceSpec, Devices};
use gstblockcascade::generator::{FrameSize, GeneratorConfig};

use crate::choices::{Decoder, Dtype};
use crate::generate::weights::{self, WeightArgs};
use crate::manifest;
use crate::view::ViewArgs;

/// Measures how fast a model is here: denoised, decoded and delivered frames a second, how long the
/// first frame and a new prompt take, what workers exchange, and memory.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the model, or its manifest
    #[arg(long, default_value = "pocket")]
    model: String,
    /// Size of the frames, in multiples of 16 [default: the model's]
    #[arg(long, value_name = "WxH")]
    size: Option<FrameSize>,
    /// Blocks in flight at most, one row for each [default: 1, 2, 3 and 5, as far as there are passes]
    #[arg(long, value_name = "N,N,...")]
    widths: Option<Widths>,
    /// What to compute on, a worker for each; of the list, each row uses as many as blocks are in flight
    #[arg(long, value_name = "DEVICE,...", default_value_t)]
    devices: Devices,
    /// What to decode on [default: the first of the devices]
    #[arg(long, value_name = "DEVICE")]
    decoder_device: Option<DeviceSpec>,
    /// Threads of each worker on a CPU [default: its share of the cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Blocks that are timed, once the cascade and the window are full
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub blocks: u64,
    /// Prints JSON: seconds, bytes
    #[arg(long)]
    pub json: bool,
    /// Which network makes frames of latents
    #[arg(long, value_enum, default_value_t)]
    decoder: Decoder,
    /// Number format of the transformer and, on a GPU, of the decoder, of which tiny ones have f16 for bf16; the
    /// text encoder is in bf16 unless this is f32
    #[arg(long, value_enum, default_value_t)]
    dtype: Dtype,
    #[command(flatten)]
    view: ViewArgs,
    // Last, because what follows a group of flags would be listed under its heading.
    #[command(flatten)]
    weights: WeightArgs,
}

impl Args {
    /// The settings of each row, checked, with its width.
    pub fn configs(&self) -> Result<Vec<(usize, GeneratorConfig)>> {
        let model = manifest(&self.model)?;
        let base = self.view.applied(GeneratorConfig {
            weights: self.weights.source(),
            decoder_device: self.decoder_device,
            threads: self.threads,
            dtype: self.dtype.into(),
            decoder: self.decoder.into(),
            size: self.size,
            ..GeneratorConfig::new(model)
        });
        let (policy, steps) = (base.history_policy, base.model.preset.denoising_steps.len());
        let config = |&cascade_width: &usize| {
            let in_flight = Timetable::with_width(policy, steps, cascade_width).width();
            let devices = self.devices.first_of(in_flight);
            let config = GeneratorConfig { devices, cascade_width, ..base.clone() };
            config.validate()?;
            weights::check(&config, &self.model)?;
            Ok((cascade_width, config))
        };
        let usual = || WIDTHS.into_iter().filter(|width| *width <= policy.passes(steps)).collect();
        let widths = self.widths.as_ref().map_or_else(usual, |widths| widths.0.clone());
        widths.iter().map(config).collect()
    }
}

/// Those that are measured unless others are named.
const WIDTHS: [usize; 4] = [1, 2, 3, 5];

/// Numbers with commas between them.
#[derive(Clone, Debug)]
struct Widths(Vec<usize>);

impl FromStr for Widths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |width: &str| {
            width.trim().parse().map_err(|_| format!("{width:?} is not a whole number"))
        };
        text.split(',').map(parse).collect::<Result<_, _>>().map(Self)
    }
}
