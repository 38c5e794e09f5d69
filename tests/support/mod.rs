//! What several test programs need of GStreamer.

use gstreamer as gst;
use gstreamer::prelude::*;

/// No test may hang: what waits longer than this has failed.
pub const PATIENCE: gst::ClockTime = gst::ClockTime::from_seconds(60);

/// Plays a pipeline to its end and shows every buffer that reaches its `fakesink name=sink`.
pub fn play_to_end(line: &str, each: impl Fn(&gst::Buffer) + Send + Sync + 'static) {
    let pipeline = gst::parse::launch(line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("sink").unwrap();
    sink.set_property("signal-handoffs", true);
    sink.connect("handoff", false, move |args| {
        each(&args[1].get::<gst::Buffer>().unwrap());
        None
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = pipeline.bus().unwrap().timed_pop_filtered(PATIENCE, &kinds);
    pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(end.as_ref().map(|end| end.type_()), Some(gst::MessageType::Eos), "{line}: {end:?}");
}
