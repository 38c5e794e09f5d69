//! What lets a stream through to a connection: from a key frame on, with times that start there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gstreamer as gst;
use gstreamer::prelude::*;

/// A connection's appsrcs by their names.
pub type Entrances = Arc<HashMap<String, gst::Element>>;
/// A running time, which may lie before a segment's start.
type RunningTime = gst::Signed<gst::ClockTime>;

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
    Open(Entrances, RunningTime),
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
        if of_video(sample) {
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Waiting(entrances) = &*state
            && is_key_frame(sample)
        {
            *state = State::Open(entrances.clone(), start(sample)?);
        }
        let State::Open(entrances, start) = &*state else { return None };
        let sample = retimed(sample, *start)?;
        Some((entrances.get(stream)?.clone(), sample))
    }
}

pub fn is_video(caps: &gst::CapsRef) -> bool {
    caps.structure(0).is_some_and(|first| first.name().starts_with("video/"))
}

fn of_video(sample: &gst::Sample) -> bool {
    sample.caps().is_some_and(is_video)
}

fn is_key_frame(sample: &gst::Sample) -> bool {
    let is_delta = |buffer: &gst::BufferRef| buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
    of_video(sample) && !sample.buffer().is_some_and(is_delta)
}

/// Where a connection begins whose first sample this is: pictures that others refer to are decoded
/// before they are shown.
fn start(sample: &gst::Sample) -> Option<RunningTime> {
    let buffer = sample.buffer()?;
    let pts = running_time(sample, buffer.pts()?)?;
    let dts = buffer.dts().and_then(|dts| running_time(sample, dts));
    Some(dts.map_or(pts, |dts| dts.min(pts)))
}

/// The sample with its times since the start; none, if it is from before.
fn retimed(sample: &gst::Sample, start: RunningTime) -> Option<gst::Sample> {
    let since = |time| {
        let since = running_time(sample, time)?.checked_sub(start)?;
        (since.signum() >= 0).then_some(since.abs()) // there is a zero that is not positive
    };
    let mut buffer = sample.buffer_owned()?;
    let (pts, dts) = (since(buffer.pts()?)?, buffer.dts().and_then(since));
    let times = buffer.make_mut();
    times.set_pts(pts);
    times.set_dts(dts);
    Some(gst::Sample::builder().buffer(&buffer).caps(&sample.caps_owned()?).build())
}

/// Encoders number times as they like: their segment knows.
fn running_time(sample: &gst::Sample, time: gst::ClockTime) -> Option<RunningTime> {
    sample.segment()?.downcast_ref::<gst::ClockTime>()?.to_running_time_full(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of x264enc's segment.
    const ORIGIN: gst::ClockTime = gst::ClockTime::from_seconds(1000 * 60 * 60);
    const MS: gst::ClockTime = gst::ClockTime::MSECOND;

    /// A picture that is decoded and shown so many milliseconds after the origin.
    fn picture(is_key: bool, dts: i64, pts: i64) -> gst::Sample {
        let after = |ms: i64| {
            if ms < 0 { ORIGIN - ms.unsigned_abs() * MS } else { ORIGIN + ms as u64 * MS }
        };
        let mut buffer = gst::Buffer::new();
        let fields = buffer.get_mut().unwrap();
        fields.set_dts(after(dts));
        fields.set_pts(after(pts));
        if !is_key {
            fields.set_flags(gst::BufferFlags::DELTA_UNIT);
        }
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_start(ORIGIN);
        let caps = gst::Caps::new_empty_simple("video/x-h264");
        gst::Sample::builder().buffer(&buffer).caps(&caps).segment(&segment).build()
    }

    /// What arrives: when it is decoded and shown, in milliseconds.
    fn arrivals(pictures: &[(bool, i64, i64)]) -> Vec<(Option<u64>, u64)> {
        gst::init().unwrap();
        let entrance = gst::ElementFactory::make("appsrc").build().unwrap();
        let valve = Valve::default();
        valve.open_at_key_frame(Arc::new([("video".to_owned(), entrance)].into()));
        let arrival = |&(is_key, dts, pts): &(bool, i64, i64)| {
            let (_, sample) = valve.admit("video", &picture(is_key, dts, pts))?;
            let buffer = sample.buffer()?;
            Some((buffer.dts().map(gst::ClockTime::mseconds), buffer.pts()?.mseconds()))
        };
        pictures.iter().filter_map(arrival).collect()
    }

    /// Two pictures are shown between the key frame and the one that is decoded next.
    #[test]
    fn a_stream_with_b_frames_keeps_its_times() {
        let stream = [(true, -80, 0), (false, -40, 120), (false, 0, 40), (false, 40, 80)];
        let expected = [(Some(0), 80), (Some(40), 200), (Some(80), 120), (Some(120), 160)];
        assert_eq!(arrivals(&stream), expected);
        let later = stream.map(|(is_key, dts, pts)| (is_key, dts + 1000, pts + 1000));
        assert_eq!(arrivals(&later), expected);
    }

    #[test]
    fn what_is_shown_before_the_start_is_dropped() {
        let stream = [(false, 0, 40), (true, 40, 40), (false, 80, 20), (false, 120, 80)];
        assert_eq!(arrivals(&stream), [(Some(0), 0), (Some(80), 40)]);
    }
}
