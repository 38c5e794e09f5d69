//! A stream, as all threads of the element see it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video as gst_video;

use super::pace::Pace;
use super::prompts::{self, Answer, Book, Request, Waiting};
use crate::device::DeviceSpec;
use crate::generator::{
    BlockTimes, Controls, Frame, GeneratorConfig, Loading, Prompt, PromptChange, Result, Timing,
    VideoFormat,
};

/// From start to stop.
#[derive(Debug)]
pub struct Stream {
    /// Of all messages about its loading.
    pub id: gst::Seqnum,
    pub config: GeneratorConfig,
    pub controls: Controls,
    pub loading: Arc<Loading>,
    pub load_state: LoadState,
    pub info: Option<gst_video::VideoInfo>,
    pub pace: Pace,
    /// What it runs on, once it has a generator: the size in `info` cannot change any more.
    pub devices: Vec<DeviceSpec>,
    /// A flush since the last buffer.
    pub flushed: Option<Flush>,
    /// Buffers so far that are no new frames: slates, repeated ones and gaps.
    inserted: u64,
    /// Whether the time of a frame is known.
    is_timed: bool,
    pub book: Book,
    /// Prompts for certain times that came before it was known which frame is shown then.
    early: Vec<(Request, Instant)>,
    pub current_prompt: Option<String>,
    pub prompt_latency: Option<Duration>,
    pub counters: Counters,
}

/// What a flush does to running time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// It starts again from 0.
    Reset,
    /// It goes on.
    Keep,
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadState {
    Percent(u32),
    /// After so long; at once, if the networks were there.
    Done(Duration),
    Failed,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub frames: u64,
    pub blocks: u64,
    pub slates: u64,
    pub repeated: u64,
    pub gaps: u64,
    pub underruns: u64,
}

impl Stream {
    pub fn new(config: GeneratorConfig, loading: Arc<Loading>) -> Result<Self> {
        let rate = gst::Fraction::new(config.model.preset.fps as i32, 1);
        let is_loaded = loading.is_done();
        Ok(Self {
            id: gst::Seqnum::next(),
            controls: Controls::new(&config)?,
            config,
            loading,
            load_state: if is_loaded {
                LoadState::Done(Duration::ZERO)
            } else {
                LoadState::Percent(0)
            },
            info: None,
            pace: Pace::new(rate),
            devices: Vec::new(),
            flushed: None,
            inserted: 0,
            is_timed: false,
            book: Book::default(),
            early: Vec::new(),
            current_prompt: None,
            prompt_latency: None,
            counters: Counters::default(),
        })
    }

    pub fn is_loading(&self) -> bool {
        matches!(self.load_state, LoadState::Percent(_))
    }

    /// Hands a prompt on, unless too many wait. One for a time up to `past` is for as soon as can be.
    pub fn take(
        &mut self,
        request: Request,
        usual: PromptChange,
        past: Option<gst::ClockTime>,
    ) -> bool {
        if self.book.is_full() || self.early.len() >= prompts::MAX_WAITING {
            return false;
        }
        if request.running_time.is_some() && !self.is_timed {
            self.early.push((request, Instant::now()));
            return true;
        }
        let time = request.running_time.filter(|time| past.is_none_or(|past| *time > past));
        let frame = time.map(|time| self.pace.frame_from(time));
        let from_block = frame.map(|frame| self.block_from(frame));
        let text = request.text.clone();
        let prompt = Prompt { text, from_block, change: Some(request.change(usual)) };
        let prompt = self.controls.set_prompt(prompt);
        self.book.wait(Waiting { prompt, request, from_block, since: Instant::now() });
        true
    }

    /// The times of frames are known from now on: prompts that waited for that.
    pub fn timed(&mut self) -> Vec<Request> {
        self.is_timed = true;
        self.early.drain(..).map(|(request, _)| request).collect()
    }

    /// What has not been shown will not be.
    pub fn close(&mut self) -> Vec<Answer> {
        self.book.close(self.early.drain(..))
    }

    /// The first block of which no frame is shown before that number.
    pub fn block_from(&self, number: u64) -> u64 {
        self.format().block_from(number.saturating_sub(self.inserted))
    }

    /// When the newest frame is shown.
    pub fn time_shown(&self) -> Option<gst::ClockTime> {
        let index = self.counters.frames.checked_sub(1)?;
        Some(self.pace.time(self.inserted + index))
    }

    /// A new frame leaves, in a buffer of that number.
    pub fn shows(&mut self, frame: &Frame, number: u64) {
        self.counters.frames += 1;
        self.counters.blocks = frame.block + 1;
        self.inserted = number.saturating_sub(frame.index);
    }

    pub fn format(&self) -> VideoFormat {
        let preset = &self.config.model.preset;
        VideoFormat {
            size: self.config.frame_size(),
            frames_per_second: preset.fps,
            frames_per_block: preset.frames_per_block,
        }
    }

    /// What the property `stats` tells, but for the state.
    pub fn stats(&self) -> gst::structure::Builder {
        let Counters { frames, blocks, slates, repeated, gaps, underruns } = self.counters;
        let load_time = match self.load_state {
            LoadState::Done(time) => Some(clock_time(time)),
            _ => None,
        };
        let stats = gst::Structure::builder("stats")
            .field("model", &self.config.model.name)
            .field("seed", self.config.seed)
            .field("devices", devices(&self.devices))
            .field_if_some("load-time", load_time)
            .field("frames", frames)
            .field("blocks", blocks)
            .field("slates", slates)
            .field("repeated", repeated)
            .field("gaps", gaps)
            .field("underruns", underruns)
            .field("prompts-queued", (self.book.len() + self.early.len()) as u64)
            .field("prompts-applied", self.book.applied)
            .field("prompts-dropped", self.book.dropped)
            .field("duplicate-events", self.book.duplicates)
            .field_if_some("prompt-latency-last", self.prompt_latency.map(clock_time))
            .field("queue-level", self.controls.queued_frames() as u32);
        self.with_times(stats, self.controls.timing())
    }

    fn with_times(
        &self,
        stats: gst::structure::Builder,
        timing: Timing,
    ) -> gst::structure::Builder {
        let Timing { denoise, decode, .. } = timing;
        let slower = denoise.mean.max(decode.mean);
        if denoise == BlockTimes::default() || slower.is_zero() {
            return stats;
        }
        let format = self.format();
        let shown_for = self.pace.span(format.first_frame(2) - format.first_frame(1));
        let realtime_factor = shown_for.nseconds() as f64 / slower.as_nanos() as f64;
        stats
            .field("block-time-last", clock_time(denoise.last))
            .field("block-time-avg", clock_time(denoise.mean))
            .field("block-time-p95", clock_time(denoise.p95))
            .field("decode-time-avg", clock_time(decode.mean))
            .field("realtime-factor", realtime_factor)
    }
}

fn devices(devices: &[DeviceSpec]) -> gst::Array {
    let devices = devices.iter().zip(0u32..).map(|(device, index)| {
        let fields = gst::Structure::builder("device").field("index", index);
        fields.field("name", device.to_string()).build().to_send_value()
    });
    gst::Array::new(devices)
}

fn clock_time(time: Duration) -> gst::ClockTime {
    gst::ClockTime::try_from(time).unwrap_or(gst::ClockTime::MAX)
}
