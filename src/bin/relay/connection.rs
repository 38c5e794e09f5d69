//! The pipeline that sends, from one start to its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gstreamer as gst;
use gstreamer::prelude::*;

use crate::maker::{of_kind, parse, reason};
use crate::valve::Entrances;

/// Who takes nothing for so long, though there is as much to send, is not there any more.
const PATIENCE: Duration = Duration::from_secs(5);
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

/// What the sink's thread tells.
#[derive(Clone, Copy, Debug)]
struct Uptake {
    /// When it came to its second buffer: it had done with the first one then.
    accepted: Option<Instant>,
    /// When it came to a buffer last, or was started.
    last: Instant,
    has_first: bool,
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
        let uptake = Uptake { accepted: None, last: Instant::now(), has_first: false };
        let uptake = Arc::new(Mutex::new(uptake));
        let connection = Self { pipeline, bus, entrances, uptake };
        connection.watch_sink();
        let _ = connection.pipeline.set_state(gst::State::Playing); // its bus tells of a failure
        Ok(connection)
    }

    fn watch_sink(&self) {
        let sinks = self.pipeline.iterate_sinks().into_iter().flatten();
        for pad in sinks.filter_map(|sink| sink.static_pad("sink")) {
            let uptake = self.uptake.clone();
            pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
                let mut uptake = uptake.lock().unwrap_or_else(PoisonError::into_inner);
                uptake.last = Instant::now();
                if std::mem::replace(&mut uptake.has_first, true) {
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
            None => {
                self.is_stuck().then(|| format!("nothing is taken for {} s", PATIENCE.as_secs()))
            }
        }
    }

    /// Streams may wait for each other, and wait long where one is late.
    fn is_stuck(&self) -> bool {
        let level = |entrance: &gst::Element| entrance.property::<u64>("current-level-time");
        let is_full = |entrance| u128::from(level(entrance)) > PATIENCE.as_nanos();
        self.uptake().last.elapsed() > PATIENCE && self.entrances.values().any(is_full)
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
