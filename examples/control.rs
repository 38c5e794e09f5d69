//! Prompts from a program, by each of the ways in, and the answers:
//! `cargo run --release --example control`.
#![allow(clippy::print_stdout)] // an example speaks to its reader

use anyhow::{Context, Result, bail, ensure};
use gstreamer as gst;
use gstreamer::prelude::*;

/// Text that an application pushes goes by an appsrc, as it would by `fdsrc` or `subparse`.
const LINE: &str =
    "blockcascadesrc name=src wait-prompt=false prompt=\"a sea\" ! fakesink sync=true
                    appsrc name=text format=time caps=text/x-raw,format=utf8 ! src.prompt";

fn main() -> Result<()> {
    gst::init()?;
    gstblockcascade::register_static()?; // or let GST_PLUGIN_PATH name the plugin's folder
    let pipeline = gst::parse::launch(LINE)?;
    let bin = pipeline.downcast_ref::<gst::Bin>().context("a line of elements is a bin")?;
    let source = bin.by_name("src").context("no src")?;
    let text = bin.by_name("text").context("no text")?;
    pipeline.set_state(gst::State::Playing)?;
    pipeline.state(gst::ClockTime::from_seconds(60)).0?; // the first frame is there

    // The property: what is shown from now on.
    source.set_property("prompt", "a desert");
    answered(&pipeline, "property")?;

    // The signal: says whether the prompt was taken, and has options. An `id` comes back.
    let options =
        gst::Structure::builder("options").field("id", "42").field("prompt-policy", "cut");
    let is_taken: bool = source.emit_by_name("set-prompt", &[&"snow", &options.build()]);
    ensure!(is_taken, "not taken");
    answered(&pipeline, "signal")?;

    // The event: it travels upstream, so that nobody needs to know where the source is.
    let prompt = gst::Structure::builder("blockcascade/prompt").field("text", "a forest");
    ensure!(pipeline.send_event(gst::event::CustomUpstream::new(prompt.build())), "not taken");
    answered(&pipeline, "event")?;

    // The text pad: a buffer is a prompt, and its time, if it has one, says when.
    let buffer = gst::Buffer::from_slice("a city at night");
    let _ = text.emit_by_name::<gst::FlowReturn>("push-buffer", &[&buffer]);
    answered(&pipeline, "text pad")?;

    pipeline.set_state(gst::State::Null)?;
    Ok(())
}

/// Waits for the message about the first frame of a prompt.
fn answered(pipeline: &gst::Element, way: &str) -> Result<()> {
    let bus = pipeline.bus().context("a pipeline has a bus")?;
    for message in bus.iter_timed(gst::ClockTime::from_seconds(60)) {
        match message.view() {
            gst::MessageView::Error(error) => bail!(error.error()),
            gst::MessageView::Element(element) => {
                let fields = element.structure().context("an element message has fields")?;
                if fields.name() == "blockcascade/prompt-applied" {
                    let (text, id) =
                        (fields.get::<&str>("text")?, fields.get_optional::<&str>("id")?);
                    let (frame, block) = (fields.get::<u64>("frame")?, fields.get::<u64>("block")?);
                    let time = gst::ClockTime::from_nseconds(fields.get("pts")?);
                    println!(
                        "{way}: {text:?} from frame {frame}, block {block}, {time:.3}, id {id:?}"
                    );
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    bail!("no answer to {way}")
}
