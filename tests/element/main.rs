//! `blockcascadesrc` from outside, on the embedded model.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::ops::Deref;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use gstblockcascade::checkpoint::Manifest;
use gstblockcascade::generator::{Generator, GeneratorConfig};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_check::{Harness, TestClock};
use gstreamer_video as gst_video;

#[path = "../support/toy.rs"]
mod arithmetic;
mod faults;
mod loading;
mod pauses;
mod presets;
mod prompts;
#[path = "../support/mod.rs"]
mod support;
mod toy;
use support::{PATIENCE, play_to_end};
use toy::{Behaviour, Toy};

/// Frames of the first block and of every later one.
const BLOCKS: [u64; 2] = [9, 12];

/// What would follow at once has followed by then.
const MOMENT: gst::ClockTime = gst::ClockTime::from_mseconds(300);

fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().unwrap();
        gstblockcascade::register_static().unwrap();
    });
}

fn element(properties: &str) -> gst::Element {
    init();
    gst::parse::launch(&format!("blockcascadesrc name=src {properties}")).unwrap()
}

/// A source that is asked for RGB, and plays.
fn playing(properties: &str) -> (gst::Element, Harness) {
    playing_as(properties, "video/x-raw, format=RGB")
}

/// A source that is asked for certain caps, and plays. A harness alone starts an element that has
/// a sink pad, even one on request, before caps can be asked for.
fn playing_as(properties: &str, caps: &str) -> (gst::Element, Harness) {
    playing_by(Harness::use_systemclock, properties, caps)
}

/// The same by a clock of one's choice.
fn playing_by(
    use_clock: fn(&mut Harness),
    properties: &str,
    caps: &str,
) -> (gst::Element, Harness) {
    init();
    let line =
        format!("blockcascadesrc name=src {properties} ! capsfilter name=caps caps=\"{caps}\"");
    let bin = gst::parse::bin_from_description(&line, true).unwrap();
    bin.set_bus(Some(&gst::Bus::new()));
    let element = bin.by_name("src").unwrap();
    let mut harness = Harness::with_element(&bin, None, Some("src"));
    use_clock(&mut harness);
    harness.play();
    (element, harness)
}

/// Waits until somebody waits for a test clock.
fn await_waiting(clock: &TestClock) {
    let begun = Instant::now();
    while clock.peek_id_count() == 0 {
        assert!(begun.elapsed() < PATIENCE.into(), "nobody waits for the clock");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets the time come that is waited for.
fn crank(clock: &TestClock) {
    await_waiting(clock);
    assert!(clock.crank());
}

/// The next buffer by a test clock, at its time.
fn pull_due(harness: &mut Harness) -> gst::Buffer {
    crank(&harness.testclock().unwrap());
    harness.pull().unwrap()
}

fn bytes(buffer: &gst::Buffer) -> Vec<u8> {
    buffer.map_readable().unwrap().as_slice().to_vec()
}

fn pull(harness: &mut Harness, count: usize) -> Vec<gst::Buffer> {
    (0..count).map(|_| harness.pull().unwrap()).collect()
}

fn field(buffer: &gst::Buffer, name: &str) -> u64 {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, "GstBlockCascadeMeta").unwrap();
    meta.structure().get(name).unwrap()
}

fn errors(element: &gst::Element) -> Vec<glib::Error> {
    let bus = element.bus().unwrap();
    let errors = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Error]));
    errors
        .map(|message| match message.view() {
            gst::MessageView::Error(error) => error.error(),
            _ => unreachable!("filtered"),
        })
        .collect()
}

/// The element messages of a name that were posted so far.
fn messages(harness: &Harness, name: &str) -> Vec<gst::Structure> {
    let bus = harness.element().unwrap().bus().unwrap();
    let messages = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Element]));
    let fields = messages.filter_map(|message| message.structure().map(|fields| fields.to_owned()));
    fields.filter(|fields| fields.name() == name).collect()
}

/// The error that a pipeline posts; the base class's own about the same would follow at once.
fn only_error(pipeline: &gst::Element) -> glib::Error {
    let bus = pipeline.bus().unwrap();
    let message = bus.timed_pop_filtered(PATIENCE, &[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(error) = message.view() else { unreachable!("filtered") };
    let another = bus.timed_pop_filtered(MOMENT, &[gst::MessageType::Error]);
    assert!(another.is_none(), "{error:?}, then {another:?}");
    error.error()
}

/// An element that is stopped when a test ends, however it does.
struct Stopped(gst::Element);

impl Deref for Stopped {
    type Target = gst::Element;

    fn deref(&self) -> &gst::Element {
        &self.0
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null); // the test says what is wrong
    }
}

/// An element with a bus of its own, and what became of starting it.
fn started(properties: &str) -> (Stopped, bool) {
    let element = element(properties);
    element.set_bus(Some(&gst::Bus::new()));
    let is_started = element.set_state(gst::State::Paused).is_ok();
    (Stopped(element), is_started)
}

#[test]
fn frames_have_exact_times_numbers_and_places() {
    let (_, mut harness) = playing("seed=3 num-buffers=24");
    let second = gst::ClockTime::SECOND;
    for (buffer, n) in pull(&mut harness, 24).iter().zip(0u64..) {
        assert_eq!(buffer.pts(), Some(n * second / 16));
        assert_eq!(buffer.duration(), Some(second / 16));
        assert_eq!((buffer.offset(), buffer.offset_end()), (n, n + 1));
        assert_eq!(buffer.dts(), None);
        assert_eq!(field(buffer, "frame"), n);
        let block = if n < BLOCKS[0] { 0 } else { 1 + (n - BLOCKS[0]) / BLOCKS[1] };
        assert_eq!((field(buffer, "block"), field(buffer, "seed")), (block, 3));
    }
    while harness.pull_event().unwrap().type_() != gst::EventType::Eos {}
}

#[test]
fn frames_are_the_generators_own() {
    let mut config = GeneratorConfig::new(Manifest::named("pocket").unwrap());
    (config.prompt, config.seed) = ("a red ball".into(), 5);
    let generator = Generator::new(&config).unwrap();
    let expected: Vec<_> = generator.take(12).map(|frame| frame.unwrap().rgb).collect();
    let (_, mut harness) = playing("seed=5 prompt=\"a red ball\"");
    let got: Vec<_> = pull(&mut harness, 12).iter().map(bytes).collect();
    assert!(expected == got);
}

#[test]
fn a_seed_decides_and_minus_one_is_told() {
    let first = |seed: &str| {
        let (element, mut harness) = playing(seed);
        let frame = bytes(&harness.pull().unwrap());
        let stats = element.property::<gst::Structure>("stats");
        (frame, stats.get::<u64>("seed").unwrap())
    };
    let [(one, _), (again, _), (two, _)] = ["seed=1", "seed=1", "seed=2"].map(first);
    assert!(one == again && one != two);
    let (random, seed) = first("seed=-1");
    assert!(first(&format!("seed={seed}")).0 == random);
}

#[test]
fn the_native_format_is_chosen_and_told_in_full() {
    let mut harness = Harness::with_element(&element("seed=0"), None, Some("src"));
    harness.play();
    harness.pull().unwrap();
    let caps = harness.sinkpad().unwrap().current_caps().unwrap();
    let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
    assert_eq!((info.width(), info.height()), (192, 112));
    assert_eq!(
        (info.format(), info.fps()),
        (gst_video::VideoFormat::I420, gst::Fraction::new(16, 1))
    );
    let fields = caps.structure(0).unwrap();
    for name in ["colorimetry", "chroma-site", "pixel-aspect-ratio", "interlace-mode"] {
        assert!(fields.has_field(name), "{name} is left open");
    }
}

/// Frames are whole, whatever else could be.
#[test]
fn of_several_interlace_modes_it_is_progressive() {
    let caps = "video/x-raw, interlace-mode={interleaved, mixed, progressive}";
    let (_, mut harness) = playing_as("seed=0", caps);
    harness.pull().unwrap();
    let caps = harness.sinkpad().unwrap().current_caps().unwrap();
    let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
    assert_eq!(info.interlace_mode(), gst_video::VideoInterlaceMode::Progressive);
}

#[test]
fn any_size_and_rate_that_downstream_asks_for() {
    let caps = "video/x-raw, width=64, height=48, framerate=30000/1001";
    let (_, mut harness) = playing_as("seed=0", caps);
    let buffers = pull(&mut harness, 10);
    assert_eq!(buffers[0].size(), 64 * 48 * 3 / 2);
    assert_eq!(buffers[9].pts(), Some(gst::ClockTime::from_nseconds(9 * 1_001_000_000 / 30)));
}

#[test]
fn format_and_rate_may_change_while_it_plays_but_not_the_size() {
    let (_, mut harness) = playing("seed=0");
    pull(&mut harness, 12);
    let bin = harness.element().unwrap().downcast::<gst::Bin>().unwrap();
    let filter = bin.by_name("caps").unwrap();
    let caps = |text: &str| filter.set_property("caps", text.parse::<gst::Caps>().unwrap());
    caps("video/x-raw, format=NV12, framerate=32/1");
    let buffers = pull(&mut harness, 200);
    let changed = buffers.iter().position(|b| b.size() == 192 * 112 * 3 / 2).unwrap();
    let duration = |n: usize| buffers[n].duration().unwrap();
    assert_eq!(duration(changed), gst::ClockTime::SECOND / 32);
    for n in 1..200 {
        assert_eq!(buffers[n].pts(), Some(buffers[n - 1].pts().unwrap() + duration(n - 1)));
    }
    let caps = filter.static_pad("sink").unwrap().peer_query_caps(None);
    let is_kept = caps.size() > 0 && caps.iter().all(|fields| fields.get("width") == Ok(192));
    assert!(is_kept, "{caps}");
}

#[test]
fn every_format_looks_like_videoconverts() {
    let convert = |tail: &str| {
        init();
        let frame = Arc::new(Mutex::new(Vec::new()));
        let seen = frame.clone();
        let line = format!("blockcascadesrc seed=4 num-buffers=1 ! {tail} ! fakesink name=sink");
        play_to_end(&line, move |buffer| *seen.lock().unwrap() = bytes(buffer));
        std::mem::take(&mut *frame.lock().unwrap())
    };
    for format in ["I420", "NV12", "RGBA", "RGBx", "BGRx"] {
        let caps = format!("video/x-raw,format={format}");
        let (ours, theirs) = (
            convert(&caps),
            convert(&format!("video/x-raw,format=RGB ! videoconvert dither=none ! {caps}")),
        );
        let luma =
            if format.ends_with("12") || format == "I420" { 192 * 112 } else { 192 * 112 * 4 };
        let far = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 2;
        let wrong = ours[..luma].iter().zip(&theirs[..luma]).filter(|&pair| far(pair)).count();
        assert_eq!((ours.len(), wrong), (theirs.len(), 0), "{format}");
    }
}

#[test]
fn a_live_source_waits_for_the_clock() {
    let element = element("is-live=true seed=0");
    let mut harness = Harness::with_element(&element, None, Some("src"));
    harness.use_testclock();
    harness.play();
    let clock = harness.testclock().unwrap();
    for n in 0..4u64 {
        harness.crank_single_clock_wait().unwrap();
        let buffer = harness.pull().unwrap();
        assert_eq!(buffer.pts(), Some(n * gst::ClockTime::SECOND / 16));
        assert!(Some(clock.time()) >= buffer.pts());
    }
    assert_eq!(harness.query_latency(), Some(gst::ClockTime::SECOND / 16));
}

#[test]
fn an_underrun_is_resynced_repeated_or_a_gap() {
    // A block takes 900 ms, and is shown for 500.
    let toy = Toy::new(Behaviour::Slow(Duration::from_millis(60)));
    let caps = "video/x-raw, width=192, height=112, framerate=24/1";
    for policy in ["resync", "repeat", "gap"] {
        let properties = format!("is-live=true seed=0 underrun-policy={policy} {}", toy.model());
        let (element, mut harness) = playing_as(&properties, caps);
        let buffers = pull(&mut harness, 24);
        let times: Vec<_> = buffers.iter().map(|buffer| buffer.pts().unwrap()).collect();
        assert!(times.is_sorted_by(|a, b| a < b), "{policy}: {times:?}");
        let stats = element.property::<gst::Structure>("stats");
        assert!(stats.get::<u64>("underruns").unwrap() > 0, "{policy}");
        let underruns = messages(&harness, "blockcascade/underrun");
        assert_eq!(underruns[0].get::<&str>("policy"), Ok(policy));
        let count = stats.get::<u64>("underruns").unwrap() as usize;
        assert!(policy == "resync" || underruns.len() < count, "{policy}: each frame is told of");
        let repeats = buffers.windows(2).filter(|w| field(&w[0], "frame") == field(&w[1], "frame"));
        assert_eq!(repeats.count() > 0, policy == "repeat");
        let is_discont = |b: &gst::Buffer| b.flags().contains(gst::BufferFlags::DISCONT);
        assert_eq!(buffers[1..].iter().any(is_discont), policy != "repeat", "{policy}");
    }
}

#[test]
fn latency_is_that_of_the_rate_of_now() {
    let (element, mut harness) = playing_as("is-live=true seed=0", "video/x-raw,framerate=16/1");
    let first = harness.pull().unwrap();
    assert_eq!(harness.query_latency(), Some(gst::ClockTime::SECOND / 16));
    let bus = harness.element().unwrap().bus().unwrap();
    let told = || std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Latency])).count();
    told();
    let bin = harness.element().unwrap().downcast::<gst::Bin>().unwrap();
    let caps = gst::Caps::builder("video/x-raw").field("framerate", gst::Fraction::new(32, 1));
    bin.by_name("caps").unwrap().set_property("caps", caps.build());
    assert!((0..600).any(|_| harness.pull().unwrap().duration() != first.duration()));
    let mut query = gst::query::Latency::new();
    assert!(element.query(&mut query));
    assert_eq!(query.result(), (true, gst::ClockTime::SECOND / 32, None));
    assert_eq!(told(), 1);
}

/// The frame that was made before it is the first one after it, at its time or, with a new one, at once.
#[test]
fn a_flush_loses_no_frame() {
    let toy = Toy::new(Behaviour::Work);
    for resets in [true, false] {
        let properties = format!("is-live=true {}", toy.model());
        let caps = "video/x-raw,framerate=2/1";
        let (element, mut harness) = playing_by(Harness::use_testclock, &properties, caps);
        let before: Vec<_> = (0..3).map(|_| pull_due(&mut harness)).collect();
        await_waiting(&harness.testclock().unwrap()); // for the next one's time
        assert!(element.send_event(gst::event::FlushStart::new()));
        if resets {
            element.set_base_time(element.clock().unwrap().time());
        }
        assert!(element.send_event(gst::event::FlushStop::new(resets)));
        let after = pull_due(&mut harness);
        assert_eq!(field(&after, "frame"), field(&before[2], "frame") + 1, "{resets}");
        assert!(after.flags().contains(gst::BufferFlags::DISCONT), "{resets}");
        let next = before[2].pts().unwrap() + before[2].duration().unwrap();
        assert_eq!(after.pts() == Some(next), !resets, "{:?}", after.pts());
    }
}

/// Nothing is lost, and the first frame after it is due at once.
#[test]
fn a_flush_starts_time_anew() {
    for properties in ["seed=0", "seed=0 is-live=true"] {
        let (element, mut harness) = playing(properties);
        let before = pull(&mut harness, 20);
        assert!(element.send_event(gst::event::FlushStart::new()));
        // What a pipeline does when it hears that time is reset.
        element.set_base_time(element.clock().unwrap().time());
        assert!(element.send_event(gst::event::FlushStop::new(true)));
        let after = std::iter::from_fn(|| harness.pull().ok())
            .find(|buffer| buffer.flags().contains(gst::BufferFlags::DISCONT))
            .unwrap();
        assert!(after.pts() < before[19].pts(), "{properties}: {after:?}");
        let next = harness.pull().unwrap();
        assert!(next.pts() > after.pts());
        assert_eq!(field(&next, "frame"), field(&after, "frame") + 1);
    }
}

#[test]
fn caps_that_cannot_be_met_are_told() {
    init();
    let line = "blockcascadesrc ! identity ! capsfilter name=caps ! fakesink";
    let pipeline = Stopped(gst::parse::launch(line).unwrap());
    let filter = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("caps").unwrap();
    filter.set_property("caps", gst::Caps::builder("video/x-raw").field("width", 50).build());
    pipeline.set_state(gst::State::Playing).unwrap();
    let error = only_error(&pipeline);
    assert!(error.matches(gst::CoreError::Negotiation), "{error:?}");
    assert!(error.message().contains("width=(int)50"), "{error:?}");
}

#[test]
fn length_is_known_with_num_buffers_and_nothing_seeks() {
    let (element, mut harness) = playing("num-buffers=32 seed=0");
    harness.pull().unwrap();
    assert_eq!(element.query_duration::<gst::ClockTime>(), Some(2 * gst::ClockTime::SECOND));
    let mut seeking = gst::query::Seeking::new(gst::Format::Time);
    assert!(element.query(&mut seeking));
    assert!(!seeking.result().0);
    drop(harness);
    let (element, mut endless) = playing("seed=0");
    endless.pull().unwrap();
    assert_eq!(element.query_duration::<gst::ClockTime>(), None);
    let mut duration = gst::query::Duration::new(gst::Format::Time);
    assert!(element.query(&mut duration), "that it is not known is an answer");
    for position in [0, 5] {
        let position = position * gst::ClockTime::SECOND;
        assert!(element.seek_simple(gst::SeekFlags::FLUSH, position).is_err());
    }
    let next = endless.pull().unwrap();
    assert_eq!((next.offset(), next.flags().contains(gst::BufferFlags::DISCONT)), (1, false));
}

#[test]
fn a_stream_stops_while_a_block_is_made() {
    let (element, mut harness) = playing_as("seed=0", "video/x-raw, width=1024, height=1024");
    std::thread::sleep(Duration::from_millis(300)); // a block of this size takes minutes
    let begun = Instant::now();
    harness.push_upstream_event(gst::event::FlushStart::new());
    harness.push_upstream_event(gst::event::FlushStop::new(true));
    drop(harness);
    element.set_state(gst::State::Null).unwrap();
    assert!(begun.elapsed() < Duration::from(PATIENCE));
}

#[test]
fn bad_settings_are_one_error_at_once_and_the_next_start_works() {
    use gst::ResourceError::{NotFound, Settings};
    let folder = tempfile::tempdir().unwrap();
    let empty = format!("model={}", folder.path().display());
    let cases = [
        ("model=nope", NotFound),
        ("model=nowhere.toml", NotFound),
        ("model=self-forcing-1.3b", NotFound),
        (empty.as_str(), Settings),
        ("devices=abacus", Settings),
        ("devices=cpu,cpu", Settings),
        ("decoder-device=abacus", Settings),
        ("prompt-policy=recache history-policy=stage-matched", Settings),
        ("cascade-width=9", Settings),
        ("decoder=tiny", Settings),
        ("denoising-steps=<250,500>", Settings),
    ];
    for (properties, domain) in cases {
        let (element, is_started) = started(properties);
        assert!(!is_started, "{properties}");
        let errors = errors(&element);
        assert_eq!(errors.len(), 1, "{properties}: {errors:?}");
        assert!(errors[0].matches(domain), "{properties}: {:?}", errors[0]);
        element.set_state(gst::State::Null).unwrap();
    }
    let (element, _) = started("cascade-width=9");
    element.set_state(gst::State::Null).unwrap();
    element.set_property("cascade-width", 2u32);
    let mut harness = Harness::with_element(&*element, None, Some("src"));
    harness.play();
    harness.pull().unwrap();
}

/// `blockcascade fetch` knows no other model of that name.
#[test]
fn what_is_missing_is_told_with_the_manifest_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join("mine.toml");
    std::fs::write(&mine, include_str!("../../models/self-forcing-1.3b.toml")).unwrap();
    let (element, is_started) = started(&format!("model={}", mine.display()));
    assert!(!is_started);
    let message = errors(&element)[0].to_string();
    assert!(message.contains(&format!("`blockcascade fetch {}`", mine.display())), "{message}");
    element.set_state(gst::State::Null).unwrap();
}

/// Each choice of how blocks are made can be made in a launch line, and holds while a prompt changes.
#[test]
fn every_kind_of_cascade_runs_from_a_launch_line() {
    init();
    for choice in [
        "cascade-width=2 devices=cpu,cpu",
        "cascade-width=5 attention=causal history-budget=constant devices=cpu,cpu,cpu",
        "cascade-width=3 prompt-policy=next-block decoder-device=cpu",
        "cascade-width=3 prompt-policy=recache devices=cpu,cpu",
        "cascade-width=3 prompt-policy=cut",
        "cascade-width=4 history-policy=stage-matched devices=cpu,cpu",
    ] {
        let line = format!("blockcascadesrc name=src num-buffers=60 {choice} ! fakesink");
        let pipeline = gst::parse::launch(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let bus = pipeline.bus().unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        pipeline.by_name("src").unwrap().set_property("prompt", "a blue cube in the snow");
        let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
        let end = bus.timed_pop_filtered(PATIENCE, &kinds).unwrap();
        let stats: gst::Structure = pipeline.by_name("src").unwrap().property("stats");
        pipeline.set_state(gst::State::Null).unwrap();
        assert_eq!(end.type_(), gst::MessageType::Eos, "{line}: {end:?}");
        let workers = choice.split_whitespace().find_map(|word| word.strip_prefix("devices="));
        let devices: gst::Array = stats.get("devices").unwrap();
        assert_eq!(devices.len(), workers.map_or(1, |names| names.split(',').count()), "{stats}");
    }
}

/// Every launch line of the documentation, cut short, without a window.
#[test]
fn launch_lines_of_the_documentation_run() {
    init();
    let texts = [include_str!("../../README.md"), include_str!("../../pipelines/ELEMENT.md")];
    let lines = texts.iter().flat_map(|text| text.lines());
    let lines = lines.filter_map(|line| Some(line.split_once("gst-launch-1.0 ")?.1));
    let mut count = 0;
    for line in lines {
        let line = line
            .replace("blockcascadesrc ", "blockcascadesrc num-buffers=6 ")
            .replace("autovideosink", "fakesink");
        let pipeline = gst::parse::launch(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        pipeline.set_state(gst::State::Playing).unwrap();
        let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
        let end = pipeline.bus().unwrap().timed_pop_filtered(PATIENCE, &kinds);
        pipeline.set_state(gst::State::Null).unwrap();
        assert_eq!(end.map(|end| end.type_()), Some(gst::MessageType::Eos), "{line}");
        count += 1;
    }
    assert!(count >= 5, "{count} lines");
}

/// A program may read properties where it hears of messages: no lock is held while they are posted.
#[test]
fn whoever_hears_a_message_may_ask_back() {
    let source = element("seed=0");
    let bus = gst::Bus::new();
    let asking = source.downgrade();
    bus.set_sync_handler(move |_, _| {
        if let Some(source) = asking.upgrade() {
            source.property::<gst::Structure>("stats");
            source.property::<String>("prompt");
        }
        gst::BusSyncReply::Drop
    });
    source.set_bus(Some(&bus));
    let mut harness = Harness::with_element(&source, None, Some("src"));
    harness.play();
    harness.pull().unwrap();
    let later =
        gst::Structure::builder("options").field("running-time", 3600 * gst::ClockTime::SECOND);
    let later = later.build();
    let ask = |_| source.emit_by_name::<bool>("set-prompt", &[&"a star", &later]);
    let taken = (0..16_400).map(ask).filter(|&taken| taken).count();
    assert_eq!(taken, 16_384, "what is too much is refused");
    drop(harness);
    source.set_state(gst::State::Null).unwrap();
}
