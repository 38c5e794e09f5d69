//! Prompts on their way in, by each of the ways that there are, and the answers to them.

use std::time::Instant;

use glib::subclass::Signal;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_base::prelude::*;
use gstreamer_video as gst_video;

use super::frames::Work;
use super::imp::{BlockCascadeSrc, lock};
use super::prompts::{self, Answer, Request, Shown};
use super::properties::Property;
use super::stream::Stream;
use super::text::Known;
use crate::generator::Frame;

/// Prompts.
impl BlockCascadeSrc {
    pub(super) fn set_prompt_property(&self, property: &Property, value: &glib::Value) {
        let text = value.get::<Option<String>>().ok().flatten().unwrap_or_default();
        match Request::new(&text) {
            Ok(request) => {
                property.set(&mut lock(&self.settings), value);
                self.ask(request);
            }
            Err(reason) => self.refuse(&reason),
        }
    }

    /// Hands a prompt to the generator; whether there is one that takes it.
    fn ask(&self, request: Request) -> bool {
        let usual = lock(&self.settings).change();
        let past = self.past();
        let taken = lock(&self.stream).as_mut().map(|stream| stream.take(request, usual, past));
        if taken == Some(false) {
            self.refuse(&format!("{} prompts wait for their frame already", prompts::MAX_WAITING));
        }
        taken == Some(true)
    }

    /// Asks for the prompt of the settings, if it is not the one that a stream has just started from.
    pub(super) fn ask_if_new(&self, started: &str) {
        let prompt = lock(&self.settings).prompt.clone();
        if prompt != started
            && let Ok(request) = Request::new(&prompt)
        {
            self.ask(request);
        }
    }

    /// The running time up to which a live stream has been shown: a clock goes on while it is paused.
    fn past(&self) -> Option<gst::ClockTime> {
        if !self.obj().is_live() {
            return None;
        }
        if self.obj().current_state() == gst::State::Playing {
            return Some(self.running_time());
        }
        let shown = lock(&self.stream).as_ref().and_then(Stream::time_shown);
        Some(shown.unwrap_or_default())
    }

    /// From now on it is known which frame is shown when.
    pub(super) fn time_prompts(&self) {
        let past = self.past();
        if let Some(stream) = lock(&self.stream).as_mut() {
            stream.timed(past);
        }
    }

    fn refuse(&self, reason: &str) {
        gst::element_imp_warning!(self, gst::ResourceError::Settings, ("prompt refused: {reason}"));
    }

    /// Whether an event is a prompt that is accepted; `None` if it is no prompt at all.
    pub(super) fn prompt_event(&self, event: &gst::Event) -> Option<bool> {
        let fields = event.structure().filter(|fields| fields.name() == prompts::EVENT)?;
        if !event.is_upstream() {
            return None;
        }
        let is_duplicate = |stream: &mut Stream| stream.book.is_duplicate(event.seqnum());
        if lock(&self.stream).as_mut().is_some_and(is_duplicate) {
            return Some(true);
        }
        Some(self.parse_and_ask(fields))
    }

    fn parse_and_ask(&self, fields: &gst::StructureRef) -> bool {
        match Request::parse(fields) {
            Ok(request) => self.ask_from_now_on(request),
            Err(reason) => {
                self.refuse(&reason);
                false
            }
        }
    }

    /// A prompt for no certain time is also what the next stream starts from.
    fn ask_from_now_on(&self, request: Request) -> bool {
        if request.running_time.is_none() {
            lock(&self.settings).prompt.clone_from(&request.text);
            self.obj().notify("prompt");
            return self.ask(request) || lock(&self.stream).is_none();
        }
        let is_asked = self.ask(request);
        if lock(&self.stream).is_none() {
            self.refuse("it names a time, and nothing runs yet");
        }
        is_asked
    }

    /// Counts a frame, and tells everybody when it is the first of its prompt.
    pub(super) fn shows(&self, work: &Work, frame: &Frame) {
        let (Shown { is_first, answers }, time) = {
            let mut stream = lock(&self.stream);
            let Some(stream) = stream.as_mut() else { return };
            stream.shows(frame, work.number);
            let shown = stream.book.show(&frame.prompt, frame.block);
            if shown.is_first {
                stream.current_prompt = Some(frame.prompt.text.clone());
            }
            let applied = shown.answers.iter().rev().find(|answer| answer.applied);
            stream.prompt_latency = applied.map(|a| a.since.elapsed()).or(stream.prompt_latency);
            (shown, stream.pace.time(work.number))
        };
        let fields = [
            ("frame", frame.index),
            ("block", frame.block),
            ("offset", work.number),
            ("pts", time.nseconds()),
        ];
        self.post_answers(&answers, &fields);
        if !is_first {
            return;
        }
        if work.number > 0 && lock(&self.settings).force_key_unit {
            let event = gst_video::DownstreamForceKeyUnitEvent::builder().all_headers(true).build();
            self.parent_send_event(event);
        }
        self.obj().notify("current-prompt");
    }

    /// A message and an event downstream for each prompt that was applied or dropped.
    pub(super) fn post_answers(&self, answers: &[Answer], place: &[(&str, u64)]) {
        for answer in answers {
            let fields = answer_fields(answer, place);
            self.post_element_message(fields.clone());
            if !place.is_empty() {
                self.parent_send_event(gst::event::CustomDownstream::new(fields));
            }
        }
    }
}

/// The text pad.
impl BlockCascadeSrc {
    pub(super) fn text_pad(&self, template: &gst::PadTemplate) -> gst::Pad {
        gst::Pad::builder_from_template(template)
            .chain_function(|_, parent, buffer| {
                let failed = || Err(gst::FlowError::Error);
                Self::catch_panic_pad_function(parent, failed, |element| element.chain(&buffer))
            })
            .event_function(|_, parent, event| {
                Self::catch_panic_pad_function(
                    parent,
                    || false,
                    |element| element.text_event(&event),
                )
            })
            .build()
    }

    /// Takes a prompt and waits for nothing.
    fn chain(&self, buffer: &gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let (prompt, time) = {
            let text = lock(&self.text);
            (text.prompt(buffer), text.time(buffer))
        };
        match prompt {
            Ok(Some(request)) => {
                self.ask(request);
            }
            Ok(None) => {}
            Err(reason) => {
                gst::element_imp_warning!(self, gst::StreamError::Decode, ("prompt: {reason}"));
            }
        }
        // Not before the prompt is where it belongs: a block for which all is known may start.
        lock(&self.text).advance(time);
        self.hold_blocks();
        Ok(gst::FlowSuccess::Ok)
    }

    /// Nothing of the text goes on downstream; its end does not end the video.
    fn text_event(&self, event: &gst::EventRef) -> bool {
        lock(&self.text).event(event);
        self.hold_blocks();
        true
    }

    /// Lets those blocks start whose text is known.
    pub(super) fn hold_blocks(&self) {
        let waits = !self.obj().is_live() && lock(&self.settings).wait_prompt;
        let stream = lock(&self.stream);
        let Some(stream) = stream.as_ref() else { return };
        // Asked for in the order in which blocks are held: an older answer never comes last.
        let known = if waits { lock(&self.text).known() } else { Known::All };
        let after = |time: gst::ClockTime| {
            stream.pace.frame_from(time.saturating_add(gst::ClockTime::NSECOND))
        };
        stream.controls.hold(match known {
            Known::All => None,
            Known::Until(time) if stream.info.is_some() => Some(stream.block_from(after(time))),
            Known::Until(_) | Known::Nothing => Some(0),
        });
    }
}

fn answer_fields(answer: &Answer, place: &[(&str, u64)]) -> gst::Structure {
    let name = if answer.applied { "prompt-applied" } else { "prompt-dropped" };
    let mut fields = gst::Structure::builder(format!("blockcascade/{name}"))
        .field("text", &answer.request.text)
        .field_if_some("id", answer.request.id.as_ref())
        .field("latency", gst::ClockTime::from_nseconds(elapsed(answer.since)));
    if answer.applied {
        fields = place.iter().fold(fields, |fields, &(name, value)| fields.field(name, value));
    } else {
        fields = fields.field("reason", "another prompt took its place, or the stream ended");
    }
    fields.build()
}

fn elapsed(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn set_prompt_signal() -> Signal {
    Signal::builder("set-prompt")
        .param_types([String::static_type(), gst::Structure::static_type()])
        .return_type::<bool>()
        .action()
        .class_handler(|args| {
            let element = args[0].get::<super::BlockCascadeSrc>().ok()?;
            let text = args[1].get::<Option<String>>().ok()?.unwrap_or_default();
            let options = args[2].get::<Option<gst::Structure>>().ok()?;
            let mut fields = options.unwrap_or_else(|| gst::Structure::new_empty("options"));
            fields.set("text", text);
            Some(element.imp().parse_and_ask(&fields).to_value())
        })
        .build()
}
