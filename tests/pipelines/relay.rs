//! The program that starts a pipeline again, apart from any server.

use crate::files::check_streams;
use crate::script::{Running, redirected, relay, turn};

const VIDEO: &str = "videotestsrc is-live=true ! x264enc tune=zerolatency ! appsink name=video";

#[test]
fn it_says_how_it_is_used() {
    let _turn = turn();
    let mut help = Running::start(relay("--help"));
    help.succeeded();
    let said = help.said();
    assert!(said.contains("usage: blockcascade-relay MAKE... -- SEND...\n"), "{said}");
    assert!(said.contains("appsink name=video \\\n"), "{said}");
    assert_eq!(help.complained(), "");
}

#[test]
fn it_refuses_pipelines_that_do_not_fit() {
    let _turn = turn();
    let cases = [
        (VIDEO.to_owned(), "usage"),
        (format!("{VIDEO} --"), "usage"),
        ("videotestsrc ! fakesink -- appsrc name=video ! fakesink".into(), "no appsink"),
        (format!("{VIDEO} -- appsrc name=film ! fakesink"), "expected an appsrc name=video"),
        (format!("{VIDEO} -- appsrc name=video ! nosuchsink"), "nosuchsink"),
        (
            "audiotestsrc is-live=true ! appsink name=sound -- appsrc name=sound ! fakesink".into(),
            "no stream is video, expected one at least",
        ),
    ];
    for (line, expected) in cases {
        let mut refused = Running::start(relay(&line));
        assert_eq!(refused.ended().code(), Some(1), "{line}");
        let complained = refused.complained();
        assert!(complained.contains(expected), "{line}: {complained}");
        assert_eq!(complained.lines().count(), 1, "{line}: {complained}");
    }
}

#[test]
fn whoever_takes_nothing_is_no_connection() {
    let _turn = turn();
    let never = "fakesink sync=true ts-offset=1000000000000 async=false";
    let mut stuck = Running::start(relay(&format!("{VIDEO} -- appsrc name=video ! {never}")));
    assert_eq!(stuck.ended().code(), Some(1));
    assert!(stuck.complained().contains("nothing is taken for 5 s"), "{}", stuck.complained());
}

/// Some sinks are asked for their pads, and some get several buffers at once.
#[test]
fn whatever_takes_a_stream_is_a_connection() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let files = format!("splitmuxsink location={}/%05d.mp4", folder.path().display());
    for sink in [&files, "mpegtsmux ! udpsink host=127.0.0.1 port=9"] {
        let make = VIDEO.replace("is-live=true", "is-live=true num-buffers=150");
        let send = format!("appsrc name=video ! identity error-after=60 ! h264parse ! {sink}");
        let mut relay = Running::start(relay(&format!("{make} -- {send}")));
        relay.succeeded();
        assert!(relay.complained().contains("trying again"), "{sink}: {}", relay.complained());
    }
}

/// The disk that a log is on may be full.
#[test]
fn it_goes_on_where_nothing_can_be_said() {
    let _turn = turn();
    let make = VIDEO.replace("is-live=true", "is-live=true num-buffers=150");
    let send = "appsrc name=video ! identity error-after=60 ! fakesink sync=true";
    let relay = relay(&format!("{make} -- {send}"));
    Running::start(redirected(&relay, ">/dev/full 2>/dev/full")).succeeded();
}

#[test]
fn what_was_sent_is_whole_when_what_makes_it_fails() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sent.mp4");
    let make = VIDEO.replace(" ! x264enc", " ! identity error-after=30 ! x264enc");
    let send =
        format!("appsrc name=video ! h264parse ! mp4mux ! filesink location={}", file.display());
    let mut relay = Running::start(relay(&format!("{make} -- {send}")));
    assert_eq!(relay.ended().code(), Some(1));
    assert!(relay.complained().contains("identity"), "{}", relay.complained());
    check_streams(&file, &["H.264"]);
}

#[test]
fn the_first_stream_that_ends_ends_all() {
    let _turn = turn();
    let line =
        "videotestsrc is-live=true num-buffers=30 ! x264enc tune=zerolatency ! appsink name=video
                audiotestsrc is-live=true ! voaacenc ! appsink name=audio
                -- appsrc name=video ! fakesink appsrc name=audio ! fakesink";
    let mut ended = Running::start(relay(line));
    ended.succeeded();
    assert!(ended.said().starts_with("30 pictures sent, 0 dropped"), "{}", ended.said());
}
