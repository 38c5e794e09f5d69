//! A server that goes away and comes back, while the stream goes on.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::files::check_streams;
use crate::look::{Film, Place, RATE, packets};
use crate::script::{Running, script, turn, wait_until};
use crate::server::Server;

/// Frames of a recording that show that it goes on.
const ENOUGH: usize = 2 * RATE;
/// Of the times in an FLV.
const MILLISECOND: f64 = 0.001;
/// What a server must wait at most, after it is back.
const SOON: Duration = Duration::from_secs(5);

/// A stream to a server, and what was typed.
struct Broadcast {
    server: Server,
    rtmp: Running,
    begun: Instant,
    /// The frames from which on a place was shown.
    places: Vec<(u64, Place)>,
}

impl Broadcast {
    fn start(place: Place) -> Self {
        let server = Server::start();
        let rtmp = Running::start(script("rtmp.sh", &[&server.stream(), place.prompt()]));
        let broadcast = Self { server, rtmp, begun: Instant::now(), places: vec![(0, place)] };
        broadcast.wait_for_recording(1);
        broadcast
    }

    /// Types a prompt, and gives back the frame from which on it is shown.
    fn show(&mut self, place: Place) -> u64 {
        self.rtmp.write_line(place.prompt());
        let answer = format!(" s later: {}", place.prompt());
        let frame = wait_until("an answer to the prompt", || {
            let (last, _) = *self.places.last()?;
            let said = self.rtmp.said();
            let frames = said.lines().filter_map(|line| line.strip_suffix(&answer));
            let mut frames = frames.filter_map(|line| line.strip_prefix("from frame "));
            frames
                .find_map(|rest| rest.split(' ').next()?.parse().ok().filter(|frame| *frame > last))
        });
        self.places.push((frame, place));
        frame
    }

    /// No server for so long, in which the picture becomes a place; how soon it has a stream then.
    fn restart(&mut self, away: Duration, place: Place) -> Duration {
        let (lost, recordings) = (Instant::now(), self.server.recordings().len());
        self.server.kill();
        self.show(place);
        thread::sleep(away.saturating_sub(lost.elapsed()));
        self.server.go_on();
        let back = Instant::now();
        self.wait_for_recording(recordings + 1);
        back.elapsed()
    }

    /// Until there are pictures in the latest of so many recordings.
    fn wait_for_recording(&self, count: usize) -> PathBuf {
        wait_until("a recording", || {
            let file = self.server.recordings().get(count - 1)?.clone();
            std::fs::metadata(&file).ok().filter(|file| file.len() > 10_000).map(|_| file)
        })
    }

    /// The end; pictures sent and dropped.
    fn interrupt(&mut self) -> [u64; 2] {
        self.rtmp.interrupt();
        self.rtmp.succeeded();
        let said = self.rtmp.said();
        let mut numbers = said.lines().last().unwrap().split(' ').filter_map(|w| w.parse().ok());
        [numbers.next().unwrap(), numbers.next().unwrap()]
    }
}

/// A recording of its own: it begins at its beginning, and has picture and sound all the time.
fn check_whole(file: &Path) {
    check_streams(file, &["H.264", "MPEG-4 AAC"]);
    let (video, audio) = (packets(file, "video"), packets(file, "audio"));
    assert!(video[0].1, "a key frame is first");
    for packets in [&video, &audio] {
        assert!(packets[0].0 < 0.2, "{} starts at {}", file.display(), packets[0].0);
        let increasing = packets.windows(2).all(|pair| pair[0].0 < pair[1].0);
        assert!(increasing, "{packets:?}");
    }
    let [video, audio] = [&video, &audio].map(|packets| packets[packets.len() - 1].0);
    // A crash may take what one of them was late by.
    assert!((video - audio).abs() < 2.0, "{video} s of video, {audio} s of audio");
}

fn film(file: &Path) -> Film {
    let film = Film::of_file(file);
    assert!(film.len() >= ENOUGH, "{} frames of {}", film.len(), file.display());
    film
}

#[test]
fn rtmp_goes_on_after_an_outage_at_a_key_frame() {
    let _turn = turn();
    let mut broadcast = Broadcast::start(Place::Snow);
    broadcast.show(Place::Snow); // the slate is over
    thread::sleep(Duration::from_secs(2));
    let prompted = broadcast.show(Place::Desert);
    thread::sleep(Duration::from_secs(2));
    broadcast.restart(Duration::from_secs(1), Place::Forest);
    thread::sleep(Duration::from_secs(5));
    let [sent, dropped] = broadcast.interrupt();

    let recordings = broadcast.server.recordings();
    recordings.iter().for_each(|file| check_whole(file));
    let time = prompted as f64 / RATE as f64;
    let is_key = |&(at, is_key): &(f64, bool)| is_key && (at - time).abs() < 2.0 * MILLISECOND;
    assert!(packets(&recordings[0], "video").iter().any(is_key), "no key frame at {time}");
    let first = film(&recordings[0]);
    let shown = prompted as usize;
    assert_eq!(first.place_in(shown - RATE..shown), Some(Place::Snow));
    assert_eq!(first.place_in(first.len() - RATE..first.len()), Some(Place::Desert));
    film(&recordings[1]).check(Place::Forest);

    let complained = broadcast.rtmp.complained();
    let told: Vec<_> = complained.lines().map(|line| line.split(" a").next().unwrap()).collect();
    assert_eq!(told.len(), 2, "once each: {complained}");
    assert!(complained.starts_with("off the air: ") && complained.contains("on the air again"));
    let recorded = first.len() + film(&recordings[1]).len();
    assert!(dropped > 0 && recorded as u64 <= sent, "{recorded} recorded, {sent} sent");
}

/// Takes five minutes: `cargo test --release --test pipelines -- --ignored --nocapture`.
#[test]
#[ignore = "takes five minutes"]
fn rtmp_is_on_the_air_for_five_minutes_with_three_restarts() {
    let _turn = turn();
    let mut broadcast = Broadcast::start(Place::Snow);
    let outages = [(60, 7, Place::Desert), (130, 12, Place::Forest), (210, 30, Place::Sea)];
    for (at, away, place) in outages {
        thread::sleep(Duration::from_secs(at).saturating_sub(broadcast.begun.elapsed()));
        let back = broadcast.restart(Duration::from_secs(away), place);
        eprintln!("{away} s away, {:.2} s until there is a stream again", back.as_secs_f64());
        assert!(back < SOON, "{back:?}");
    }
    thread::sleep(Duration::from_secs(300).saturating_sub(broadcast.begun.elapsed()));
    let [sent, dropped] = broadcast.interrupt();
    let made = (sent + dropped) as f64 / broadcast.begun.elapsed().as_secs_f64();
    eprintln!("{sent} sent, {dropped} dropped, {made:.2} made in a second");
    eprintln!("{}\n{:?}", broadcast.rtmp.complained(), broadcast.places);
    for (file, &(_, place)) in broadcast.server.recordings().iter().zip(&broadcast.places) {
        check_whole(file);
        let film = film(file);
        eprintln!("{} frames of {place:?} in {}", film.len(), file.display());
        film.check(place);
    }
    assert_eq!(broadcast.server.recordings().len(), 4);
    let (last, _) = broadcast.places[3];
    assert!(sent + dropped > last, "frames are numbered through: {last} of {sent} and {dropped}");
}
