//! Any bytes as buffers on the text pad, with any time and in either format.
#![no_main]

use gstreamer as gst;
use gstreamer::prelude::*;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static PAD: LazyLock<(gst::Element, gst::Pad)> = LazyLock::new(|| {
    gst::init().expect("GStreamer is installed");
    gstblockcascade::register_static().expect("it is registered once");
    let source = gst::ElementFactory::make("blockcascadesrc").build().expect("it is registered");
    let pad = source.request_pad_simple("prompt").expect("there is one text pad");
    pad.set_active(true).expect("a pad can be active");
    pad.send_event(gst::event::StreamStart::new("fuzz"));
    (source, pad)
});

fuzz_target!(|input: (bool, u64, Vec<Vec<u8>>)| {
    let (is_markup, start, texts) = input;
    let pad = &PAD.1;
    let format = if is_markup { "pango-markup" } else { "utf8" };
    let caps = gst::Caps::builder("text/x-raw").field("format", format).build();
    pad.send_event(gst::event::Caps::new(&caps));
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(gst::ClockTime::try_from(start).ok());
    pad.send_event(gst::event::Segment::new(&segment));
    for text in texts {
        let mut buffer = gst::Buffer::from_slice(text);
        buffer.get_mut().expect("it is ours").set_pts(gst::ClockTime::try_from(start).ok());
        pad.chain(buffer).expect("text never ends the stream");
    }
});
