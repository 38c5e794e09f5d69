//! The pipeline that makes the streams, once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video as gst_video;

use crate::valve::{Valve, is_video};
use crate::{say, warn};

const PROMPT_APPLIED: &str = "blockcascade/prompt-applied";
/// The element whose statistics are told at the end.
const SOURCE: &str = "blockcascadesrc";

#[derive(Debug)]
pub struct Maker {
    pipeline: gst::Pipeline,
    sinks: Vec<gst::Element>,
    /// One of the streams is over; told by the thread that makes it.
    is_over: Arc<AtomicBool>,
}

impl Maker {
    /// Whatever comes out goes to the valve.
    pub fn new(words: &[String], valve: &Arc<Valve>) -> Result<Self> {
        let pipeline = parse(words)?;
        let sinks = of_kind(&pipeline, "appsink");
        ensure!(!sinks.is_empty(), "no appsink, expected one for each stream");
        let is_over = Arc::new(AtomicBool::new(false));
        for sink in &sinks {
            pass_on(sink, valve.clone());
            let is_over = is_over.clone();
            sink.connect("eos", false, move |_| {
                is_over.store(true, Ordering::Relaxed);
                None
            });
        }
        Ok(Self { pipeline, sinks, is_over })
    }

    pub fn streams(&self) -> Vec<String> {
        self.sinks.iter().map(|sink| sink.name().into()).collect()
    }

    pub fn start(&self) -> Result<()> {
        if let Err(error) = self.pipeline.set_state(gst::State::Playing) {
            self.message(Duration::ZERO)?; // the reason, if one was given
            return Err(error.into());
        }
        Ok(())
    }

    /// The next picture is to be one that a viewer can begin with.
    pub fn ask_key_frame(&self) {
        for pad in self.sinks.iter().filter_map(|sink| sink.static_pad("sink")) {
            let event = gst_video::UpstreamForceKeyUnitEvent::builder().all_headers(true).build();
            pad.push_event(event);
        }
    }

    /// Ends all streams; asked again, it makes no difference.
    pub fn end(&self) {
        self.pipeline.send_event(gst::event::Eos::new());
    }

    /// Listens for so long. The first stream that ends ends the others.
    pub fn has_ended(&self, patience: Duration) -> Result<bool> {
        if self.is_over.load(Ordering::Relaxed) {
            self.end();
        }
        let message = self.message(patience)?;
        Ok(message.is_some_and(|message| message.type_() == gst::MessageType::Eos))
    }

    fn message(&self, patience: Duration) -> Result<Option<gst::Message>> {
        let kinds = [
            gst::MessageType::Eos,
            gst::MessageType::Error,
            gst::MessageType::Element,
            gst::MessageType::AsyncDone,
            gst::MessageType::Warning,
        ];
        let patience = gst::ClockTime::try_from(patience)?;
        let bus = self.pipeline.bus().context("a pipeline has a bus")?;
        let message = bus.timed_pop_filtered(patience, &kinds);
        match message.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Error(error)) => bail!(reason(error)),
            Some(gst::MessageView::Element(element)) => {
                element.structure().and_then(applied).inspect(|line| say(line));
            }
            Some(gst::MessageView::Warning(warning)) => {
                let from = warning.src().map(|element| element.name()).unwrap_or_default();
                warn(format_args!("{from}: {}", warning.error()));
            }
            Some(gst::MessageView::AsyncDone(_)) => self.check_streams()?,
            _ => {}
        }
        Ok(message)
    }

    /// Once all streams are there: a connection begins at a key frame of one of them.
    fn check_streams(&self) -> Result<()> {
        let pads = self.sinks.iter().filter_map(|sink| sink.static_pad("sink"));
        let caps: Vec<_> = pads.map(|pad| pad.current_caps()).collect();
        let may_be_video = caps.iter().any(|caps| caps.as_deref().is_none_or(is_video));
        ensure!(may_be_video, "no stream is video, expected one at least");
        Ok(())
    }

    /// What the sources made.
    pub fn statistics(&self) -> String {
        let sources = of_kind(&self.pipeline, SOURCE);
        let lines = sources.iter().map(|source| {
            let stats = source.property::<gst::Structure>("stats");
            let count = |name| stats.get::<u64>(name).unwrap_or_default();
            format!("; {} frames made, {} repeated", count("frames"), count("repeated"))
        });
        lines.collect()
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null); // down never fails
    }
}

pub fn parse(words: &[String]) -> Result<gst::Pipeline> {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let parsed = gst::parse::launchv(&words)?;
    parsed
        .downcast()
        .map_err(|element| anyhow::anyhow!("got {}, expected a pipeline", element.name()))
}

pub fn of_kind(pipeline: &gst::Pipeline, factory: &str) -> Vec<gst::Element> {
    let all = pipeline.iterate_all_by_element_factory_name(factory);
    all.into_iter().flatten().collect()
}

pub fn reason(error: &gst::message::Error) -> String {
    let from = error.src().map(|element| element.name()).unwrap_or_default();
    format!("{from}: {}", error.error())
}

/// Each sample as soon as it is there.
fn pass_on(sink: &gst::Element, valve: Arc<Valve>) {
    sink.set_property("sync", false);
    sink.set_property("emit-signals", true);
    let name = sink.name();
    sink.connect("new-sample", false, move |arguments| {
        let sink = arguments.first()?.get::<gst::Element>().ok()?;
        if let Some(sample) = sink.emit_by_name::<Option<gst::Sample>>("pull-sample", &[]) {
            valve.pass(&name, &sample);
        }
        Some(gst::FlowReturn::Ok.to_value())
    });
}

/// The answer to a prompt, for whoever typed it.
fn applied(fields: &gst::StructureRef) -> Option<String> {
    // What is on air counts repeated frames, too.
    let (text, frame) = (fields.get::<&str>("text").ok()?, fields.get::<u64>("offset").ok()?);
    let after = fields.get::<gst::ClockTime>("latency").ok()?;
    (fields.name() == PROMPT_APPLIED)
        .then(|| format!("from frame {frame} on, {:.1} s later: {text}", after.seconds_f64()))
}
