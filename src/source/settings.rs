//! What the user asked of the element, and the configuration that follows from it.

use std::path::Path;

use gstreamer as gst;

use crate::cascade;
use crate::checkpoint::{Located, Manifest, Place, Role};
use crate::generator::{
    self, Error, GeneratorConfig, PromptChange, Result, WeightPaths, WeightsSource,
};

/// Which blocks a prompt change touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstBlockCascadeSrcPromptPolicy")]
pub enum PromptPolicy {
    #[default]
    #[enum_value(name = "Every block that still has a denoising step ahead", nick = "in-flight")]
    InFlight,
    #[enum_value(name = "Only blocks that start from now on", nick = "next-block")]
    NextBlock,
    #[enum_value(name = "As in-flight, and the history is computed anew", nick = "recache")]
    Recache,
    #[enum_value(name = "History and blocks in flight are dropped", nick = "cut")]
    Cut,
}

/// The way from one prompt to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstBlockCascadeSrcTransitionMethod")]
pub enum TransitionMethod {
    #[default]
    #[enum_value(name = "Straight from one text embedding to the other", nick = "linear")]
    Linear,
    #[enum_value(name = "Along the arc between them, token by token", nick = "slerp")]
    Slerp,
}

/// What a live source shows until the first frame is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstBlockCascadeSrcStartupPolicy")]
pub enum StartupPolicy {
    #[default]
    #[enum_value(name = "Nothing: the first frame is the model's", nick = "wait")]
    Wait,
    #[enum_value(name = "Frames with a bar that shows how far loading is", nick = "slate")]
    Slate,
}

/// What blocks in flight see of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstBlockCascadeSrcAttention")]
pub enum Attention {
    #[default]
    #[enum_value(name = "All of them", nick = "bidirectional")]
    Bidirectional,
    #[enum_value(name = "Only themselves and older ones", nick = "causal")]
    Causal,
}

/// What a block reads of older ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstBlockCascadeSrcHistoryPolicy")]
pub enum HistoryPolicy {
    #[default]
    #[enum_value(name = "What their cache pass left of the clean block", nick = "clean")]
    Clean,
    #[enum_value(name = "What they left at the same pass; no cache pass", nick = "stage-matched")]
    StageMatched,
}

/// Whether blocks in flight count against the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstBlockCascadeSrcHistoryBudget")]
pub enum HistoryBudget {
    #[default]
    #[enum_value(name = "The window is of clean blocks alone", nick = "history")]
    History,
    #[enum_value(name = "The window also counts blocks in flight", nick = "constant")]
    Constant,
}

/// Which network turns latents into frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstBlockCascadeSrcDecoder")]
pub enum Decoder {
    #[default]
    #[enum_value(name = "The model's own decoder", nick = "full")]
    Full,
    #[enum_value(name = "The same with a quarter of the channels", nick = "light")]
    Light,
    #[enum_value(name = "A small decoder: softer pictures", nick = "tiny")]
    Tiny,
    #[enum_value(name = "As small, trained on the full decoder's latents", nick = "light-tiny")]
    LightTiny,
}

/// Number format of the transformer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstBlockCascadeSrcDtype")]
pub enum Dtype {
    #[default]
    #[enum_value(name = "f32 on a CPU, bf16 on a GPU", nick = "auto")]
    Auto,
    #[enum_value(name = "32-bit floats", nick = "f32")]
    F32,
    #[enum_value(name = "16-bit floats with the range of 32-bit ones", nick = "bf16")]
    Bf16,
    #[enum_value(name = "16-bit IEEE floats", nick = "f16")]
    F16,
}

/// What a live source does when the generator is late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstBlockCascadeSrcUnderrunPolicy")]
pub enum UnderrunPolicy {
    #[default]
    #[enum_value(name = "Later frames are shown as much later", nick = "resync")]
    Resync,
    #[enum_value(name = "The last frame is shown again, on time", nick = "repeat")]
    Repeat,
    #[enum_value(name = "A gap event takes the frame's place", nick = "gap")]
    Gap,
}

impl From<PromptPolicy> for cascade::PromptPolicy {
    fn from(policy: PromptPolicy) -> Self {
        match policy {
            PromptPolicy::InFlight => Self::InFlight,
            PromptPolicy::NextBlock => Self::NextBlock,
            PromptPolicy::Recache => Self::Recache,
            PromptPolicy::Cut => Self::Cut,
        }
    }
}

impl From<TransitionMethod> for generator::TransitionMethod {
    fn from(method: TransitionMethod) -> Self {
        match method {
            TransitionMethod::Linear => Self::Linear,
            TransitionMethod::Slerp => Self::Slerp,
        }
    }
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    pub model: String,
    pub prompt: String,
    pub prompt_policy: PromptPolicy,
    pub transition_blocks: u32,
    pub transition_method: TransitionMethod,
    pub seed: i64,
    pub devices: String,
    /// Empty is the first of the devices.
    pub decoder_device: String,
    pub cascade_width: u32,
    pub attention: Attention,
    pub history_policy: HistoryPolicy,
    pub history_budget: HistoryBudget,
    pub denoising_steps: Vec<u32>,
    pub window: i32,
    pub sink: i32,
    pub decoder: Decoder,
    pub dtype: Dtype,
    pub is_live: bool,
    pub underrun_policy: UnderrunPolicy,
    pub queue_blocks: u32,
    pub startup_policy: StartupPolicy,
    pub preload: bool,
    /// Milliseconds.
    pub keep_loaded: u32,
    pub force_key_unit: bool,
    pub wait_prompt: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: "pocket".into(),
            prompt: String::new(),
            prompt_policy: PromptPolicy::default(),
            transition_blocks: 0,
            transition_method: TransitionMethod::default(),
            seed: -1,
            devices: "auto".into(),
            decoder_device: String::new(),
            cascade_width: 1,
            attention: Attention::default(),
            history_policy: HistoryPolicy::default(),
            history_budget: HistoryBudget::default(),
            denoising_steps: Vec::new(),
            window: -1,
            sink: -1,
            decoder: Decoder::default(),
            dtype: Dtype::default(),
            is_live: false,
            underrun_policy: UnderrunPolicy::default(),
            queue_blocks: 2,
            startup_policy: StartupPolicy::default(),
            preload: false,
            keep_loaded: 0,
            force_key_unit: true,
            wait_prompt: true,
        }
    }
}

impl Settings {
    /// The configuration of a stream at the model's own size. Cheap: of files, it reads manifests.
    pub fn config(&self) -> Result<GeneratorConfig> {
        let (model, weights) = self.model()?;
        let mut config = GeneratorConfig::new(model);
        config.weights = weights;
        let unknown = |field| move |error| Error::config(field, format!("{error}"));
        config.devices = self.devices.parse().map_err(unknown("devices"))?;
        if !self.decoder_device.is_empty() {
            let device = self.decoder_device.parse().map_err(unknown("decoder-device"))?;
            config.decoder_device = Some(device);
        }
        config.cascade_width = self.cascade_width as usize;
        config.queue_blocks = self.queue_blocks as usize;
        config.prompt.clone_from(&self.prompt);
        config.change = self.change();
        config.seed = self.chosen_seed();
        self.apply_enums(&mut config);
        self.apply_preset(&mut config);
        config.validate()?;
        Ok(config)
    }

    /// How a prompt of now takes over.
    pub fn change(&self) -> PromptChange {
        PromptChange {
            policy: self.prompt_policy.into(),
            blocks: self.transition_blocks,
            method: self.transition_method.into(),
        }
    }

    fn apply_enums(&self, config: &mut GeneratorConfig) {
        config.attention = match self.attention {
            Attention::Bidirectional => cascade::AttentionMode::Bidirectional,
            Attention::Causal => cascade::AttentionMode::Causal,
        };
        config.history_policy = match self.history_policy {
            HistoryPolicy::Clean => cascade::HistoryPolicy::Clean,
            HistoryPolicy::StageMatched => cascade::HistoryPolicy::StageMatched,
        };
        config.history_budget = match self.history_budget {
            HistoryBudget::History => cascade::HistoryBudget::History,
            HistoryBudget::Constant => cascade::HistoryBudget::Constant,
        };
        config.decoder = match self.decoder {
            Decoder::Full => generator::Decoder::Full,
            Decoder::Light => generator::Decoder::Light,
            Decoder::Tiny => generator::Decoder::Tiny,
            Decoder::LightTiny => generator::Decoder::LightTiny,
        };
        config.dtype = match self.dtype {
            Dtype::Auto => generator::Dtype::Auto,
            Dtype::F32 => generator::Dtype::F32,
            Dtype::Bf16 => generator::Dtype::Bf16,
            Dtype::F16 => generator::Dtype::F16,
        };
    }

    /// What is not asked for stays as the model was made for.
    fn apply_preset(&self, config: &mut GeneratorConfig) {
        let preset = &mut config.model.preset;
        if !self.denoising_steps.is_empty() {
            preset.denoising_steps.clone_from(&self.denoising_steps);
        }
        preset.window = usize::try_from(self.window).unwrap_or(preset.window);
        preset.sink = usize::try_from(self.sink).unwrap_or(preset.sink);
    }

    /// A manifest by its name or its file, or the model whose weights a folder has.
    fn model(&self) -> Result<(Manifest, WeightsSource)> {
        let path = Path::new(&self.model);
        let own = |manifest| (manifest, WeightsSource::default());
        let is_known = Manifest::names().any(|name| name == self.model);
        if path.is_dir() && !is_known {
            return in_folder(path);
        }
        if path.extension().is_some_and(|extension| extension == "toml") {
            return Ok(own(Manifest::read(path)?));
        }
        Ok(own(Manifest::named(&self.model)?))
    }

    fn chosen_seed(&self) -> u64 {
        // 63 bits: what stats tells can be given back as the property.
        let random = || u64::from(glib::random_int()) << 31 | u64::from(glib::random_int()) >> 1;
        u64::try_from(self.seed).unwrap_or_else(|_| random())
    }
}

fn in_folder(folder: &Path) -> Result<(Manifest, WeightsSource)> {
    let paths = WeightPaths { folder: Some(folder.into()), ..WeightPaths::default() };
    for name in Manifest::names() {
        let manifest = Manifest::named(name)?;
        let located = manifest.locate(Some(folder));
        // Embedded files are everywhere: they say nothing about the folder.
        // Models share text encoders and decoders; each has a transformer of its own.
        let is_here = |file: &Located<'_>| match &file.found {
            Some(Place::Disk(path)) => file.file.role == Role::Dit && path.starts_with(folder),
            _ => false,
        };
        if located.iter().any(is_here) {
            return Ok((manifest, WeightsSource::Files(paths)));
        }
    }
    let names = Manifest::names().collect::<Vec<_>>().join(", ");
    let reason =
        format!("no transformer of a known model in {}; there are {names}", folder.display());
    Err(Error::config("model", reason))
}

/// A list of steps as GStreamer writes it.
pub fn steps_to_array(steps: &[u32]) -> gst::Array {
    gst::Array::new(steps.iter().map(|&step| i32::try_from(step).unwrap_or(i32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_of_the_model_whose_transformer_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let refused = in_folder(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("no transformer of a known model in"), "{refused}");
        let model = Manifest::named("longlive-1.3b").unwrap();
        for file in &model.files {
            let path = folder.path().join(&file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let sparse = std::fs::File::create(path).unwrap();
            sparse.set_len(file.size.unwrap_or(1)).unwrap();
        }
        let (found, _) = in_folder(folder.path()).unwrap();
        assert_eq!(found.name, model.name, "self-forcing has the same text encoder");
    }

    #[test]
    fn a_random_seed_can_be_given_back_as_the_property() {
        let settings = Settings::default();
        let seeds: Vec<_> = (0..64).map(|_| settings.chosen_seed()).collect();
        assert!(seeds.iter().all(|&seed| i64::try_from(seed).is_ok()), "{seeds:?}");
        assert!(seeds.windows(2).all(|pair| pair[0] != pair[1]), "{seeds:?}");
        assert_eq!(Settings { seed: 7, ..settings }.chosen_seed(), 7);
    }
}
