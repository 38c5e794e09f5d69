//! The example in Python: each way in is answered.

use std::process::Command;

use crate::script::{run, shell, turn};

#[test]
fn each_way_in_is_answered_in_python() {
    let _turn = turn();
    shell("/usr/bin/python3 -c 'import gi' 2>/dev/null || install_packages python3-gst-1.0");
    let path = shell("build; printf %s \"$GST_PLUGIN_PATH\"");
    let mut example = Command::new("setpriv");
    example.args(["--pdeathsig", "KILL"]);
    example.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/control.py"));
    example.env("GST_PLUGIN_PATH", path);
    let said = run(example).said();
    let ways = ["property: {'text': 'a desert'", "signal: {'text': 'snow'", "'id': '42'"];
    let more = ["event: {'text': 'a forest'", "text pad: {'text': 'a city at night'"];
    for expected in ways.iter().chain(&more) {
        assert!(said.contains(expected), "no {expected}: {said}");
    }
    let word = "'frame': ";
    let numbers = said.match_indices(word).map(|(at, _)| &said[at + word.len()..]);
    let frames: Vec<u64> =
        numbers.map(|rest| rest.split(',').next().unwrap().parse().unwrap()).collect();
    assert!(frames.len() == 4 && frames.is_sorted() && frames[0] > 0, "{frames:?}");
}
