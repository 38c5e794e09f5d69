//! What a script cannot do, it says at once: before anything is built or installed.

use std::process::Command;

use crate::script::{Running, script, shell, turn};

#[test]
fn scripts_refuse_what_they_cannot_do() {
    let _turn = turn();
    let cases: [(&str, &[&str], &str); 23] = [
        ("play.sh", &[], "usage"),
        ("play.sh", &["a ball", "1.5"], "got 1.5 seconds, expected a whole number"),
        ("record.sh", &["a ball"], "usage"),
        ("record.sh", &["a ball", "ball.gif"], "got ball.gif, expected a name that ends in"),
        ("record.sh", &["a ball", "ball.mp4", "soon"], "got soon seconds, expected a whole number"),
        ("story.sh", &["nowhere.srt", "x.mp4"], "cannot read"),
        ("rtmp.sh", &[], "usage"),
        ("rtmp.sh", &["http://host/live/x"], "got http://host/live/x, expected rtmp://"),
        ("rtmp.sh", &["rtmp://host/live/x", "a ball", "0"], "got 0 seconds"),
        ("whip.sh", &[], "usage"),
        ("whip.sh", &["rtmp://host/x"], "got rtmp://host/x, expected http://"),
        ("whip.sh", &["https://host/x"], "whipclientsink"),
        ("v4l2.sh", &[], "usage"),
        ("v4l2.sh", &["/dev/null"], "got /dev/null, expected a device of v4l2loopback"),
        ("v4l2.sh", &["/dev/video99"], "got /dev/video99, expected a device of v4l2loopback"),
        ("hls.sh", &[], "usage"),
        ("hls.sh", &["/proc/x"], "got /proc/x, expected a folder"),
        ("srt.sh", &["tcp://host:1"], "got tcp://host:1, expected srt://"),
        ("srt.sh", &["srt://host:99999"], "got port 99999, expected a number from 1 to 65535"),
        ("rtp.sh", &["localhost"], "usage"),
        ("rtp.sh", &["localhost", "0"], "got port 0, expected a number from 1 to 65535"),
        ("rtp.sh", &["localhost", "5004", "a ball", "soon"], "got soon seconds"),
        ("rtp.sh", &["nowhere.invalid", "5004"], "got nowhere.invalid, expected a host"),
    ];
    for (name, arguments, expected) in cases {
        check_refused(script(name, arguments), expected);
    }
}

#[test]
fn the_air_refuses_what_its_encoder_cannot_do() {
    let _turn = turn();
    let scripts: [(&str, &[&str]); 4] = [
        ("rtmp.sh", &["rtmp://host/live/x"]),
        ("srt.sh", &[]),
        ("rtp.sh", &["localhost", "5004"]),
        ("hls.sh", &["/tmp"]),
    ];
    let cases = [
        ("BITRATE", "2.5M", "got BITRATE=2.5M, expected kbit/s"),
        ("BITRATE", "0", "got BITRATE=0, expected kbit/s"),
        ("PRESET", "fastest", "got PRESET=fastest, expected one of x264's"),
    ];
    for (name, arguments) in scripts {
        for (variable, value, expected) in cases {
            let mut command = script(name, arguments);
            command.env(variable, value);
            check_refused(command, expected);
        }
    }
}

/// Plugins in Rust have versions of their own, lower than GStreamer's.
#[test]
fn an_element_is_found_whatever_its_version() {
    let _turn = turn();
    shell("build; has blockcascadesrc && has fakesink && ! has nosuchelement");
}

/// In one line, before it did anything.
fn check_refused(command: Command, expected: &str) {
    let what = format!("{command:?}");
    let mut refused = Running::start(command);
    let status = refused.ended();
    let complained = refused.complained();
    assert!(!status.success(), "{what}");
    assert!(complained.contains(expected), "{what}: {complained}");
    assert_eq!((complained.lines().count(), refused.said().as_str()), (1, ""), "{complained}");
}
