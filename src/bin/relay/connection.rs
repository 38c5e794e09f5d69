//! The pipeline that sends, from one start to its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gstreamer as gst;
use gstreamer::prelude::*;

use crate::maker::{of_kind, parse, reason};
use crate::valve::Entrances;

/// Who takes nothing for so long, though there is as much to send, is not there any more.
const PATIENCE: Duration = Duration::from_secs(5);
/// So much of one stream is not kept for it, whatever is taken of the others.
const MOST: Duration = Duration::from_secs(6 * PATIENCE.as_secs());
/// How long the last of a stream may take to leave.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often is looked meanwhile whether it may.
const LOOK: gst::ClockTime = gst::ClockTime::from_mseconds(50);
/// Whoever takes a stream for so long has accepted it.
const STEADY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Connection {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    entrances: Entrances,
    uptake: Arc<Mutex<Uptake>>,
}

/// What the threads of the sinks tell.
#[derive(Clone, Copy, Debug)]
struct Uptake {
    /// When one came to its second buffer: it had done with the first one then.
    accepted: Option<Instant>,
    /// When one came to a buffer last, or was started.
    last: Instant,
}

impl Connection {
    /// With an appsrc for each of the streams.
    pub fn open(words: &[String], streams: &[String]) -> Result<Self> {
        let pipeline = parse(words)?;
        let sources = of_kind(&pipeline, "appsrc");
        let entrance = |name: &String| {
            let source = sources.iter().find(|source| source.name() == *name);
            let source = source.with_context(|| format!("expected an appsrc name={name}"))?;
            source.set_property("format", gst::Format::Time);
            source.set_property("max-bytes", 0_u64); // it is the time that counts
            Ok((name.clone(), source.clone()))
        };
        let entrances = Arc::new(streams.iter().map(entrance).collect::<Result<_>>()?);
        let bus = pipeline.bus().context("a pipeline has a bus")?;
        let uptake = Arc::new(Mutex::new(Uptake { accepted: None, last: Instant::now() }));
        let connection = Self { pipeline, bus, entrances, uptake };
        connection.watch_sinks();
        let _ = connection.pipeline.set_state(gst::State::Playing); // its bus tells of a failure
        Ok(connection)
    }

    /// By all their pads: some have one for each stream, which they are asked for.
    fn watch_sinks(&self) {
        let buffers = gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST;
        let sinks = self.pipeline.iterate_sinks().into_iter().flatten();
        for pad in sinks.flat_map(|sink| sink.sink_pads()) {
            let (uptake, has_first) = (self.uptake.clone(), AtomicBool::new(false));
            pad.add_probe(buffers, move |_, _| {
                let mut uptake = uptake.lock().unwrap_or_else(PoisonError::into_inner);
                uptake.last = Instant::now();
                if has_first.swap(true, Ordering::Relaxed) {
                    let last = uptake.last;
                    uptake.accepted.get_or_insert(last);
                }
                gst::PadProbeReturn::Ok
            });
        }
    }

    fn uptake(&self) -> Uptake {
        *self.uptake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn entrances(&self) -> Entrances {
        self.entrances.clone()
    }

    pub fn is_steady(&self) -> bool {
        self.uptake().accepted.is_some_and(|accepted| accepted.elapsed() >= STEADY)
    }

    /// Why it sends no more.
    pub fn failure(&self) -> Option<String> {
        let kinds = [gst::MessageType::Error, gst::MessageType::Eos];
        let message = self.bus.pop_filtered(&kinds);
        match message.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Error(error)) => Some(reason(error)),
            Some(_) => Some("it ended".into()),
            None => self.stuck(),
        }
    }

    /// Streams may wait for each other, and wait long where one is late, but not without end.
    fn stuck(&self) -> Option<String> {
        let level = |entrance: &gst::Element| entrance.property::<u64>("current-level-time");
        let most = Duration::from_nanos(self.entrances.values().map(level).max()?);
        if most > MOST {
            return Some(format!("{} s of a stream are not taken", MOST.as_secs()));
        }
        let is_idle = self.uptake().last.elapsed() > PATIENCE;
        (is_idle && most > PATIENCE)
            .then(|| format!("nothing is taken for {} s", PATIENCE.as_secs()))
    }

    /// Sends what it has, and says good-bye, as long as it may.
    pub fn finish(self, may_wait: impl Fn() -> bool) {
        for entrance in self.entrances.values() {
            let _ = entrance.emit_by_name::<gst::FlowReturn>("end-of-stream", &[]);
        }
        let kinds = [gst::MessageType::Error, gst::MessageType::Eos];
        let latest = Instant::now() + FAREWELL;
        while may_wait() && Instant::now() < latest {
            if self.bus.timed_pop_filtered(LOOK, &kinds).is_some() {
                return;
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null); // down never fails
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer of a stream, a second after the one before.
    fn push(connection: &Connection, stream: &str, second: u64) {
        let mut buffer = gst::Buffer::new();
        let times = buffer.get_mut().unwrap();
        times.set_pts(gst::ClockTime::from_seconds(second));
        times.set_duration(gst::ClockTime::SECOND);
        let entrance = &connection.entrances()[stream];
        let pushed = entrance.emit_by_name::<gst::FlowReturn>("push-buffer", &[&buffer]);
        assert_eq!(pushed, gst::FlowReturn::Ok);
    }

    #[test]
    fn one_stream_is_not_kept_for_ever_while_another_is_taken() {
        gst::init().unwrap();
        let line = "appsrc name=video ! fakesink sync=false async=false
                    appsrc name=audio ! fakesink sync=true ts-offset=1000000000000 async=false";
        let words: Vec<_> = line.split_whitespace().map(String::from).collect();
        let streams = ["video", "audio"].map(String::from);
        let connection = Connection::open(&words, &streams).unwrap();
        for second in 0..MOST.as_secs() {
            push(&connection, "video", second);
            push(&connection, "audio", second);
            assert_eq!(connection.failure(), None, "{second} s");
        }
        for second in 0..3 {
            push(&connection, "audio", MOST.as_secs() + second);
        }
        assert_eq!(connection.failure().unwrap(), "30 s of a stream are not taken");
    }
}
