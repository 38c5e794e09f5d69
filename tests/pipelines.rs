//! The scripts in `pipelines/`, as a user runs them; what they write is decoded and looked at.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use gstreamer as gst;

mod support;
use support::play_to_end;

/// Installing and building included.
const SCRIPT_PATIENCE: &str = "1200";

fn script(name: &str, arguments: &[&str]) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(name);
    let mut command = Command::new("timeout");
    command.arg(SCRIPT_PATIENCE).arg(path).args(arguments);
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").stdin(Stdio::null());
    command
}

fn ran(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Frames of a file, and the brightness of each.
fn brightness(file: &Path) -> Vec<f64> {
    gst::init().unwrap();
    let line = format!(
        "filesrc location={} ! decodebin ! videoconvert ! video/x-raw,format=GRAY8 !
         fakesink name=sink",
        file.display()
    );
    let means = Arc::new(Mutex::new(Vec::new()));
    let seen = means.clone();
    play_to_end(&line, move |buffer| {
        let pixels = buffer.map_readable().unwrap();
        let sum: f64 = pixels.iter().map(|&pixel| f64::from(pixel)).sum();
        seen.lock().unwrap().push(sum / pixels.len() as f64);
    });
    let means = means.lock().unwrap();
    means.clone()
}

/// Whether a file has so many frames, none of them black.
fn check(file: &Path, frames: usize) {
    let means = brightness(file);
    assert_eq!(means.len(), frames, "{}", file.display());
    assert!(means.iter().all(|&mean| mean > 8.0), "{means:?}");
}

/// One after the other: they install packages.
#[test]
fn scripts_make_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let path = |name: &str| file(name).display().to_string();

    let mut play = script("play.sh", &["a \"red\" ball", "1"]);
    play.env("OUT", file("play.mp4"));
    let said = text(&ran(play).stdout);
    assert!(said.contains(&path("play.mp4")), "{said}");
    install_decoder();
    check(&file("play.mp4"), 16);

    for name in ["a.mp4", "a.mkv", "a.webm"] {
        ran(script("record.sh", &["a blue cube in the snow", &path(name), "2"]));
        check(&file(name), 32);
    }
    let story = "1\n00:00:00,000 --> 00:00:01,000\na ball on a beach at night\n\n\
                 2\n00:00:01,000 --> 00:00:02,000\na ball on a beach by day\n\n";
    std::fs::write(file("story.srt"), story).unwrap();
    ran(script("story.sh", &[&path("story.srt"), &path("story.mp4"), "3"]));
    check(&file("story.mp4"), 48);
    let means = brightness(&file("story.mp4"));
    assert!(means[47] > means[0] + 30.0, "day is brighter than night: {means:?}");
    live_prompt();
}

fn live_prompt() {
    let mut live = script("live-prompt.sh", &["a ring"]);
    live.env("SINK", "fakesink num-buffers=40 sync=true").stdin(Stdio::piped());
    let mut live = live.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    live.stdin.take().unwrap().write_all("a star\na cube\n".as_bytes()).unwrap();
    assert!(live.wait().unwrap().success());
}

/// What decodes H.264 is no business of the scripts.
fn install_decoder() {
    gst::init().unwrap();
    let has = |name| gst::ElementFactory::find(name).is_some();
    if !has("avdec_h264") && !has("openh264dec") {
        let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/plugin.sh");
        let line = format!(". {}; need avdec_h264 gstreamer1.0-libav", plugin.display());
        ran({
            let mut shell = Command::new("sh");
            shell.args(["-c", &line]);
            shell
        });
        gst::Registry::get().scan_path("/usr/lib");
    }
}

#[test]
fn scripts_refuse_what_they_cannot_do() {
    let refused = |name: &str, arguments: &[&str], expected: &str| {
        let output = script(name, arguments).output().unwrap();
        assert!(!output.status.success(), "{name} {arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains(expected), "{name} {arguments:?}: {said}");
    };
    refused("play.sh", &[], "usage");
    refused("record.sh", &["a ball"], "usage");
    refused("record.sh", &["a ball", "ball.gif"], "expected a name that ends in");
    refused("record.sh", &["a ball", "ball.mp4", "soon"], "expected a whole number");
    refused("story.sh", &["nowhere.srt", "x.mp4"], "cannot read");
}
