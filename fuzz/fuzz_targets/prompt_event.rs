//! Any structure as the prompt event, and as the options of the signal.
#![no_main]

use gstreamer as gst;
use gstreamer::prelude::*;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static SOURCE: LazyLock<gst::Element> = LazyLock::new(|| {
    gst::init().expect("GStreamer is installed");
    gstblockcascade::register_static().expect("it is registered once");
    gst::ElementFactory::make("blockcascadesrc").build().expect("it is registered")
});

fuzz_target!(|text: &str| {
    let source = &*SOURCE;
    let Ok(fields) = format!("blockcascade/prompt, {text}").parse::<gst::Structure>() else { return };
    let is_taken = source.send_event(gst::event::CustomUpstream::new(fields.clone()));
    let prompt = source.property::<Option<String>>("prompt");
    assert!(!is_taken || prompt.as_deref() == fields.get::<&str>("text").ok());
    source.emit_by_name::<bool>("set-prompt", &[&text.replace('\0', ""), &fields]);
});
