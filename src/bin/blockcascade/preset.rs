//! Arguments in place of what a model's preset says.

use std::str::FromStr;

use gstblockcascade::checkpoint::Preset;

/// How far blocks see, and in how many steps they are made.
#[derive(clap::Args)]
pub struct PresetArgs {
    /// Most recent clean blocks that a block sees [default: the model's]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// First blocks, seen by all others [default: the model's]
    #[arg(long, value_name = "N")]
    sink: Option<usize>,
    /// Falling denoising steps of 0 to 1000 [default: the model's]
    #[arg(long, visible_alias = "denoising-steps", value_name = "N,N,...")]
    steps: Option<Steps>,
}

impl PresetArgs {
    /// Changes what was given.
    pub fn apply(&self, preset: &mut Preset) {
        preset.window = self.window.unwrap_or(preset.window);
        preset.sink = self.sink.unwrap_or(preset.sink);
        if let Some(Steps(steps)) = &self.steps {
            preset.denoising_steps.clone_from(steps);
        }
    }
}

/// Numbers with commas between them; none is a list that the library refuses.
#[derive(Clone, Debug)]
struct Steps(Vec<u32>);

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let steps = text.split(',').map(str::trim).filter(|step| !step.is_empty());
        let parse =
            |step: &str| step.parse().map_err(|_| format!("{step:?} is not a whole number"));
        steps.map(parse).collect::<Result<_, _>>().map(Self)
    }
}
