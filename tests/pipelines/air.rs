//! Scripts that send: each is received on this machine.

use crate::files::check_streams;
use crate::look::{Film, Place, RATE, place_in_pixels};
use crate::script::{Running, redirected, script, turn, wait_until};
use crate::server::{Server, free_tcp_port, free_udp_port};

/// Seconds of a stream, and frames of it that must have come through to whoever joins late.
const SECONDS: usize = 8;
const ENOUGH: usize = 2 * RATE;

/// The pipeline that a script says to watch it by, up to the decoder.
pub fn receiver(script: &mut Running) -> String {
    let line = script.line_after("watch by: gst-launch-1.0 ").replace("playbin", "uridecodebin");
    line.split(" ! videoconvert").next().unwrap().into()
}

#[test]
fn rtmp_is_relayed_and_recorded_with_sound() {
    let _turn = turn();
    let server = Server::start();
    let stream = server.stream();
    let seconds = SECONDS.to_string();
    let mut rtmp = Running::start(script("rtmp.sh", &[&stream, Place::Desert.prompt(), &seconds]));
    let shown = rtmp.line_after("blockcascade-relay ");
    assert!(
        shown.contains("/KEY") && !shown.contains(&stream),
        "a key is no one's business: {shown}"
    );

    let relayed = Film::of_stream(&format!("rtmp2src location={stream} ! decodebin"), 2 * ENOUGH);
    assert_eq!(relayed.len(), 2 * ENOUGH);
    relayed.last(ENOUGH).check(Place::Desert);

    rtmp.succeeded();
    let recorded = wait_until("the whole recording", || {
        Some(Film::of_file(&server.recordings()[0])).filter(|film| film.len() == SECONDS * RATE)
    });
    recorded.last(2 * ENOUGH).check(Place::Desert);
    check_streams(&server.recordings()[0], &["H.264", "MPEG-4 AAC", "Sample rate: 48000"]);
}

#[test]
fn hls_is_live_over_http_and_whole_at_the_end() {
    let _turn = turn();
    let server = Server::start();
    let folder = server.folder().join("100% live"); // a format's sign and a space
    let seconds = SECONDS.to_string();
    let folder = folder.display().to_string();
    let mut hls = Running::start(script("hls.sh", &[&folder, Place::Forest.prompt(), &seconds]));
    let playlist = || std::fs::read_to_string(format!("{folder}/live.m3u8")).unwrap_or_default();
    wait_until("a first segment", || playlist().contains("00000.ts").then_some(()));
    assert!(!playlist().contains("#EXT-X-ENDLIST"), "live, not yet over");

    let source = format!("uridecodebin uri={}", server.page("100%25%20live/live.m3u8"));
    let live = Film::of_stream(&source, ENOUGH);
    assert_eq!(live.len(), ENOUGH);
    live.check(Place::Forest);

    hls.succeeded();
    assert!(playlist().contains("#EXT-X-ENDLIST"), "{}", playlist());
    let whole = Film::of_stream(&source, usize::MAX);
    assert_eq!(whole.len(), SECONDS * RATE);
    whole.check(Place::Forest);
}

#[test]
fn srt_has_a_viewer_then_another_prompt_then_an_interrupt() {
    let _turn = turn();
    let uri = format!("srt://:{}", free_udp_port());
    let mut srt = Running::start(script("srt.sh", &[&uri, Place::Snow.prompt()]));
    let source = receiver(&mut srt);
    let first = Film::of_stream(&source, ENOUGH);
    assert_eq!(first.len(), ENOUGH);
    first.check(Place::Snow);

    srt.write_line(Place::Desert.prompt());
    wait_until("the desert", || {
        let film = Film::of_stream(&source, RATE / 2);
        (film.place_in(0..film.len()) == Some(Place::Desert)).then_some(())
    });
    srt.interrupt();
    srt.succeeded();
}

#[test]
fn rtp_is_received_as_its_script_says() {
    let _turn = turn();
    let port = free_udp_port().to_string();
    let seconds = SECONDS.to_string();
    let mut rtp = script("rtp.sh", &["127.0.0.1", &port, Place::Sea.prompt(), &seconds]);
    rtp.env("BITRATE", "300").env("PRESET", "superfast");
    let mut rtp = Running::start(rtp);
    let film = Film::of_stream(&receiver(&mut rtp), ENOUGH);
    assert_eq!(film.len(), ENOUGH);
    film.check(Place::Sea);
    rtp.succeeded();
    for word in [&format!("m=video {port} RTP/AVP 96"), "bitrate=300 ", "speed-preset=superfast "] {
        assert!(rtp.said().contains(word), "{word}: {}", rtp.said());
    }
}

/// What nohup puts in a terminal's place can only be written.
#[test]
fn where_nothing_can_be_typed_it_goes_on() {
    let _turn = turn();
    let port = free_udp_port().to_string();
    let rtp = script("rtp.sh", &["127.0.0.1", &port, Place::Sea.prompt(), "2"]);
    Running::start(redirected(&rtp, "0>/dev/null")).succeeded();
}

#[test]
fn prompts_are_typed_while_it_plays() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let window = folder.path().join("window.rgb");
    let mut live = script("live-prompt.sh", &[Place::Desert.prompt()]);
    let file = format!("filesink buffer-mode=unbuffered location={}", window.display());
    live.env("SINK", format!("video/x-raw,format=RGB ! {file}"));
    let mut live = Running::start(live);
    let shows = |place| (place_in_pixels(&window) == Some(place)).then_some(());
    wait_until("the desert", || shows(Place::Desert));
    for typed in [Place::Snow, Place::Sea] {
        live.write_line(typed.prompt());
        wait_until(typed.prompt(), || shows(typed));
    }
    live.interrupt();
    live.succeeded();
}

#[test]
fn where_nobody_listens_a_stream_ends_with_the_reason() {
    let _turn = turn();
    let rtmp = format!("rtmp://127.0.0.1:{}/live/pocket", free_tcp_port());
    let srt = format!("srt://127.0.0.1:{}", free_udp_port());
    let cases = [("rtmp.sh", rtmp, "Connection refused"), ("srt.sh", srt, "SRT socket")];
    for (name, address, reason) in cases {
        let mut stream = Running::start(script(name, &[&address]));
        assert_eq!(stream.ended().code(), Some(1), "{name}");
        assert!(stream.complained().contains(reason), "{name}: {}", stream.complained());
    }
}
