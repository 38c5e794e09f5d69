//! Decodes video and judges what is on screen.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;

use crate::script::{PATIENCE, wait_until};

const WIDTH: usize = 192;
const HEIGHT: usize = 112;
pub const RATE: usize = 16;
/// Of a mean of 255: a frame below is black.
const BLACK: f64 = 8.0;
/// How far a channel of the ground may be from the place's own; what pocket makes after another place is
/// 20 away, and two places differ by 60 somewhere.
const TOLERANCE: f64 = 25.0;
/// Mean difference of pixels half a second apart, in half of all cases: moving things make 1.4 and more,
/// a still that is encoded again and again a hundredth.
const MOVEMENT: f64 = 0.5;
/// Frames a second that a receiver's corrections of the sender's clock add in two seconds: 0.13 of
/// MPEG-TS. Every fifth frame lost takes 3.
const RATE_TOLERANCE: f64 = 0.5;

/// Places that pocket shows reliably; what moves there is less certain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Desert,
    Snow,
    Forest,
    Sea,
    NightCity,
}

impl Place {
    const ALL: [Self; 5] = [Self::Desert, Self::Snow, Self::Forest, Self::Sea, Self::NightCity];

    pub fn prompt(self) -> &'static str {
        match self {
            Self::Desert => "a \"red\" ball in the desert",
            Self::Snow => "a blue cube in the snow",
            Self::Forest => "a star in the forest",
            Self::Sea => "a red ball over the sea",
            Self::NightCity => "a ring in the city at night",
        }
    }

    /// Median red, green and blue of the lower half of the place that pocket's world draws, without an
    /// object, which covers less than half of it.
    fn ground(self) -> [f64; 3] {
        match self {
            Self::Desert => [230.0, 168.0, 107.0],
            Self::Snow => [221.0, 231.0, 246.0],
            Self::Forest => [77.0, 122.0, 56.0],
            Self::Sea => [65.0, 140.0, 176.0],
            Self::NightCity => [32.0, 40.0, 72.0],
        }
    }

    fn of(seen: [f64; 3]) -> Option<Self> {
        let near = |place: &Self| {
            place.ground().iter().zip(seen).all(|(own, seen)| (own - seen).abs() < TOLERANCE)
        };
        Self::ALL.into_iter().find(near)
    }
}

/// Frames with their times.
#[derive(Debug, Default)]
pub struct Film {
    frames: Vec<Vec<u8>>,
    times: Vec<f64>,
}

impl Film {
    pub fn of_file(file: &Path) -> Self {
        let source = format!("filesrc location=\"{}\" ! decodebin", file.display());
        Self::play(&source, usize::MAX).unwrap()
    }

    /// So many frames of a live stream, whose server may still be on its way; fewer if it ends.
    pub fn of_stream(source: &str, enough: usize) -> Self {
        wait_until(source, || {
            Self::play(source, enough).ok().filter(|film| !film.frames.is_empty())
        })
    }

    /// What comes out of a decoder, until its end or until it is enough.
    fn play(source: &str, enough: usize) -> Result<Self, gst::Message> {
        gst::init().unwrap();
        let line = format!(
            "{source} ! videoconvert ! video/x-raw,format=RGB,width={WIDTH},height={HEIGHT} !
             fakesink name=sink signal-handoffs=true"
        );
        let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
        let film = Arc::new(Mutex::new(Self::default()));
        let seen = film.clone();
        let handoff = move |args: &[glib::Value]| {
            let sink = args[0].get::<gst::Element>().unwrap();
            if seen.lock().unwrap().add(&args[1].get().unwrap()) == enough {
                sink.post_message(gst::message::Application::new(gst::Structure::new_empty(
                    "enough",
                )))
                .unwrap();
            }
            None
        };
        pipeline.by_name("sink").unwrap().connect("handoff", false, handoff);
        let end = play_until_told(&pipeline);
        if end.type_() == gst::MessageType::Error {
            return Err(end);
        }
        let mut film = std::mem::take(&mut *film.lock().unwrap());
        film.frames.truncate(enough); // the sink goes on until it is told
        film.times.truncate(enough);
        Ok(film)
    }

    /// Takes a frame in and says how many there are.
    fn add(&mut self, buffer: &gst::Buffer) -> usize {
        self.frames.push(buffer.map_readable().unwrap().to_vec());
        self.times.push(buffer.pts().unwrap().nseconds() as f64 / 1e9);
        self.frames.len()
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// So many frames of its end: it may begin with a slate.
    pub fn last(mut self, count: usize) -> Self {
        let earlier = self.len().saturating_sub(count);
        self.frames.drain(..earlier);
        self.times.drain(..earlier);
        self
    }

    /// The place in some of the frames.
    pub fn place_in(&self, frames: Range<usize>) -> Option<Place> {
        Place::of(ground(&self.frames[frames]))
    }

    /// A video of a place as any way out of the element must bring it: right, light and moving.
    pub fn check(&self, place: Place) {
        let ground = ground(&self.frames);
        assert_eq!(Place::of(ground), Some(place), "{} frames, ground {ground:?}", self.len());
        self.frames.iter().for_each(|frame| assert!(mean(frame) > BLACK, "a frame is black"));
        let movement = self.movement();
        assert!(movement > MOVEMENT, "frames differ by {movement} in half a second");
        let rate = (self.len() - 1) as f64 / (self.times[self.len() - 1] - self.times[0]);
        assert!(
            (rate - RATE as f64).abs() < RATE_TOLERANCE,
            "{rate} frames a second: {:?}",
            self.times
        );
    }

    fn movement(&self) -> f64 {
        let later = self.frames.iter().skip(RATE / 2);
        let mut all: Vec<_> =
            self.frames.iter().zip(later).map(|(a, b)| difference(a, b)).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}

/// A stream that is looked at while it plays, as a player shows it.
#[derive(Debug)]
pub struct Watch {
    pipeline: gst::Pipeline,
    latest: Arc<Mutex<Option<Place>>>,
}

impl Watch {
    pub fn start(source: &str) -> Self {
        gst::init().unwrap();
        let line = format!(
            "{source} ! videoconvert ! video/x-raw,format=RGB,width={WIDTH},height={HEIGHT} !
             fakesink name=sink signal-handoffs=true sync=true"
        );
        let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
        let latest = Arc::new(Mutex::new(None));
        let seen = latest.clone();
        pipeline.by_name("sink").unwrap().connect("handoff", false, move |args| {
            let frame = args[1].get::<gst::Buffer>().unwrap().map_readable().unwrap().to_vec();
            *seen.lock().unwrap() = Place::of(ground(&[frame]));
            None
        });
        pipeline.set_state(gst::State::Playing).unwrap();
        Self { pipeline, latest }
    }

    /// How long it takes until that place is on screen.
    pub fn wait_for(&self, place: Place) -> Duration {
        let begun = Instant::now();
        wait_until(&format!("{place:?}"), || {
            (*self.latest.lock().unwrap() == Some(place)).then(|| begun.elapsed())
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.pipeline.set_state(gst::State::Null).ok();
    }
}

/// When the packets of a recording's `video` or `audio` are due, and which of them are key frames.
pub fn packets(file: &Path, stream: &str) -> Vec<(f64, bool)> {
    gst::init().unwrap();
    let line = format!(
        "filesrc location=\"{}\" ! flvdemux name=demux
         demux.{stream} ! fakesink name=sink signal-handoffs=true",
        file.display()
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let packets = Arc::new(Mutex::new(Vec::new()));
    let seen = packets.clone();
    pipeline.by_name("sink").unwrap().connect("handoff", false, move |args| {
        let buffer = args[1].get::<gst::Buffer>().unwrap();
        let is_key = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        seen.lock().unwrap().push((buffer.pts().unwrap().nseconds() as f64 / 1e9, is_key));
        None
    });
    let end = play_until_told(&pipeline);
    assert_eq!(end.type_(), gst::MessageType::Eos, "{}: {end:?}", file.display());
    std::mem::take(&mut *packets.lock().unwrap())
}

fn play_until_told(pipeline: &gst::Pipeline) -> gst::Message {
    pipeline.set_state(gst::State::Playing).ok();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error, gst::MessageType::Application];
    let patience = gst::ClockTime::from_seconds(PATIENCE.as_secs());
    let end = pipeline.bus().unwrap().timed_pop_filtered(patience, &kinds);
    pipeline.set_state(gst::State::Null).unwrap();
    end.unwrap_or_else(|| panic!("{PATIENCE:?} passed without an end"))
}

/// The place in the last whole frame of a file of pixels, to which somebody writes.
pub fn place_in_pixels(file: &Path) -> Option<Place> {
    let pixels = std::fs::read(file).ok()?;
    let last = pixels.chunks_exact(3 * WIDTH * HEIGHT).next_back()?;
    Place::of(ground(&[last.to_vec()]))
}

/// Median red, green and blue of lower halves.
fn ground(frames: &[Vec<u8>]) -> [f64; 3] {
    let mut counts = [[0usize; 256]; 3];
    for pixel in frames.iter().flat_map(|frame| frame[frame.len() / 2..].chunks(3)) {
        (0..3).for_each(|channel| counts[channel][usize::from(pixel[channel])] += 1);
    }
    counts.map(|counts| middle(&counts) as f64)
}

/// The value that half of those that are counted do not pass.
fn middle(counts: &[usize; 256]) -> usize {
    let half = counts.iter().sum::<usize>() / 2;
    let below = counts.iter().scan(0, |sum, count| {
        *sum += count;
        Some(*sum)
    });
    below.take_while(|sum| *sum <= half).count()
}

fn mean(frame: &[u8]) -> f64 {
    frame.iter().map(|&value| f64::from(value)).sum::<f64>() / frame.len() as f64
}

fn difference(a: &[u8], b: &[u8]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum();
    sum / a.len() as f64
}
