//! What lets a stream through to a connection: from a key frame on, with times that start there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gstreamer as gst;
use gstreamer::prelude::*;

/// A connection's appsrcs by their names.
pub type Entrances = Arc<HashMap<String, gst::Element>>;

/// Between the threads that make and the connection of the moment. Nothing waits here.
#[derive(Debug, Default)]
pub struct Valve {
    state: Mutex<State>,
    /// Pictures, counted by the threads that make them.
    sent: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Shut,
    /// For a key frame.
    Waiting(Entrances),
    /// Since a running time.
    Open(Entrances, gst::ClockTime),
}

impl Valve {
    pub fn open_at_key_frame(&self, entrances: Entrances) {
        self.set(State::Waiting(entrances));
    }

    pub fn shut(&self) {
        self.set(State::Shut);
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Pictures that went through, and that did not.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }

    /// Hands a stream's sample on to the connection, or drops it.
    pub fn pass(&self, stream: &str, sample: &gst::Sample) {
        let passed = self.admit(stream, sample);
        if is_video(sample) {
            let count = if passed.is_some() { &self.sent } else { &self.dropped };
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some((entrance, sample)) = passed {
            // It refuses only at its end, of which the connection's own bus tells.
            let _ = entrance.emit_by_name::<gst::FlowReturn>("push-sample", &[&sample]);
        }
    }

    /// Where a sample goes, and the sample with its time there.
    fn admit(&self, stream: &str, sample: &gst::Sample) -> Option<(gst::Element, gst::Sample)> {
        let time = running_time(sample, sample.buffer()?.pts()?)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Waiting(entrances) = &*state
            && is_key_frame(sample)
        {
            *state = State::Open(entrances.clone(), time);
        }
        let State::Open(entrances, start) = &*state else { return None };
        let sample = retimed(sample, *start)?;
        Some((entrances.get(stream)?.clone(), sample))
    }
}

fn is_video(sample: &gst::Sample) -> bool {
    let first = sample.caps().and_then(|caps| caps.structure(0));
    first.is_some_and(|first| first.name().starts_with("video/"))
}

fn is_key_frame(sample: &gst::Sample) -> bool {
    let is_delta = |buffer: &gst::BufferRef| buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
    is_video(sample) && !sample.buffer().is_some_and(is_delta)
}

/// The sample with its times since the start; none, if it is from before.
fn retimed(sample: &gst::Sample, start: gst::ClockTime) -> Option<gst::Sample> {
    let since = |time| running_time(sample, time)?.checked_sub(start);
    let mut buffer = sample.buffer_owned()?;
    let (pts, dts) = (since(buffer.pts()?)?, buffer.dts().and_then(since));
    let times = buffer.make_mut();
    times.set_pts(pts);
    times.set_dts(dts);
    Some(gst::Sample::builder().buffer(&buffer).caps(&sample.caps_owned()?).build())
}

/// Encoders number times as they like: their segment knows.
fn running_time(sample: &gst::Sample, time: gst::ClockTime) -> Option<gst::ClockTime> {
    sample.segment()?.downcast_ref::<gst::ClockTime>()?.to_running_time(time)
}
