//! What goes wrong behind the element, and how it stops while it works.

use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_check::Harness;

use super::support::PATIENCE;
use super::toy::{Behaviour, Toy};
use super::{Stopped, errors, init, only_error, playing_as, started};

/// Plays an element in a pipeline until it posts an error.
fn error_of(properties: &str) -> (Stopped, glib::Error) {
    init();
    let line = format!("blockcascadesrc name=src seed=0 {properties} ! fakesink");
    let pipeline = Stopped(gst::parse::launch(&line).unwrap());
    pipeline.set_state(gst::State::Playing).unwrap();
    let error = only_error(&pipeline);
    (pipeline, error)
}

#[test]
fn a_panic_is_one_error_and_the_next_start_works() {
    let toy = Toy::new(Behaviour::Panic);
    let (pipeline, error) = error_of(&toy.model());
    assert!(error.matches(gst::StreamError::Failed), "{error:?}");
    assert!(error.message().contains("the toy is broken"), "{error}");
    pipeline.set_state(gst::State::Null).unwrap();
    toy.behave(Behaviour::Work);
    let source = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("src").unwrap();
    source.set_property("num-buffers", 30);
    pipeline.set_state(gst::State::Playing).unwrap();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = pipeline.bus().unwrap().timed_pop_filtered(PATIENCE, &kinds).unwrap();
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
    pipeline.set_state(gst::State::Null).unwrap();
}

#[test]
fn twenty_pipelines_whose_generator_panics_leave_the_process_alive() {
    let toy = Toy::new(Behaviour::Panic);
    for _ in 0..20 {
        let (pipeline, _) = error_of(&toy.model());
        pipeline.set_state(gst::State::Null).unwrap();
    }
}

/// What was mended is forgotten: a later failure is told like the first.
#[test]
fn after_a_flush_an_error_is_told_again() {
    let toy = Toy::new(Behaviour::Work);
    init();
    let line =
        format!("blockcascadesrc name=src seed=0 {} ! fakesink name=sink async=false", toy.model());
    let pipeline = Stopped(gst::parse::launch(&line).unwrap());
    let by_name = |name| pipeline.downcast_ref::<gst::Bin>().unwrap().by_name(name).unwrap();
    let (source, sink) = (by_name("src"), by_name("sink"));
    pipeline.set_state(gst::State::Playing).unwrap();
    pipeline.state(PATIENCE).0.unwrap();
    source.unlink(&sink);
    only_error(&pipeline);
    source.link(&sink).unwrap();
    toy.behave(Behaviour::Panic);
    assert!(source.send_event(gst::event::FlushStart::new()));
    assert!(source.send_event(gst::event::FlushStop::new(true)));
    let error = only_error(&pipeline);
    assert!(error.message().contains("the toy is broken"), "{error}");
}

/// It does not mend the generator, of which nothing more comes: that is no end of the stream.
#[test]
fn a_failure_is_one_after_any_flush() {
    let toy = Toy::new(Behaviour::Panic);
    init();
    let line = format!("blockcascadesrc name=src seed=0 {} ! fakesink async=false", toy.model());
    let pipeline = Stopped(gst::parse::launch(&line).unwrap());
    let source = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("src").unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    only_error(&pipeline);
    for _ in 0..2 {
        assert!(source.send_event(gst::event::FlushStart::new()));
        assert!(source.send_event(gst::event::FlushStop::new(true)));
        let error = only_error(&pipeline);
        assert!(error.message().contains("the toy is broken"), "{error}");
    }
}

/// Flushing, pausing and stopping do not wait for the block that is made.
#[test]
fn a_blocked_stream_is_unlocked_at_once() {
    let layer = 2 * Duration::from(PATIENCE);
    let toy = Toy::new(Behaviour::Slow(layer));
    let (element, harness) = playing_as(&toy.model(), "video/x-raw, format=RGB");
    std::thread::sleep(Duration::from_millis(100)); // it waits for its first frame now
    let begun = Instant::now();
    let pad = element.static_pad("src").unwrap();
    assert!(pad.send_event(gst::event::FlushStart::new()));
    let flushed = begun.elapsed();
    assert!(pad.send_event(gst::event::FlushStop::new(true)));
    let begun = Instant::now();
    element.set_state(gst::State::Paused).unwrap();
    element.set_state(gst::State::Playing).unwrap();
    let paused = begun.elapsed();
    let begun = Instant::now();
    harness.element().unwrap().set_state(gst::State::Null).unwrap();
    let stopped = begun.elapsed();
    // Far less than a layer, and far more than it takes, for machines are busy.
    let times = [flushed, paused, stopped];
    assert!(times.iter().all(|&time| time < layer / 2), "{times:?}");
}

/// With pocket, which is being loaded, and with networks that are there and quick.
#[test]
fn storms_of_states_leave_nothing_behind() {
    let toy = Toy::new(Behaviour::Work);
    let holders = toy.holders();
    for model in ["model=pocket", &toy.model()] {
        let (element, _) = started(&format!("is-live=true {model}"));
        let mut harness = Harness::with_element(&*element, None, Some("src"));
        harness.set_drop_buffers(true);
        let states = [gst::State::Null, gst::State::Ready, gst::State::Paused, gst::State::Playing];
        let mut number = 12345u32;
        for _ in 0..250 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            element.set_state(states[(number >> 16) as usize % states.len()]).unwrap();
        }
        element.set_state(gst::State::Null).unwrap();
        assert_eq!(errors(&element), []);
    }
    // Threads of streams that were left end by themselves.
    let patience = Instant::now() + Duration::from(PATIENCE);
    while toy.holders() > holders {
        assert!(Instant::now() < patience, "{} hold the networks", toy.holders());
        std::thread::yield_now();
    }
}
