//! What a user asks for, checked once, and the plan that follows from it.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::error::{Error, Result};
use super::flow::FlowSchedule;
use super::frames::FrameSize;
use super::noise::SeededNoise;
use super::transition::PromptChange;
use super::weights::{WeightPaths, WeightsSource};
use crate::cascade::{
    AttentionMode, CacheLimits, Cascade, CascadeConfig, HistoryBudget, HistoryPolicy, HistoryRules,
    PromptPolicy, SinkPosition, TextContexts, Timetable, Workers,
};
use crate::checkpoint::{Manifest, Preset, TIMESTEP_SHIFTS};
use crate::device::{DeviceSpec, Devices};
use crate::model::{VideoModel, VideoSpec};
use crate::wan;

/// Largest side of a frame, in pixels: well beyond what any checkpoint was trained on.
const MAX_SIDE: u32 = 8192;
/// Most blocks of a sink or window: minutes of video.
const MAX_HISTORY: usize = 1024;
/// Most threads of a worker: more than any machine has cores.
const MAX_THREADS: usize = 1024;
/// Most blocks that may wait decoded.
const MAX_QUEUE: usize = 64;

/// Which network turns latents into frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decoder {
    /// The model's own decoder.
    #[default]
    Full,
    /// The same with a quarter of the channels.
    Light,
    /// TAEHV (`taew2_1`): 25 times less work, softer pictures.
    Tiny,
    /// LightTAE (`lighttaew2_1`): the same layers, trained on the full decoder's latents.
    LightTiny,
}

impl fmt::Display for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Light => "light",
            Self::Tiny => "tiny",
            Self::LightTiny => "light-tiny",
        })
    }
}

/// Number format of the transformer's weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// f32 on a CPU, bf16 on a GPU.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats with the range of 32-bit ones.
    Bf16,
    /// 16-bit IEEE floats.
    F16,
}

/// Everything that a stream depends on.
#[derive(Clone, Debug)]
pub struct GeneratorConfig {
    /// The model, and how it wants to be run.
    pub model: Manifest,
    /// Where its weights come from.
    pub weights: WeightsSource,
    /// What it runs on: a worker for each device, no more than the cascade is wide.
    pub devices: Devices,
    /// What frames are decoded on; `None` is the first of the devices.
    pub decoder_device: Option<DeviceSpec>,
    /// Threads of each worker on a CPU; `None` shares the cores among several, and leaves them all
    /// to one.
    pub threads: Option<usize>,
    /// In which numbers.
    pub dtype: Dtype,
    /// How latents become frames.
    pub decoder: Decoder,
    /// Size of the frames; `None` is the preset's.
    pub size: Option<FrameSize>,
    /// Blocks in flight at most, `1..=passes`; 1 is sequential generation.
    pub cascade_width: usize,
    /// Which keys and values blocks read of older ones.
    pub history_policy: HistoryPolicy,
    /// What blocks in flight see of each other.
    pub attention: AttentionMode,
    /// Whether blocks in flight count against the window.
    pub history_budget: HistoryBudget,
    /// Where the sink sits once the window has rolled.
    pub sink_position: SinkPosition,
    /// What the stream shows at its start.
    pub prompt: String,
    /// How prompts take over that do not say it themselves.
    pub change: PromptChange,
    /// Same seed, same frames.
    pub seed: u64,
    /// Length of the stream; `None` has no end.
    pub blocks: Option<u64>,
    /// Blocks that may wait decoded, `1..=64`: more for smoothness, fewer for latency.
    pub queue_blocks: usize,
}

impl GeneratorConfig {
    /// The preset as it is meant to be run: on the model's own weights, sequentially, on the best
    /// device there is.
    pub fn new(model: Manifest) -> Self {
        Self {
            model,
            weights: WeightsSource::default(),
            devices: Devices::default(),
            decoder_device: None,
            threads: None,
            dtype: Dtype::Auto,
            decoder: Decoder::Full,
            size: None,
            cascade_width: 1,
            history_policy: HistoryPolicy::default(),
            attention: AttentionMode::default(),
            history_budget: HistoryBudget::default(),
            sink_position: SinkPosition::default(),
            prompt: String::new(),
            change: PromptChange::default(),
            seed: 0,
            blocks: None,
            queue_blocks: 2,
        }
    }

    /// Cheap: reads no file and touches no device.
    pub fn validate(&self) -> Result<()> {
        let spec = wan::dit_config(self.model.architecture).spec();
        let spec = spec.map_err(|error| Error::config("architecture", error.to_string()))?;
        self.plan(spec).map(|_| ())
    }

    /// Whether every file of the model's own is somewhere: an error lists those that are missing. Reads none of
    /// them. Files that are named in [`WeightPaths`](super::WeightPaths) are only looked at when they are loaded, and
    /// random weights need none.
    pub fn check_weights(&self) -> Result<()> {
        match &self.weights {
            WeightsSource::Random { .. } => Ok(()),
            WeightsSource::Files(paths) => paths.find(&self.model, self.decoder).map(|_| ()),
        }
    }

    /// Size of the frames that will come.
    pub fn frame_size(&self) -> FrameSize {
        let Preset { width, height, .. } = self.model.preset;
        self.size.unwrap_or(FrameSize { width, height })
    }

    /// Frames that may wait decoded.
    pub(super) fn queue_frames(&self) -> Result<usize> {
        let frames_per_block = self.model.preset.frames_per_block;
        in_range("queue-blocks", self.queue_blocks, 1, MAX_QUEUE)?;
        in_range("frames-per-block", frames_per_block, 1, 64)?;
        Ok(self.queue_blocks * frames_per_block * TEMPORAL_STRIDE)
    }

    /// Checks everything against a network of these sizes.
    pub(super) fn plan(&self, spec: VideoSpec) -> Result<Plan> {
        self.check_devices()?;
        let preset = &self.model.preset;
        let shift = preset.timestep_shift;
        if !TIMESTEP_SHIFTS.contains(&shift) {
            return Err(Error::config("timestep-shift", format!("got {shift}, expected 1 to 100")));
        }
        let schedule = FlowSchedule::new(&preset.denoising_steps, shift)
            .map_err(|error| Error::config("denoising-steps", error.to_string()))?;
        let timetable =
            Timetable::with_width(self.history_policy, schedule.steps(), self.cascade_width);
        in_range("cascade-width", self.cascade_width, 1, timetable.passes())?;
        self.check_workers(timetable.width())?;
        self.check_dtype()?;
        self.queue_frames()?;
        in_range("fps", preset.fps as usize, 1, 240)?;
        in_range("window", preset.window, 0, MAX_HISTORY)?;
        in_range("sink", preset.sink, 0, MAX_HISTORY)?;
        if self.blocks == Some(0) {
            return Err(Error::config("blocks", "got 0, expected at least 1, or none for no end"));
        }
        let size = self.frame_size();
        check_size(size, spec.size_multiple() as u32)?;
        self.check_decoder()?;
        let cascade = self.cascade(timetable.stagger(), size, &spec);
        let Self { seed, change, threads, .. } = *self;
        Ok(Plan { schedule, cascade, change, threads, seed, size })
    }

    /// What the transformer computes in on a device.
    pub(super) fn dtype_on(&self, device: &Device) -> DType {
        match self.dtype {
            Dtype::Auto if device.is_cpu() => DType::F32,
            Dtype::Auto | Dtype::Bf16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
        }
    }

    fn check_devices(&self) -> Result<()> {
        if self.devices.len() > 1 && self.devices.contains(&DeviceSpec::Auto) {
            let reason = "got auto among several, expected the name of each";
            return Err(Error::config("devices", reason));
        }
        let mut devices = self.devices.iter().chain(&self.decoder_device);
        match devices.find_map(|device| device.missing_feature()) {
            Some(feature) => Err(Error::MissingFeature(feature)),
            None => Ok(()),
        }
    }

    /// Each worker has a block of its own when as many as possible are in flight.
    fn check_workers(&self, width: usize) -> Result<()> {
        let count = self.devices.len();
        if count > width {
            let expected = format!("at most {width}: so many blocks are in flight");
            return Err(Error::config("devices", format!("got {count}, expected {expected}")));
        }
        if let Some(threads) = self.threads {
            in_range("threads", threads, 1, MAX_THREADS)?;
        }
        let matched = self.history_policy == HistoryPolicy::StageMatched;
        if matched && self.change.policy == PromptPolicy::Recache {
            let reason = "got recache, which a stage-matched history has no clean blocks for";
            return Err(Error::config("prompt-policy", reason));
        }
        Ok(())
    }

    /// Workers give each other keys and values, which have to be in one format.
    fn check_dtype(&self) -> Result<()> {
        let place =
            |is_cpu| self.devices.iter().find(|device| (**device == DeviceSpec::Cpu) == is_cpu);
        let (Dtype::Auto, HistoryPolicy::Clean) = (self.dtype, self.history_policy) else {
            return Ok(());
        };
        if let (Some(cpu), Some(gpu)) = (place(true), place(false)) {
            let each = format!("got auto, which is f32 on {cpu} and bf16 on {gpu}");
            return Err(Error::config("dtype", format!("{each}, expected one for all workers")));
        }
        Ok(())
    }

    /// Not every model has a small decoder; one may still be named.
    fn check_decoder(&self) -> Result<()> {
        let WeightsSource::Files(WeightPaths { decoder: None, .. }) = &self.weights else {
            return Ok(());
        };
        let (name, decoders) = (&self.model.name, Decoder::of(&self.model));
        if decoders.contains(&self.decoder) {
            return Ok(());
        }
        let decoders: Vec<_> = decoders.iter().map(ToString::to_string).collect();
        let has = format!("{name} has files for {}", decoders.join(", "));
        let reason = format!("got {}, {has}; another file has to be named", self.decoder);
        Err(Error::config("decoder", reason))
    }

    fn cascade(&self, stagger: usize, size: FrameSize, spec: &VideoSpec) -> CascadeConfig {
        let Preset { frames_per_block, window, sink, .. } = self.model.preset;
        let latent = |side: u32| side as usize / spec.spatial_stride;
        CascadeConfig {
            stagger,
            attention: self.attention,
            history: HistoryRules {
                policy: self.history_policy,
                limits: CacheLimits { sink, window: Some(window) },
                budget: self.history_budget,
                sink_position: self.sink_position,
            },
            frames_per_block,
            latent_size: (latent(size.height), latent(size.width)),
            context_timestep: 0.0,
            blocks: self.blocks,
        }
    }
}

/// Frames that a latent frame becomes, the stream's first excepted.
pub(super) const TEMPORAL_STRIDE: usize = 4;

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) schedule: FlowSchedule,
    pub(super) cascade: CascadeConfig,
    pub(super) change: PromptChange,
    pub(super) threads: Option<usize>,
    pub(super) seed: u64,
    pub(super) size: FrameSize,
}

impl Plan {
    /// What denoises a stream that starts under `text`.
    pub(super) fn cascade(
        &self,
        models: &[Arc<dyn VideoModel>],
        text: Arc<TextContexts>,
    ) -> candle_core::Result<Cascade> {
        let workers = Workers { models: models.to_vec(), threads: self.threads };
        let noise = Arc::new(SeededNoise { seed: self.seed });
        Cascade::new(workers, self.schedule.clone(), noise, text, self.cascade.clone())
    }
}

fn in_range(field: &'static str, value: usize, low: usize, high: usize) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Error::config(field, format!("got {value}, expected {low} to {high}")))
}

fn check_size(size: FrameSize, multiple: u32) -> Result<()> {
    let fits = |side: u32| (multiple..=MAX_SIDE).contains(&side) && side.is_multiple_of(multiple);
    if fits(size.width) && fits(size.height) {
        return Ok(());
    }
    let expected = format!("multiples of {multiple} from {multiple} to {MAX_SIDE}");
    Err(Error::config("size", format!("got {size}, expected {expected}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_on_a_cpu_and_a_gpu_need_one_dtype() {
        let mut config = GeneratorConfig::new(Manifest::named("pocket").unwrap());
        config.devices = "cpu,cuda:0".parse().unwrap();
        let error = config.check_dtype().unwrap_err().to_string();
        assert!(error.contains("got auto, which is f32 on cpu and bf16 on cuda:0"), "{error}");
        config.history_policy = HistoryPolicy::StageMatched; // only latents go between them
        assert!(config.check_dtype().is_ok());
        config.history_policy = HistoryPolicy::Clean;
        config.dtype = Dtype::F32;
        assert!(config.check_dtype().is_ok());
    }
}
