//! What a script cannot do, it says at once: before anything is built or installed.

use crate::script::{Running, script, turn};

#[test]
fn scripts_refuse_what_they_cannot_do() {
    let _turn = turn();
    let cases: [(&str, &[&str], &str); 17] = [
        ("play.sh", &[], "usage"),
        ("play.sh", &["a ball", "1.5"], "got 1.5 seconds, expected a whole number"),
        ("record.sh", &["a ball"], "usage"),
        ("record.sh", &["a ball", "ball.gif"], "got ball.gif, expected a name that ends in"),
        ("record.sh", &["a ball", "ball.mp4", "soon"], "got soon seconds, expected a whole number"),
        ("story.sh", &["nowhere.srt", "x.mp4"], "cannot read"),
        ("rtmp.sh", &[], "usage"),
        ("rtmp.sh", &["http://host/live/x"], "got http://host/live/x, expected rtmp://"),
        ("rtmp.sh", &["rtmp://host/live/x", "a ball", "0"], "got 0 seconds"),
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
        let mut refused = Running::start(script(name, arguments));
        let status = refused.ended();
        let complained = refused.complained();
        assert!(!status.success(), "{name} {arguments:?}");
        assert!(complained.contains(expected), "{name} {arguments:?}: {complained}");
        assert_eq!((complained.lines().count(), refused.said().as_str()), (1, ""), "{complained}");
    }
}
