//! From a typed prompt to its picture, by each way out. Measures; fails only where no picture comes.

use std::time::Duration;

use crate::air::receiver;
use crate::look::{Place, Watch};
use crate::script::{Running, script, turn, wait_until};
use crate::server::{Server, free_udp_port};

/// One prompt after the other, from a place of snow on.
const PLACES: [Place; 6] =
    [Place::Desert, Place::Forest, Place::Snow, Place::Sea, Place::Desert, Place::Snow];

/// Types prompts into a script and says how long each took to be seen.
pub fn measure(way: &str, stream: &mut Running, watch: &Watch) {
    watch.wait_for(Place::Snow);
    let mut times: Vec<Duration> = Vec::new();
    for place in PLACES {
        stream.write_line(place.prompt());
        times.push(watch.wait_for(place));
    }
    eprintln!("{way}: {} from prompt to picture", spread(times));
    let said = stream.said();
    let own = said.lines().filter_map(|line| line.split_once(" on, ")?.1.split_once(" s later"));
    let own = own.filter_map(|(seconds, _)| seconds.parse().ok());
    let own: Vec<_> = own.map(Duration::from_secs_f64).collect();
    if !own.is_empty() {
        eprintln!("{way}: of that, {} until the element has its first frame", spread(own));
    }
}

/// The median, and between what it is.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let seconds = |time: Duration| format!("{:.1}", time.as_secs_f64());
    let [least, median, most] = [0, times.len() / 2, times.len() - 1].map(|n| seconds(times[n]));
    format!("{median} s ({least} to {most})")
}

/// Takes three minutes: `cargo test --release --test pipelines -- --ignored --nocapture latency`.
#[test]
#[ignore = "takes minutes, and measures"]
fn prompts_are_seen_by_each_way_out() {
    let _turn = turn();
    let server = Server::start();
    let snow = Place::Snow.prompt();

    let (udp, srt) = (free_udp_port().to_string(), format!("srt://:{}", free_udp_port()));
    let mut stream = Running::start(script("rtp.sh", &["127.0.0.1", &udp, snow]));
    let source = receiver(&mut stream);
    measure("RTP", &mut stream, &Watch::start(&source));
    drop(stream);

    let mut stream = Running::start(script("srt.sh", &[&srt, snow]));
    let source = receiver(&mut stream);
    stream.line_after("gst-launch-1.0 -e ");
    std::thread::sleep(Duration::from_secs(3)); // it listens
    measure("SRT", &mut stream, &Watch::start(&source));
    drop(stream);

    let mut stream = Running::start(script("rtmp.sh", &[&server.stream(), snow]));
    wait_until("a recording", || server.recordings().pop());
    let source = format!("rtmp2src location={} ! decodebin", server.stream());
    measure("RTMP", &mut stream, &Watch::start(&source));
    drop(stream);

    let folder = server.folder().join("live").display().to_string();
    let mut stream = Running::start(script("hls.sh", &[&folder, snow]));
    let playlist = || std::fs::read_to_string(format!("{folder}/live.m3u8")).unwrap_or_default();
    wait_until("three segments", || playlist().contains("00002.ts").then_some(()));
    let source = format!("uridecodebin uri={}", server.page("live/live.m3u8"));
    measure("HLS", &mut stream, &Watch::start(&source));
}
