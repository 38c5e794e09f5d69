//! Time that passes while nothing plays, and what is told before anything does.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_check::{Harness, TestClock};

use super::support::PATIENCE;
use super::toy::{Behaviour, Toy};
use super::{Stopped, await_waiting, crank, field, init, playing_as, pull, started};

/// A pipeline, and the time of each buffer that comes out of it.
fn timed(source: &str) -> (Stopped, mpsc::Receiver<gst::ClockTime>) {
    handed_on(source, |buffer| buffer.pts().unwrap())
}

/// The same, and its clock, which stands still.
fn timed_by_test(source: &str) -> (Stopped, TestClock, mpsc::Receiver<gst::ClockTime>) {
    let (pipeline, times) = timed(source);
    let clock = TestClock::new();
    pipeline.downcast_ref::<gst::Pipeline>().unwrap().use_clock(Some(&clock));
    (pipeline, clock, times)
}

/// A pipeline, and what is read of each buffer that comes out of it.
fn handed_on<T: Send + 'static>(
    source: &str,
    read: fn(&gst::Buffer) -> T,
) -> (Stopped, mpsc::Receiver<T>) {
    init();
    let line = format!("{source} ! fakesink name=sink signal-handoffs=true sync=false");
    let pipeline = Stopped(gst::parse::launch(&line).unwrap());
    let sink = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("sink").unwrap();
    let (sender, values) = mpsc::channel();
    sink.connect("handoff", false, move |arguments| {
        let buffer = arguments[1].get::<gst::Buffer>().unwrap();
        let _ = sender.send(read(&buffer)); // nobody may want it any more
        None
    });
    (pipeline, values)
}

#[test]
fn a_frame_that_comes_in_a_pause_is_due_when_it_is_over() {
    let toy = Toy::new(Behaviour::Slow(Duration::from_secs(2)));
    let source = format!("blockcascadesrc is-live=true {}", toy.model());
    let (pipeline, clock, times) = timed_by_test(&source);
    pipeline.set_state(gst::State::Playing).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    pipeline.set_state(gst::State::Paused).unwrap();
    toy.behave(Behaviour::Work);
    let pause = 3 * gst::ClockTime::SECOND;
    clock.set_time(pause);
    std::thread::sleep(pause.into()); // the frame comes
    pipeline.set_state(gst::State::Playing).unwrap();
    crank(&clock);
    let first = times.recv_timeout(PATIENCE.into()).unwrap();
    assert!(first < pause / 2, "{first}");
}

/// The one that is waited for when the pause begins, and is due before it ends.
#[test]
fn a_flush_in_a_pause_loses_no_frame() {
    let toy = Toy::new(Behaviour::Work);
    let source = format!("blockcascadesrc name=src is-live=true {}", toy.model());
    let (pipeline, frames) =
        handed_on(&format!("{source} ! video/x-raw,framerate=2/1"), |buffer| {
            field(buffer, "frame")
        });
    pipeline.set_state(gst::State::Playing).unwrap();
    for frame in 0..3 {
        assert_eq!(frames.recv_timeout(PATIENCE.into()), Ok(frame));
    }
    std::thread::sleep(Duration::from_millis(100)); // the next one is waited for
    pipeline.set_state(gst::State::Paused).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let source = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("src").unwrap();
    assert!(source.send_event(gst::event::FlushStart::new()));
    assert!(source.send_event(gst::event::FlushStop::new(false)));
    pipeline.set_state(gst::State::Playing).unwrap();
    assert_eq!(frames.recv_timeout(PATIENCE.into()), Ok(3));
}

/// As one of an audio device's is that was taken out: it stands still.
#[test]
fn a_clock_that_is_lost_is_not_waited_for() {
    let toy = Toy::new(Behaviour::Work);
    let source = format!("blockcascadesrc is-live=true {}", toy.model());
    let (pipeline, frames) =
        handed_on(&format!("{source} ! video/x-raw,framerate=8/1"), |buffer| {
            field(buffer, "frame")
        });
    let line = pipeline.downcast_ref::<gst::Pipeline>().unwrap();
    let clock = TestClock::new();
    line.use_clock(Some(&clock));
    pipeline.set_state(gst::State::Playing).unwrap();
    crank(&clock);
    assert_eq!(frames.recv_timeout(PATIENCE.into()), Ok(0));
    await_waiting(&clock); // for the next one
    pipeline.set_state(gst::State::Paused).unwrap();
    line.use_clock(Some(&gst::SystemClock::obtain()));
    pipeline.set_state(gst::State::Playing).unwrap();
    for frame in 1..4 {
        assert_eq!(frames.recv_timeout(PATIENCE.into()), Ok(frame));
    }
}

/// Time starts anew by the first one, though no frame comes between them.
#[test]
fn a_second_flush_does_not_take_the_first_one_back() {
    let toy = Toy::new(Behaviour::Work);
    let source = format!("blockcascadesrc name=src is-live=true {}", toy.model());
    let (pipeline, clock, times) = timed_by_test(&format!("{source} ! video/x-raw,framerate=16/1"));
    let next = || {
        crank(&clock);
        times.recv_timeout(PATIENCE.into()).unwrap()
    };
    pipeline.set_state(gst::State::Playing).unwrap();
    assert!((0..100).any(|_| next() >= 2 * gst::ClockTime::SECOND));
    pipeline.set_state(gst::State::Paused).unwrap();
    let source = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("src").unwrap();
    for resets in [true, false] {
        assert!(source.send_event(gst::event::FlushStart::new()));
        assert!(source.send_event(gst::event::FlushStop::new(resets)));
    }
    while times.try_recv().is_ok() {}
    pipeline.set_state(gst::State::Playing).unwrap();
    let first = next();
    assert!(first < gst::ClockTime::SECOND, "{first}");
}

/// Nothing flushes the source where time starts anew, in a pause or by a flush elsewhere: the next frame is due then,
/// and not as late as it would have been.
#[test]
fn time_that_goes_back_is_followed() {
    let toy = Toy::new(Behaviour::Work);
    let source = format!("blockcascadesrc name=src is-live=true {}", toy.model());
    let (pipeline, clock, times) = timed_by_test(&format!("{source} ! video/x-raw,framerate=16/1"));
    let line = pipeline.downcast_ref::<gst::Pipeline>().unwrap();
    let late = 3 * gst::ClockTime::SECOND;
    let next = || {
        crank(&clock);
        times.recv_timeout(PATIENCE.into()).unwrap()
    };
    let await_late = || {
        assert!((0..100).any(|_| next() >= late));
        await_waiting(&clock); // for the next one
    };
    let begins_anew = || {
        let begun = clock.time();
        assert!((0..3).any(|_| next() < late), "it goes on"); // one of before may come first
        let passed = clock.time() - begun;
        assert!(passed < late / 2, "{passed}");
    };
    pipeline.set_state(gst::State::Playing).unwrap();
    await_late();
    pipeline.set_state(gst::State::Paused).unwrap();
    line.set_start_time(gst::ClockTime::ZERO);
    pipeline.set_state(gst::State::Playing).unwrap();
    begins_anew();
    await_late();
    let source = line.by_name("src").unwrap();
    source.set_base_time(source.clock().unwrap().time());
    begins_anew();
}

/// The clock goes on in a pause; the stream does not.
#[test]
fn a_prompt_for_a_time_is_not_past_because_of_a_pause() {
    let toy = Toy::new(Behaviour::Work);
    let source = format!("blockcascadesrc name=src is-live=true {}", toy.model());
    let (pipeline, frames) =
        handed_on(&format!("{source} ! video/x-raw,framerate=160/1"), |buffer| {
            (buffer.pts().unwrap(), field(buffer, "prompt-id"))
        });
    let next = || frames.recv_timeout(PATIENCE.into()).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let (_, old) = next();
    pipeline.set_state(gst::State::Paused).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let source = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("src").unwrap();
    let time = 2 * gst::ClockTime::SECOND;
    let options = gst::Structure::builder("options").field("running-time", time).build();
    assert!(source.emit_by_name::<bool>("set-prompt", &[&"later", &options]));
    pipeline.set_state(gst::State::Playing).unwrap();
    let (shown, _) = (0..2000).map(|_| next()).find(|&(_, prompt)| prompt != old).unwrap();
    assert!(shown >= time, "{shown} is too soon");
}

/// A gap is for a place in a segment.
#[test]
fn after_a_flush_the_segment_comes_first() {
    let toy = Toy::new(Behaviour::Work);
    let properties = format!("is-live=true underrun-policy=gap queue-blocks=1 {}", toy.model());
    let (element, mut harness) = playing_as(&properties, "video/x-raw, format=RGB");
    pull(&mut harness, 1);
    toy.behave(Behaviour::Slow(Duration::from_millis(200)));
    await_gap(&mut harness);
    assert!(element.send_event(gst::event::FlushStart::new()));
    assert!(element.send_event(gst::event::FlushStop::new(true)));
    let after = std::iter::from_fn(|| harness.pull_event().ok())
        .map(|event| event.type_())
        .skip_while(|kind| *kind != gst::EventType::FlushStop)
        .find(|kind| [gst::EventType::Gap, gst::EventType::Segment].contains(kind));
    assert_eq!(after, Some(gst::EventType::Segment));
}

#[test]
fn what_an_underrun_does_may_be_changed_while_it_lasts() {
    let toy = Toy::new(Behaviour::Work);
    let properties = format!("is-live=true underrun-policy=gap queue-blocks=1 {}", toy.model());
    let (element, mut harness) = playing_as(&properties, "video/x-raw, format=RGB");
    pull(&mut harness, 1);
    toy.behave(Behaviour::Slow(Duration::from_secs(1)));
    await_gap(&mut harness);
    let last = std::iter::from_fn(|| harness.try_pull()).last().map(|last| field(&last, "frame"));
    element.set_property_from_str("underrun-policy", "repeat");
    assert_eq!(Some(field(&harness.pull().unwrap(), "frame")), last);
    toy.behave(Behaviour::Work);
}

fn await_gap(harness: &mut Harness) {
    let begun = Instant::now();
    while harness.try_pull_event().is_none_or(|event| event.type_() != gst::EventType::Gap) {
        assert!(begun.elapsed() < PATIENCE.into(), "there was no underrun");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn latency_is_known_before_the_first_frame() {
    let (element, is_started) = started("is-live=true");
    assert!(is_started);
    let mut latency = gst::query::Latency::new();
    assert!(element.query(&mut latency));
    assert_eq!(latency.result(), (true, gst::ClockTime::SECOND / 16, None));
}

/// A pool that changes what it is told, and says so by refusing.
#[derive(Debug, Default)]
pub struct Picky;

#[glib::object_subclass]
impl ObjectSubclass for Picky {
    const NAME: &'static str = "BlockCascadeTestPickyPool";
    type Type = PickyPool;
    type ParentType = gst::BufferPool;
}

impl ObjectImpl for Picky {}
impl GstObjectImpl for Picky {}

impl BufferPoolImpl for Picky {
    fn set_config(&self, config: &mut gst::BufferPoolConfigRef) -> bool {
        const LEAST: u32 = 2;
        let (caps, size, min, max) = config.params().unwrap();
        config.set_params(caps.as_ref(), size, min.max(LEAST), max);
        self.parent_set_config(config) && min >= LEAST
    }
}

glib::wrapper! {
    pub struct PickyPool(ObjectSubclass<Picky>) @extends gst::BufferPool, gst::Object;
}

#[test]
fn a_pool_that_adjusts_its_configuration_is_used_as_it_wants() {
    let (pipeline, times) = timed("blockcascadesrc num-buffers=2");
    let sink = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("sink").unwrap();
    let pool = glib::Object::new::<PickyPool>();
    let offered = pool.clone();
    let pad = sink.static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, move |_, info| {
        let Some(query) = info.query_mut() else { return gst::PadProbeReturn::Ok };
        let gst::QueryViewMut::Allocation(query) = query.view_mut() else {
            return gst::PadProbeReturn::Ok;
        };
        query.add_allocation_pool(Some(&offered), 192 * 112 * 4, 0, 0);
        gst::PadProbeReturn::Handled
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    assert_eq!(times.recv_timeout(PATIENCE.into()), Ok(gst::ClockTime::ZERO));
    assert!(pool.is_active(), "another pool was taken");
}
