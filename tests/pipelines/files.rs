//! Scripts that write files, and the one that plays to a window.

use std::path::Path;
use std::process::Command;

use crate::look::{Film, Place, RATE};
use crate::script::{Running, run, script, turn, wait_until};

/// What gst-discoverer says of a file of pocket's frames.
fn check_format(file: &Path, codec: &str, frames: usize) {
    let said = check_streams(file, &[codec, "Width: 192", "Height: 112", "Frame rate: 16/1"]);
    let duration = said.lines().find_map(|line| line.trim().strip_prefix("Duration: 0:00:"));
    let seconds: f64 = duration.unwrap().parse().unwrap();
    let frame = 1.0 / RATE as f64;
    assert!((seconds - frames as f64 * frame).abs() < frame, "{frames} frames: {said}");
}

pub fn check_streams(file: &Path, all: &[&str]) -> String {
    let output = Command::new("gst-discoverer-1.0").arg(file).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    all.iter().for_each(|expected| assert!(said.contains(expected), "no {expected}: {said}"));
    said
}

/// A file is right in every respect that can be told.
fn check(file: &Path, codec: &str, frames: usize, place: Place) {
    check_format(file, codec, frames);
    let film = Film::of_file(file);
    assert_eq!(film.len(), frames, "{}", file.display());
    film.check(place);
}

#[test]
fn play_writes_a_file_where_there_is_no_display() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    // A folder that is called as a model is none.
    std::fs::create_dir(folder.path().join("pocket")).unwrap();
    let mut play = script("play.sh", &[Place::Desert.prompt(), "2"]);
    play.env_remove("OUT").env("TMPDIR", folder.path()).current_dir(folder.path());
    let file = run(play).line_after("no display: writing ");
    assert!(Path::new(&file).starts_with(folder.path()), "{file}");
    check(Path::new(&file), "H.264", 2 * RATE, Place::Desert);
}

#[test]
fn an_interrupted_file_plays() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("play.mp4");
    let mut play = script("play.sh", &[Place::Snow.prompt(), "1000"]);
    play.env("OUT", &file);
    let mut play = Running::start(play);
    wait_until("the first bytes of video", || {
        std::fs::metadata(&file).ok().filter(|file| file.len() > 10_000)
    });
    play.interrupt();
    play.succeeded();
    let film = Film::of_file(&file);
    check(&file, "H.264", film.len(), Place::Snow);
}

#[test]
fn record_writes_each_container() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("a film.mp4", "H.264", Place::Snow),
        ("a.mkv", "H.264", Place::NightCity),
        ("a.webm", "VP8", Place::Sea),
    ];
    for (name, codec, place) in cases {
        let file = folder.path().join(name);
        run(script("record.sh", &[place.prompt(), &file.display().to_string(), "2"]));
        check(&file, codec, 2 * RATE, place);
    }
}

#[test]
fn subtitles_are_the_prompts_of_a_story() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (story, file) = (folder.path().join("story.srt"), folder.path().join("story.mp4"));
    let text = format!(
        "1\n00:00:00,000 --> 00:00:01,000\n{}\n\n2\n00:00:01,000 --> 00:00:02,000\n{}\n\n",
        Place::Snow.prompt(),
        Place::Desert.prompt()
    );
    std::fs::write(&story, text).unwrap();
    let names = [story.display().to_string(), file.display().to_string()];
    run(script("story.sh", &[&names[0], &names[1], "4"]));
    check_format(&file, "H.264", 4 * RATE);
    let film = Film::of_file(&file);
    assert_eq!(film.len(), 4 * RATE);
    assert_eq!(film.place_in(0..RATE), Some(Place::Snow));
    assert_eq!(film.place_in(2 * RATE..4 * RATE), Some(Place::Desert));
}
