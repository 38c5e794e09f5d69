//! Prompts to frames: the whole machine behind one iterator.
//!
//! A [`Generator`] owns three threads. One encodes prompts, one denoises blocks
//! ([`Cascade`]), one decodes them; bounded queues between them let
//! decoding overlap denoising without running away from the reader. [`Controls`] is the handle for
//! other threads: change the prompt, cancel a blocked read, go on.

mod conditioning;
mod config;
mod error;
pub mod flow;
mod frames;
mod gate;
mod load;
mod loading;
pub mod noise;
mod progress;
mod prompt;
mod queue;
mod room;
mod stream;
mod timing;
mod transition;
mod weights;

use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;

pub use self::config::{Decoder, Dtype, GeneratorConfig};
pub use self::error::{Error, Result};
pub use self::frames::{Frame, FrameSize};
pub use self::loading::{Loading, LoadingState};
pub use self::prompt::{AppliedPrompt, Prompt, PromptId};
pub use self::timing::{BlockTimes, Timing};
pub use self::transition::{PromptChange, TransitionMethod};
pub use self::weights::{WeightPaths, WeightsSource};

use self::config::{Plan, TEMPORAL_STRIDE};
use self::progress::Progress;
use self::queue::Popped;
use self::stream::{Line, Threads};
use crate::cascade::{Cascade, TextContexts};
use crate::device::DeviceSpec;
use crate::model::{FrameDecoder, Interrupt, TextEncoder, VideoModel};

/// What a stream's frames look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VideoFormat {
    /// Width and height.
    pub size: FrameSize,
    /// The rate at which the frames are meant to be shown.
    pub frames_per_second: u32,
    /// Latent frames of a block.
    pub frames_per_block: usize,
}

impl VideoFormat {
    /// Index of the first frame of a block: the stream's first latent frame is one picture, each
    /// later one four.
    pub fn first_frame(&self, block: u64) -> u64 {
        let latents = block.saturating_mul(self.frames_per_block as u64);
        latents.saturating_mul(TEMPORAL_STRIDE as u64).saturating_sub(TEMPORAL_STRIDE as u64 - 1)
    }

    /// The first block of which no frame comes before that one.
    pub fn block_from(&self, frame: u64) -> u64 {
        let per_block = self.first_frame(2).saturating_sub(self.first_frame(1)).max(1);
        let behind_first = frame.saturating_sub(self.first_frame(1)).div_ceil(per_block);
        if frame == 0 { 0 } else { 1 + behind_first }
    }
}

/// The networks that a generator runs; any family, any test double. Clones share them.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Prompt to embedding.
    pub text: Arc<dyn TextEncoder>,
    /// Noise to clean latents: one for each worker, by rank, at least one. Those on one device are
    /// one and the same.
    pub models: Vec<Arc<dyn VideoModel>>,
    /// Latents to pixels: what each stream takes a fresh one of.
    pub decoder: Arc<dyn FrameDecoder>,
}

/// A stream of frames, generated while they are read.
#[derive(Debug)]
pub struct Generator {
    parts: Parts,
    /// While the stream runs.
    threads: Option<Threads>,
    plan: Plan,
    format: VideoFormat,
    controls: Controls,
}

impl Parts {
    /// Those of the workers, each once, in their order.
    fn distinct_devices(&self) -> Vec<Device> {
        let mut devices: Vec<Device> = Vec::new();
        for device in self.models.iter().map(|model| model.device()) {
            if !devices.iter().any(|other| other.same_device(device)) {
                devices.push(device.clone());
            }
        }
        devices
    }

    /// Loads what a configuration names; `interrupt` is honoured before each tensor.
    pub fn load(config: &GeneratorConfig, interrupt: &Interrupt) -> Result<Self> {
        let config = GeneratorConfig { size: Some(config.frame_size()), ..config.clone() };
        load::parts(&config, interrupt, &Progress::new(|_| {}))
    }
}

impl Generator {
    /// Loads the model and gets ready; the first frame is made when it is asked for.
    pub fn new(config: &GeneratorConfig) -> Result<Self> {
        let controls = Controls::new(config)?;
        Self::with_controls(config, controls)
    }

    /// As [`new`](Self::new), with controls made before: loading can be cancelled through them.
    pub fn with_controls(config: &GeneratorConfig, controls: Controls) -> Result<Self> {
        let parts = Parts::load(config, controls.line.gate.interrupt())?;
        Self::from_parts(parts, config, controls)
    }

    /// A generator over given networks, of any family, instead of the configured weights.
    pub fn from_parts(parts: Parts, config: &GeneratorConfig, controls: Controls) -> Result<Self> {
        let frames_per_second = config.model.preset.fps;
        let [first, ..] = &parts.models[..] else {
            return Err(Error::config("devices", "got no model, expected one for each worker"));
        };
        let plan = config.plan(first.spec().clone())?;
        let history = room::history(config, first.spec(), &parts.distinct_devices());
        let (interrupt, frames) = (controls.line.gate.interrupt(), &controls.line.frames);
        room::check(&history, &|| interrupt.is_raised() || frames.is_cancelled())?;
        let frames_per_block = plan.cascade.frames_per_block;
        let format = VideoFormat { size: plan.size, frames_per_second, frames_per_block };
        Ok(Self { parts, threads: None, plan, format, controls })
    }

    /// What each worker runs on, by rank.
    pub fn devices(&self) -> Vec<DeviceSpec> {
        self.parts.models.iter().map(|model| model.device().into()).collect()
    }

    /// What the frames look like.
    pub fn format(&self) -> VideoFormat {
        self.format
    }

    /// A handle for other threads.
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// What denoises the stream, from its start and under one prompt: for who wants clean latents, not
    /// frames. It computes when it is ticked, and shares with this stream nothing but the networks.
    pub fn cascade(&self, prompt: &str) -> Result<Cascade> {
        let embedding = self.parts.text.encode(prompt, &Interrupt::default());
        let text = embedding.and_then(|text| TextContexts::new(&self.parts.models, &text));
        let text = text.map_err(|cause| Error::worker("encoding a prompt", cause))?;
        let cascade = self.plan.cascade(&self.parts.models, Arc::new(text));
        cascade.map_err(|cause| Error::worker("denoising", cause))
    }

    /// The next frame; `None` at the end of the stream. [`Error::Cancelled`] loses nothing: after
    /// [`Controls::resume`] the stream goes on where it was. Any other error ends it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        self.start()?;
        match self.controls.line.frames.pop() {
            Popped::Item(frame) => frame.map(Some),
            Popped::End => Ok(None),
            Popped::Cancelled => Err(Error::Cancelled),
        }
    }

    /// Waits until [`next_frame`](Self::next_frame) would not have to, at most so long; whether that
    /// is so.
    pub fn wait_frame(&mut self, timeout: Duration) -> Result<bool> {
        self.start()?;
        Ok(self.controls.line.frames.wait(timeout))
    }

    /// Ends the stream for callers that may not wait: its threads stop within a layer, by themselves.
    pub fn leave(mut self) {
        if let Some(threads) = self.threads.take() {
            threads.leave(&self.controls.line);
        }
    }

    /// Starts again from the first block, under the prompt of now, with another seed.
    pub fn restart(&mut self, seed: u64) {
        self.stop();
        self.plan.seed = seed;
    }

    fn start(&mut self) -> Result<()> {
        if self.threads.is_none() {
            let line = &self.controls.line;
            line.desk.start();
            self.threads = Some(Threads::start(&self.parts, &self.plan, line)?);
        }
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.stop(&self.controls.line);
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Iterator for Generator {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_frame().transpose()
    }
}

/// A handle for other threads; nothing in it waits for the generator.
#[derive(Clone, Debug)]
pub struct Controls {
    line: Arc<Line>,
}

impl Controls {
    /// Controls of a generator to come.
    pub fn new(config: &GeneratorConfig) -> Result<Self> {
        let line = Line::new(config.queue_frames()?, config.prompt.clone());
        Ok(Self { line: Arc::new(line) })
    }

    /// Changes the prompt: at a tick boundary as soon as it is encoded, or from the block it names.
    /// Frames made under it say so.
    pub fn set_prompt(&self, prompt: impl Into<Prompt>) -> PromptId {
        self.line.desk.submit(prompt.into())
    }

    /// Lets no block from this one on start until they are let go: prompts for them are still to
    /// come. `None`, as at first, lets all of them go. Blocks in flight before it wait as well, for a tick is made of
    /// all of them: what is not known is held back as many blocks earlier as there are in flight, less one.
    pub fn hold(&self, block: Option<u64>) {
        self.line.desk.hold(block);
    }

    /// Frames that wait to be read.
    pub fn queued_frames(&self) -> usize {
        self.line.frames.len()
    }

    /// How long the last blocks took.
    pub fn timing(&self) -> Timing {
        self.line.timing()
    }

    /// Stops a blocked [`next_frame`](Generator::next_frame) at once, until
    /// [`resume`](Self::resume); computation goes on.
    pub fn wake(&self) {
        self.line.frames.cancel(true);
    }

    /// Stops a blocked [`next_frame`](Generator::next_frame) at once, and all computation within a
    /// layer, until [`resume`](Self::resume).
    pub fn cancel(&self) {
        self.line.gate.shut();
        self.line.frames.cancel(true);
    }

    /// Takes a cancel back; the stream goes on as if nothing had happened.
    pub fn resume(&self) {
        self.line.frames.cancel(false);
        self.line.gate.open();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_frames_name_each_other() {
        let size = FrameSize { width: 16, height: 16 };
        let format = VideoFormat { size, frames_per_second: 16, frames_per_block: 3 };
        assert_eq!([0, 1, 2, 3].map(|block| format.first_frame(block)), [0, 9, 21, 33]);
        assert_eq!([0, 1, 9, 10, 21, 22].map(|frame| format.block_from(frame)), [0, 1, 1, 2, 2, 3]);
    }
}
