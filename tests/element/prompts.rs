//! Prompts: the ways in, when they take effect, and who is told.

use std::sync::{Arc, Mutex, mpsc};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_check::Harness;
use gstreamer_video as gst_video;

use super::arithmetic::LAYERS;
use super::support::{PATIENCE, play_to_end};
use super::toy::{Behaviour, Toy};
use super::{BLOCKS, MOMENT, Stopped, bytes, element, field, init, playing, playing_as, pull};

#[test]
fn a_prompt_is_applied_at_a_block_and_everybody_is_told() {
    for asks_for_key_frame in [true, false] {
        is_told_everybody(asks_for_key_frame);
    }
}

fn is_told_everybody(asks_for_key_frame: bool) {
    let properties = "seed=0 prompt=\"a red ball\" queue-blocks=1";
    let (element, mut harness) =
        playing(&format!("{properties} force-key-unit-on-prompt={asks_for_key_frame}"));
    harness.pull().unwrap();
    let changes = Arc::new(Mutex::new(0));
    let count = changes.clone();
    element.connect_notify(Some("current-prompt"), move |_, _| *count.lock().unwrap() += 1);
    element.set_property("prompt", "a blue cube");
    let mut buffers = Vec::new();
    while element.property::<Option<String>>("current-prompt").as_deref() != Some("a blue cube") {
        buffers.extend(pull(&mut harness, 1));
        assert!(buffers.len() < 200, "the prompt never came");
    }
    let events = std::iter::from_fn(|| harness.try_pull_event()).collect::<Vec<_>>();
    let applied = events.iter().find_map(|event| {
        event.structure().filter(|fields| fields.name() == "blockcascade/prompt-applied")
    });
    let applied = applied.unwrap();
    assert_eq!(applied.get::<&str>("text"), Ok("a blue cube"));
    let frame = applied.get::<u64>("frame").unwrap();
    assert_eq!((frame - BLOCKS[0]) % BLOCKS[1], 0, "frame {frame} is not a block's first");
    assert_eq!(applied.get::<u64>("pts"), Ok(frame * 62_500_000));
    assert_eq!(applied.get::<u64>("offset"), Ok(frame));
    let asks = events.iter().any(|event| gst_video::ForceKeyUnitEvent::is(event));
    assert_eq!((asks, *changes.lock().unwrap()), (asks_for_key_frame, 1));
}

#[test]
fn the_end_of_a_stream_is_told_of_as_its_prompts_are() {
    let (element, mut harness) = playing("seed=0 prompt=\"a red ball\"");
    harness.pull().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = told.clone();
    element.connect_notify(Some("current-prompt"), move |element, _| {
        seen.lock().unwrap().push(element.property::<Option<String>>("current-prompt"));
    });
    for _ in 0..2 {
        element.set_state(gst::State::Ready).unwrap();
        assert_eq!(*told.lock().unwrap(), [None]);
    }
}

#[test]
fn prompts_come_by_signal_and_event_and_name_their_time() {
    let (element, mut harness) = playing("seed=0 prompt-policy=next-block");
    let options = gst::Structure::builder("options")
        .field("running-time", 2 * gst::ClockTime::SECOND)
        .field("id", "later")
        .build();
    assert!(element.emit_by_name::<bool>("set-prompt", &[&"a star", &options]));
    let buffers = pull(&mut harness, 40);
    let prompt = |n: usize| field(&buffers[n], "prompt-id");
    // Frame 32 is due at 2 s; the first block that starts there starts at frame 33.
    assert!(prompt(32) == prompt(0) && prompt(33) != prompt(32));
    let event = |fields: gst::Structure| gst::event::CustomUpstream::new(fields);
    let now = event(gst::Structure::builder("blockcascade/prompt").field("text", "a ring").build());
    let stat = |name: &str| element.property::<gst::Structure>("stats").get::<u64>(name).unwrap();
    let queued = stat("prompts-queued");
    assert!(harness.push_upstream_event(now.clone()));
    assert!(element.send_event(now), "the same event again is no failure");
    assert_eq!((stat("prompts-queued"), stat("duplicate-events")), (queued + 1, 1));
    for wrong in [
        gst::Structure::builder("blockcascade/prompt").build(),
        gst::Structure::builder("blockcascade/prompt").field("text", 7).build(),
        gst::Structure::builder("blockcascade/prompt")
            .field("text", "x")
            .field("mode", "cut")
            .build(),
        gst::Structure::builder("blockcascade/prompt").field("text", "x".repeat(1 << 20)).build(),
    ] {
        assert!(!element.send_event(event(wrong)));
    }
    assert!(
        !element
            .emit_by_name::<bool>("set-prompt", &[&"x".repeat(1 << 20), &None::<gst::Structure>])
    );
}

/// Frames of the old prompt that come after one for a time that is past.
fn frames_until(policy: &str) -> usize {
    init();
    let toy = Toy::new(Behaviour::Work);
    let line = format!(
        "blockcascadesrc name=src wait-prompt=false queue-blocks=1 cascade-width=5 \
         prompt-policy={policy} {} ! fakesink name=sink signal-handoffs=true",
        toy.model()
    );
    let pipeline = Stopped(gst::parse::launch(&line).unwrap());
    let bin = pipeline.downcast_ref::<gst::Bin>().unwrap();
    // Nothing is made that nobody takes.
    let (sender, prompts) = std::sync::mpsc::sync_channel(0);
    bin.by_name("sink").unwrap().connect("handoff", false, move |arguments| {
        let buffer = arguments[1].get::<gst::Buffer>().unwrap();
        let _ = sender.send(field(&buffer, "prompt-id")); // nobody may want it any more
        None
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let prompt = || prompts.recv_timeout(PATIENCE.into()).unwrap();
    let old = (0..100).fold(None, |_, _| Some(prompt()));
    let options =
        gst::Structure::builder("options").field("running-time", gst::ClockTime::ZERO).build();
    let settled = std::time::Duration::from_secs(2); // queues are full, then the prompt is encoded
    std::thread::sleep(settled);
    let source = bin.by_name("src").unwrap();
    assert!(source.emit_by_name::<bool>("set-prompt", &[&"a star", &options]));
    std::thread::sleep(settled);
    let count = (0..200).find(|_| Some(prompt()) != old).unwrap();
    drop(prompts);
    count
}

/// As `fdsrc` names it, whose first buffer is of time 0 whenever it comes.
#[test]
fn a_time_that_is_past_changes_no_policy() {
    let [in_flight, next_block] = ["in-flight", "next-block"].map(frames_until);
    // One block is about to make the last of four steps, another the first.
    assert_eq!(in_flight + 3 * BLOCKS[1] as usize, next_block);
}

/// As it is typed while a model loads: of the first line `fdsrc` says that it is for time 0.
#[test]
fn the_newest_prompt_is_shown_when_an_older_one_names_a_time() {
    init();
    let line = "blockcascadesrc name=src is-live=true num-buffers=40 wait-prompt=false ! fakesink";
    let pipeline = Stopped(gst::parse::launch(line).unwrap());
    let source = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("src").unwrap();
    pipeline.set_state(gst::State::Paused).unwrap();
    let ask = |text: &str, time: Option<gst::ClockTime>| {
        let options = gst::Structure::builder("options").field("running-time", time).build();
        assert!(source.emit_by_name::<bool>("set-prompt", &[&text, &options]));
    };
    ask("an old one", Some(gst::ClockTime::ZERO));
    ask("a new one", None);
    let texts = Arc::new(Mutex::new(Vec::new()));
    let seen = texts.clone();
    source.connect_notify(Some("current-prompt"), move |source, _| {
        seen.lock().unwrap().extend(source.property::<Option<String>>("current-prompt"));
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    assert!(bus.timed_pop_filtered(PATIENCE, &[gst::MessageType::Eos]).is_some());
    assert_eq!(*texts.lock().unwrap(), ["a new one"]);
}

/// Half of the frames are repeats: twice as much is shown until then as is made.
#[test]
fn a_prompt_for_a_time_comes_then_though_frames_are_late() {
    let block = std::time::Duration::from_millis(150);
    let toy = Toy::new(Behaviour::Slow(block / 5 / LAYERS as u32));
    let properties = format!("is-live=true underrun-policy=repeat queue-blocks=1 {}", toy.model());
    let caps = "video/x-raw, format=RGB, framerate=160/1";
    let (element, mut harness) = playing_as(&properties, caps);
    let wait = 12 * gst::ClockTime::SECOND;
    let asked = harness.pull().unwrap().pts().unwrap() + wait;
    let options = gst::Structure::builder("options").field("running-time", asked).build();
    assert!(element.emit_by_name::<bool>("set-prompt", &[&"later", &options]));
    let is_old = |buffer: &gst::Buffer| field(buffer, "prompt-id") == 1;
    let shown = (0..5000).map(|_| harness.pull().unwrap()).find(|buffer| !is_old(buffer)).unwrap();
    let late = shown.pts().unwrap().saturating_sub(asked);
    // Counted in what is made, it would be as late again.
    assert!(shown.pts().unwrap() >= asked && late < wait / 2, "{late} late");
}

#[test]
fn odd_prompts_are_shown_like_others() {
    for prompt in ["", "🦊 一只红狐狸", &"ball ".repeat(2_000)] {
        let mut harness = Harness::with_element(&element("seed=0"), None, Some("src"));
        harness.element().unwrap().set_property("prompt", prompt);
        harness.play();
        assert!(harness.pull().is_ok(), "{prompt:.20}");
    }
}

#[test]
fn properties_and_prompts_from_several_threads() {
    let (element, mut harness) = playing("seed=0 prompt-policy=next-block");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let element = &element;
            scope.spawn(move || {
                for n in 0..200 {
                    element.set_property("prompt", format!("prompt {n} of {thread}"));
                    element.property::<gst::Structure>("stats");
                    element.property::<Option<String>>("current-prompt");
                }
            });
        }
        pull(&mut harness, 24);
    });
    pull(&mut harness, 48);
    let stats = element.property::<gst::Structure>("stats");
    let settled = ["prompts-applied", "prompts-dropped", "prompts-queued"];
    let sum: u64 = settled.into_iter().map(|name| stats.get::<u64>(name).unwrap()).sum();
    assert_eq!(sum, 800, "{stats:?}");
}

/// Frames' prompts of a stream whose prompts come as subtitles, and a checksum of its pictures.
fn story(properties: &str) -> (Vec<u64>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("story.srt");
    let text = "1\n00:00:00,000 --> 00:00:01,000\na red ball\n\n\
                2\n00:00:01,000 --> 00:00:02,500\na <i>blue</i> cube\n\n";
    std::fs::write(&file, text).unwrap();
    init();
    let line = format!(
        "blockcascadesrc name=src seed=7 num-buffers=48 {properties} ! video/x-raw,format=RGB !
         fakesink name=sink
         filesrc location={} ! subparse ! queue ! src.prompt",
        file.display()
    );
    let frames = Arc::new(Mutex::new((Vec::new(), 0u64)));
    let seen = frames.clone();
    play_to_end(&line, move |buffer| {
        let (prompts, sum) = &mut *seen.lock().unwrap();
        prompts.push(field(buffer, "prompt-id"));
        for byte in bytes(buffer) {
            *sum = sum.wrapping_mul(31).wrapping_add(byte.into());
        }
    });
    let frames = frames.lock().unwrap();
    frames.clone()
}

#[test]
fn subtitles_are_prompts_and_the_same_every_time() {
    let (prompts, sum) = story("");
    let changes: Vec<_> = (1..48).filter(|&n| prompts[n] != prompts[n - 1]).collect();
    assert_eq!(changes, [21], "the first block that starts at 1 s or later starts at frame 21");
    for properties in ["", "queue-blocks=8", "queue-blocks=1"] {
        assert_eq!(story(properties).1, sum, "{properties}");
    }
}

#[test]
fn no_block_is_made_before_its_text_is_known() {
    let toy = Toy::new(Behaviour::Work);
    let source = element(&format!("seed=0 {}", toy.model()));
    let pad = source.request_pad_simple("prompt").unwrap(); // before the harness starts it
    let mut harness = Harness::with_element(&source, None, Some("src"));
    harness.add_element_sink_pad(&pad);
    harness.set_src_caps_str("text/x-raw, format=utf8");
    harness.play();
    let stands_still = |harness: &Harness| {
        std::thread::sleep(MOMENT.into()); // the toy would make seconds of video
        assert_eq!(harness.buffers_in_queue(), 0);
    };
    stands_still(&harness);
    let mut text = gst::Buffer::from_slice(b"a cube");
    text.get_mut().unwrap().set_pts(gst::ClockTime::SECOND);
    harness.push(text).unwrap();
    // It is known what is shown up to frame 16; the third block starts behind that.
    let known = (BLOCKS[0] + BLOCKS[1]) as usize;
    let first = field(&pull(&mut harness, known)[0], "prompt-id");
    stands_still(&harness);
    harness.push_event(gst::event::Eos::new());
    assert!(field(&harness.pull().unwrap(), "prompt-id") != first);
}

#[test]
fn no_block_waits_for_the_text_of_a_pad_that_was_unlinked() {
    let toy = Toy::new(Behaviour::Work);
    let source = element(&format!("seed=0 {}", toy.model()));
    let pad = source.request_pad_simple("prompt").unwrap();
    let mut harness = Harness::with_element(&source, None, Some("src"));
    let text = gst::Pad::new(gst::PadDirection::Src);
    text.set_active(true).unwrap();
    text.link(&pad).unwrap();
    harness.play();
    std::thread::sleep(MOMENT.into());
    assert_eq!(harness.buffers_in_queue(), 0);
    text.unlink(&pad).unwrap();
    pull(&mut harness, 30);
}

#[test]
fn the_text_pad_takes_what_comes() {
    let source = element("seed=0 wait-prompt=false");
    source.set_bus(Some(&gst::Bus::new()));
    let mut harness = Harness::with_element(&source, None, Some("src"));
    harness.add_element_sink_pad(&source.request_pad_simple("prompt").unwrap());
    harness.set_src_caps_str("text/x-raw, format=utf8");
    harness.play();
    harness.pull().unwrap();
    let texts = [&b"a cube"[..], b"", b"\xff\xfe", &[b'x'; 1 << 20], b"a \0 ring", b"a star\n\0"];
    for text in texts {
        harness.push(gst::Buffer::from_slice(text.to_vec())).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    let is_shown = |_| {
        harness.pull().unwrap();
        source.property::<Option<String>>("current-prompt").as_deref() == Some("a star")
    };
    assert!((0..600).any(is_shown), "the prompt never came");
    let bus = source.bus().unwrap();
    let warnings = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Warning])).count();
    assert_eq!(warnings, 3);
}

#[test]
fn a_transition_goes_block_by_block() {
    let toy = Toy::new(Behaviour::Work);
    let properties = format!(
        "{} seed=0 prompt={} transition-blocks=4 transition-method=slerp",
        toy.model(),
        "x".repeat(80)
    );
    let (element, mut harness) = playing_as(&properties, "video/x-raw, format=RGB");
    let second = gst::ClockTime::SECOND;
    let ask = |length: usize, seconds: u64, fields: &str| {
        let options =
            format!("options, running-time=(guint64){} {fields}", seconds * second.nseconds());
        let options = options.parse::<gst::Structure>().unwrap();
        assert!(element.emit_by_name::<bool>("set-prompt", &[&"y".repeat(length), &options]));
    };
    ask(40, 20, "");
    ask(80, 30, ", transition-blocks=(uint)2, transition-method=linear");
    let buffers = pull(&mut harness, 16 * 36);
    let level = |n: usize| f64::from(bytes(&buffers[n])[0]) / 2.55;
    let first_of = |seconds: usize| (16 * seconds..).find(|n| n % 12 == 9).unwrap();
    let levels = |seconds: usize| -> Vec<_> {
        (0..6).map(|block| level(first_of(seconds) - 12 + 12 * block).round()).collect()
    };
    assert_eq!(levels(20), [80.0, 70.0, 60.0, 50.0, 40.0, 40.0]);
    assert_eq!(levels(30), [40.0, 60.0, 80.0, 80.0, 80.0, 80.0]);
}

#[test]
fn an_event_before_the_start_is_what_the_stream_starts_from() {
    let element = element("seed=0");
    let event = |fields| gst::event::CustomUpstream::new(fields);
    let prompt = gst::Structure::builder("blockcascade/prompt").field("text", "a star");
    let (sender, notified) = mpsc::channel();
    element.connect_notify(Some("prompt"), move |element, _| {
        sender.send(element.property::<Option<String>>("prompt")).unwrap();
    });
    assert!(element.send_event(event(prompt.build())));
    assert_eq!(notified.try_recv().unwrap().as_deref(), Some("a star"));
    let timed = gst::Structure::builder("blockcascade/prompt").field("text", "a ring");
    let timed = timed.field("running-time", gst::ClockTime::SECOND).build();
    assert!(!element.send_event(event(timed)), "nothing runs yet");
}

#[test]
fn the_first_prompt_is_the_title() {
    let (_, mut harness) = playing("seed=0 prompt=\"a red ball\"");
    harness.pull().unwrap();
    let events = std::iter::from_fn(|| harness.try_pull_event()).collect::<Vec<_>>();
    let titles = events.iter().filter_map(|event| match event.view() {
        gst::EventView::Tag(tag) => tag.tag().get::<gst::tags::Title>().map(|t| t.get().to_owned()),
        _ => None,
    });
    assert_eq!(titles.collect::<Vec<_>>(), ["a red ball"]);
}

/// Twice the rate is half the time that there is for a block.
#[test]
fn the_realtime_factor_is_that_of_the_negotiated_rate() {
    for rate in [16, 48] {
        let caps = format!("video/x-raw,format=RGB,framerate={rate}/1");
        let (element, mut harness) = playing_as("seed=0 num-buffers=24", &caps);
        pull(&mut harness, 24);
        let stats = element.property::<gst::Structure>("stats");
        let time = |name| stats.get::<gst::ClockTime>(name).unwrap().nseconds() as f64 / 1e9;
        let slower = time("block-time-avg").max(time("decode-time-avg"));
        let realtime = stats.get::<f64>("realtime-factor").unwrap() * slower;
        let expected = BLOCKS[1] as f64 / f64::from(rate);
        assert!((realtime / expected - 1.0).abs() < 1e-3, "{realtime} s at {rate}/s");
    }
}

#[test]
fn a_prompt_for_a_time_that_never_comes_is_answered() {
    let element = element("seed=0 is-live=true");
    element.set_bus(Some(&gst::Bus::new()));
    element.set_state(gst::State::Paused).unwrap();
    let options = gst::Structure::builder("options")
        .field("running-time", gst::ClockTime::SECOND)
        .field("id", "never")
        .build();
    assert!(element.emit_by_name::<bool>("set-prompt", &[&"a star", &options]));
    element.set_state(gst::State::Null).unwrap();
    let bus = element.bus().unwrap();
    let told = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Element]));
    let told = told.filter_map(|message| message.structure().map(ToOwned::to_owned));
    let told: Vec<_> = told.filter(|fields| fields.get("id") == Ok("never")).collect();
    let names: Vec<_> = told.iter().map(|fields| fields.name().as_str()).collect();
    assert_eq!(names, ["blockcascade/prompt-dropped"]);
}

#[test]
fn a_text_pad_that_is_gone_holds_no_block_back() {
    let toy = Toy::new(Behaviour::Work);
    let element = element(&format!("seed=0 {}", toy.model()));
    let pad = element.request_pad_simple("prompt").unwrap();
    let mut harness = Harness::with_element(&element, None, Some("src"));
    harness.play();
    std::thread::sleep(MOMENT.into()); // the toy would make seconds of video
    assert_eq!(harness.buffers_received(), 0);
    element.release_request_pad(&pad);
    assert!(harness.pull().is_ok());
}

#[test]
fn stats_tell_how_fast_it_is() {
    let (element, mut harness) = playing("seed=0");
    pull(&mut harness, 24);
    let stats = element.property::<gst::Structure>("stats");
    for name in ["block-time-last", "block-time-avg", "block-time-p95", "decode-time-avg"] {
        assert!(stats.get::<gst::ClockTime>(name).unwrap() > gst::ClockTime::ZERO, "{name}");
    }
    assert_eq!(
        (stats.get::<&str>("model"), stats.get::<&str>("state")),
        (Ok("pocket"), Ok("generating"))
    );
    let devices = stats.get::<gst::Array>("devices").unwrap();
    let device = devices[0].get::<gst::Structure>().unwrap();
    assert_eq!((devices.len(), device.get::<&str>("name")), (1, Ok("cpu")));
}
