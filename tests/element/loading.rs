//! Loading: when, how often, what is said of it, and what is shown meanwhile.

use std::path::Path;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use gstblockcascade::checkpoint::Manifest;
use gstblockcascade::generator::{GeneratorConfig, Loading, LoadingState};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_check::Harness;

use super::support::PATIENCE;
use super::toy::{Behaviour, Toy};
use super::{Stopped, bytes, field, messages, playing_as, playing_by, pull, pull_due, started};

/// The kinds of PROGRESS messages that were posted so far.
fn progress(element: &gst::Element) -> Vec<gst::ProgressType> {
    let bus = element.bus().unwrap();
    let messages = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Progress]));
    messages
        .map(|message| match message.view() {
            gst::MessageView::Progress(progress) => progress.type_(),
            _ => unreachable!("filtered"),
        })
        .collect()
}

/// Waits for the PROGRESS message of a kind.
fn wait_for(element: &gst::Element, kind: gst::ProgressType) {
    let bus = element.bus().unwrap();
    let mut messages =
        std::iter::from_fn(|| bus.timed_pop_filtered(PATIENCE, &[gst::MessageType::Progress]));
    let is_it = |message: gst::Message| match message.view() {
        gst::MessageView::Progress(progress) => progress.type_() == kind,
        _ => false,
    };
    assert!(messages.any(is_it), "no {kind:?}");
}

/// A manifest of a model that no other element in this process has loaded.
fn model(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("own.toml");
    let text = include_str!("../../models/pocket.toml");
    let unique = format!("description = \"in {}, ", folder.path().display());
    std::fs::write(&path, text.replacen("description = \"", &unique, 1)).unwrap();
    format!("model={}", path.display())
}

/// Plays an element to its first frame, and stops it.
fn first_frame(element: &gst::Element) {
    let mut harness = Harness::with_element(element, None, Some("src"));
    harness.play();
    harness.pull().unwrap();
}

/// Only a live source shows slates.
#[test]
fn without_a_slate_it_is_told_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    let (element, _) = started(&format!("startup-policy=slate {}", model(&folder)));
    wait_for(&element, gst::ProgressType::Complete);
}

#[test]
fn it_is_told_from_start_to_end_with_percents() {
    let folder = tempfile::tempdir().unwrap();
    let (element, _) = started(&model(&folder));
    wait_for(&element, gst::ProgressType::Start);
    let bus = element.bus().unwrap();
    let mut percents = Vec::new();
    let mut numbers = Vec::new();
    loop {
        let message = bus.timed_pop_filtered(PATIENCE, &[gst::MessageType::Progress]).unwrap();
        percents.push(message.structure().unwrap().get::<i32>("percent").unwrap());
        numbers.push(message.seqnum());
        let gst::MessageView::Progress(progress) = message.view() else { unreachable!("filtered") };
        if progress.type_() == gst::ProgressType::Complete {
            break;
        }
    }
    assert!(percents.len() > 2 && percents.is_sorted() && percents.last() == Some(&100));
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "one number for one loading");
    element.set_state(gst::State::Null).unwrap();
    assert_eq!(progress(&element), []);
}

#[test]
fn a_stop_cancels_it_and_says_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let (element, _) = started(&model(&folder));
    wait_for(&element, gst::ProgressType::Start);
    element.set_state(gst::State::Ready).unwrap();
    let bus = element.bus().unwrap();
    let next = || bus.timed_pop_filtered(super::MOMENT, &[gst::MessageType::Progress]);
    let told: Vec<_> = std::iter::from_fn(next).collect();
    let kind = |message: &gst::Message| match message.view() {
        gst::MessageView::Progress(progress) => progress.type_(),
        _ => unreachable!("filtered"),
    };
    let (end, before) = told.split_last().unwrap();
    assert!(before.iter().all(|message| kind(message) == gst::ProgressType::Continue));
    // On a quick machine it was over before.
    let percent = end.structure().unwrap().get::<i32>("percent").unwrap();
    let ends = [(gst::ProgressType::Canceled, 0), (gst::ProgressType::Complete, 100)];
    assert!(ends.contains(&(kind(end), percent)), "{end:?}");
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn networks_are_kept_until_null() {
    let folder = tempfile::tempdir().unwrap();
    let count = |rest: gst::State, properties: &str| {
        let (element, _) = started(&format!("seed=0 {} {properties}", model(&folder)));
        let mut harness = Harness::with_element(&*element, None, Some("src"));
        let mut loads = 0;
        for _ in 0..2 {
            harness.play();
            harness.pull().unwrap();
            let kinds = progress(&element).into_iter();
            loads += kinds.filter(|&kind| kind == gst::ProgressType::Start).count();
            element.set_state(rest).unwrap();
        }
        loads
    };
    assert_eq!(count(gst::State::Ready, ""), 1);
    assert_eq!(count(gst::State::Null, ""), 2);
    assert_eq!(count(gst::State::Null, "keep-loaded=60000"), 1);
}

#[test]
fn keeping_has_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder);
    let (element, _) = started(&format!("{model} keep-loaded=200"));
    first_frame(&element);
    element.set_state(gst::State::Null).unwrap();
    let patience = Instant::now() + Duration::from(PATIENCE);
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let (other, _) = started(&model);
        if progress(&other).contains(&gst::ProgressType::Start) {
            break;
        }
        assert!(Instant::now() < patience, "it is still loaded");
    }
}

/// A loading that goes no further than its first percent until the sender is dropped.
fn held(manifest: &Path) -> (Loading, mpsc::Sender<()>) {
    let patience = Instant::now() + Duration::from(PATIENCE);
    loop {
        let config = GeneratorConfig::new(Manifest::read(manifest).unwrap());
        let (go, gate) = mpsc::channel::<()>();
        let (stands, standing) = mpsc::channel();
        let loading = Loading::start(&config).unwrap();
        let gate = Mutex::new(gate);
        loading.watch(move |state| {
            if std::thread::current().name() == Some("blockcascade-load") {
                let is_done = !matches!(state, LoadingState::Percent(_));
                let _ = stands.send(is_done); // heard once
                let _ = gate.lock().unwrap().recv(); // ends when it is dropped
            }
        });
        if standing.recv_timeout(PATIENCE.into()) == Ok(false) {
            return (loading, go);
        }
        assert!(Instant::now() < patience, "none can be held");
        drop((go, loading)); // it was done before it could be held
    }
}

/// Whoever receives a live stream sees something from its first second on, however long weights take.
#[test]
fn a_slate_tells_of_loading() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder);
    let (loading, go) = held(&folder.path().join("own.toml"));
    let properties = format!("is-live=true startup-policy=slate seed=0 {model}");
    let (_element, mut harness) = playing_as(&properties, "video/x-raw, format=RGB");
    for buffer in pull(&mut harness, 5) {
        assert_eq!(field(&buffer, "prompt-id"), 0);
    }
    drop(go);
    assert!((0..1000).any(|_| field(&harness.pull().unwrap(), "prompt-id") > 0));
    let told = messages(&harness, "blockcascade/loading");
    let percents: Vec<u32> = told.iter().map(|fields| fields.get("percent").unwrap()).collect();
    assert!(percents.is_sorted() && percents.last() == Some(&100), "{percents:?}");
    drop(loading);
}

#[test]
fn elements_of_a_process_share_networks() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder);
    let (first, _) = started(&model);
    wait_for(&first, gst::ProgressType::Complete);
    let (second, _) = started(&format!("{model} cascade-width=3"));
    assert_eq!(progress(&second), [], "it has them at once");
    first.set_state(gst::State::Null).unwrap();
    first_frame(&second);
    let (other, _) = started(&format!("{model} dtype=f32"));
    wait_for(&other, gst::ProgressType::Start);
    other.set_state(gst::State::Null).unwrap();
}

#[test]
fn preloading_starts_in_ready() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder);
    let element = Stopped(super::element(&format!("{model} preload=true")));
    element.set_bus(Some(&gst::Bus::new()));
    element.set_state(gst::State::Ready).unwrap();
    // Another element that asks for the same has it from there.
    let (other, _) = started(&model);
    first_frame(&other);
    element.set_state(gst::State::Paused).unwrap();
    assert_eq!(progress(&element), [], "it was loaded in READY");
}

#[test]
fn files_that_cannot_be_read_are_one_error_before_the_last_progress() {
    let folder = tempfile::tempdir().unwrap();
    let size = include_bytes!("../../models/pocket/dit.safetensors").len();
    std::fs::write(folder.path().join("dit.safetensors"), vec![0; size]).unwrap();
    super::init();
    let line = format!("blockcascadesrc model={} ! fakesink", folder.path().display());
    let pipeline = Stopped(gst::parse::launch(&line).unwrap());
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Paused).unwrap();
    let kinds = [gst::MessageType::Error, gst::MessageType::Progress];
    let mut told = Vec::new();
    while told.last() != Some(&"progress error") {
        let message = bus.timed_pop_filtered(PATIENCE, &kinds).unwrap();
        told.push(match message.view() {
            gst::MessageView::Error(error) => {
                assert!(error.error().matches(gst::ResourceError::OpenRead), "{error:?}");
                "error"
            }
            gst::MessageView::Progress(progress) => match progress.type_() {
                gst::ProgressType::Start => "start",
                gst::ProgressType::Error => "progress error",
                _ => "more",
            },
            _ => unreachable!("filtered"),
        });
    }
    let another = bus.timed_pop_filtered(super::MOMENT, &[gst::MessageType::Error]);
    assert!(another.is_none(), "the base class's own, too: {another:?}");
    told.retain(|&kind| kind != "more");
    assert_eq!(told, ["start", "error", "progress error"]);
}

#[test]
fn a_slate_is_shown_until_the_first_frame() {
    let toy = Toy::new(Behaviour::Slow(Duration::from_millis(60)));
    let properties = format!("is-live=true startup-policy=slate seed=0 {}", toy.model());
    let (element, mut harness) = playing_as(&properties, "video/x-raw, format=RGB");
    let mut buffers = pull(&mut harness, 4);
    while field(buffers.last().unwrap(), "prompt-id") == 0 {
        buffers.extend(pull(&mut harness, 1));
        assert!(buffers.len() < 500, "no frame came");
    }
    toy.behave(Behaviour::Work);
    let slates = buffers.len() - 1;
    let stats = element.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("slates"), Ok(slates as u64));
    assert_eq!(field(&buffers[slates], "frame"), 0);
    for (buffer, n) in buffers.iter().zip(0u64..) {
        assert_eq!(buffer.offset(), n);
    }
    let times: Vec<_> = buffers.iter().map(|buffer| buffer.pts().unwrap()).collect();
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    let (slate, frame) = (bytes(&buffers[0]), bytes(&buffers[slates]));
    assert!(slate[..300].iter().all(|&byte| byte < 30), "a slate is dark");
    assert_ne!(slate, frame);
}

/// Slates take numbers that frames would have had: times are found all the same.
#[test]
fn a_prompt_for_a_time_comes_then_behind_slates_too() {
    let toy = Toy::new(Behaviour::Slow(Duration::from_secs(1)));
    let properties = format!("is-live=true startup-policy=slate seed=0 {}", toy.model());
    let caps = "video/x-raw, format=RGB";
    let (element, mut harness) = playing_by(Harness::use_testclock, &properties, caps);
    let pull_until = |harness: &mut Harness, is_it: &dyn Fn(&gst::Buffer) -> bool| {
        (0..500).map(|_| pull_due(harness)).find(|buffer| is_it(buffer)).unwrap()
    };
    let ask = |text: &str, time: gst::ClockTime| {
        let options = gst::Structure::builder("options").field("running-time", time).build();
        assert!(element.emit_by_name::<bool>("set-prompt", &[&text, &options]));
    };
    pull_due(&mut harness);
    let early = element.current_running_time().unwrap() + 5 * gst::ClockTime::SECOND;
    ask("a star", early);
    (0..12).for_each(|_| drop(pull_due(&mut harness)));
    toy.behave(Behaviour::Work);
    let first = pull_until(&mut harness, &|buffer| field(buffer, "prompt-id") > 0);
    assert!(first.offset() > 12, "more than a block of slates");
    let later = early + 2 * gst::ClockTime::SECOND;
    ask("a ring", later);
    let mut before = field(&first, "prompt-id");
    for time in [early, later] {
        let changed = pull_until(&mut harness, &|buffer| field(buffer, "prompt-id") != before);
        let late = changed.pts().unwrap().checked_sub(time).unwrap();
        assert!(late < 12 * changed.duration().unwrap(), "{late} after its time");
        before = field(&changed, "prompt-id");
    }
}
