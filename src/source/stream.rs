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
    BlockTimes, Controls, Frame, GeneratorConfig, Loading, Prompt, PromptChange, PromptId, Result,
    Timing, VideoFormat,
};

/// Blocks between the ones that are being made and those that a prompt is given for, so that it is encoded.
const MARGIN: usize = 4;

/// From start to stop.
#[derive(Debug)]
pub struct Stream {
    /// Of all messages about its loading.
    pub id: gst::Seqnum,
    pub config: GeneratorConfig,
    pub controls: Controls,
    pub loading: Arc<Loading>,
    is_live: bool,
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
    /// Prompts for times that are not near, in the order in which they came.
    early: Vec<Early>,
    pub current_prompt: Option<String>,
    pub prompt_latency: Option<Duration>,
    pub counters: Counters,
}

/// A prompt for a time of which it is not known, or not for certain, which frame is shown then.
#[derive(Debug)]
struct Early {
    request: Request,
    change: PromptChange,
    since: Instant,
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
    pub fn new(config: GeneratorConfig, loading: Arc<Loading>, is_live: bool) -> Result<Self> {
        let rate = gst::Fraction::new(config.model.preset.fps as i32, 1);
        let is_loaded = loading.is_done();
        Ok(Self {
            id: gst::Seqnum::next(),
            controls: Controls::new(&config)?,
            config,
            loading,
            is_live,
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

    /// Takes a prompt, unless too many wait. One for a time up to `past` is for as soon as can be.
    pub fn take(
        &mut self,
        request: Request,
        usual: PromptChange,
        past: Option<gst::ClockTime>,
    ) -> bool {
        if self.waiting() >= prompts::MAX_WAITING {
            return false;
        }
        let change = request.change(usual);
        let early = Early { request, change, since: Instant::now() };
        if self.is_far(&early, past) {
            self.early.push(early);
        } else {
            self.hand_on(past); // the older ones first
            self.give(early, past);
        }
        true
    }

    /// The times of frames are known from now on: prompts that waited for that.
    pub fn timed(&mut self, past: Option<gst::ClockTime>) {
        self.is_timed = true;
        self.hand_on(past);
    }

    /// Gives the generator those prompts whose time is near or past.
    fn hand_on(&mut self, past: Option<gst::ClockTime>) {
        let early = std::mem::take(&mut self.early);
        let (far, near) = early.into_iter().partition(|early| self.is_far(early, past));
        self.early = far;
        let mut near: Vec<Early> = near;
        near.sort_by_key(|early| early.request.running_time);
        near.into_iter().for_each(|early| self.give(early, past));
    }

    /// Underruns move the frames of a live stream: it is asked late which one is shown at a time.
    fn is_far(&self, early: &Early, past: Option<gst::ClockTime>) -> bool {
        let Some(time) = early.request.time_to_come(past) else { return false };
        let made = self.config.queue_blocks + self.config.cascade_width + MARGIN;
        let near = self.counters.blocks + made as u64;
        !self.is_timed || (self.is_live && self.block_from(self.pace.frame_from(time)) > near)
    }

    fn give(&mut self, early: Early, past: Option<gst::ClockTime>) {
        let Early { request, change, since } = early;
        let time = request.time_to_come(past);
        let from_block = time.map(|time| self.block_from(self.pace.frame_from(time)));
        let text = request.text.clone();
        let prompt = if self.book.is_too_early(from_block, time) {
            PromptId::default() // of no prompt that the generator has: it is settled when the block is shown
        } else {
            self.controls.set_prompt(Prompt { text, from_block, change: Some(change) })
        };
        self.book.wait(Waiting { prompt, request, from_block, since });
    }

    /// Prompts that wait for their frame.
    fn waiting(&self) -> usize {
        self.book.len() + self.early.len()
    }

    /// What has not been shown will not be.
    pub fn close(&mut self) -> Vec<Answer> {
        self.book.close(self.early.drain(..).map(|early| (early.request, early.since)))
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
        self.inserted = number.saturating_sub(frame.index);
        let is_next = std::mem::replace(&mut self.counters.blocks, frame.block + 1) <= frame.block;
        if is_next {
            self.hand_on(Some(self.pace.time(number)));
        }
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
            .field("prompts-queued", self.waiting() as u64)
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
