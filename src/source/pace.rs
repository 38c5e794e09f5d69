//! When each frame is due.

use gstreamer as gst;
use gstreamer::prelude::*;

/// Times of frames, counted from an anchor so that they never drift.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rate: gst::Fraction,
    /// A frame and the running time at which it is shown.
    anchor: (u64, gst::ClockTime),
}

impl Pace {
    /// Frame 0 is shown at running time 0.
    pub fn new(rate: gst::Fraction) -> Self {
        Self { rate, anchor: (0, gst::ClockTime::ZERO) }
    }

    /// That frame is shown then, and those after it follow.
    pub fn anchor(&mut self, frame: u64, time: gst::ClockTime) {
        self.anchor = (frame, time);
    }

    /// From that frame on, frames come at another rate.
    pub fn change(&mut self, rate: gst::Fraction, frame: u64) {
        if rate != self.rate {
            self.anchor = (frame, self.time(frame));
            self.rate = rate;
        }
    }

    /// Running time of a frame, which does not come before the anchor.
    pub fn time(&self, frame: u64) -> gst::ClockTime {
        let (first, start) = self.anchor;
        start + self.span(frame.saturating_sub(first))
    }

    /// How long a frame is shown: the next one's time less its own.
    pub fn duration(&self, frame: u64) -> gst::ClockTime {
        self.time(frame + 1).saturating_sub(self.time(frame))
    }

    /// The first frame that is not before a time.
    pub fn frame_from(&self, time: gst::ClockTime) -> u64 {
        let (first, start) = self.anchor;
        let (numer, denom) = self.parts();
        let since = time.saturating_sub(start).nseconds();
        let frames = since.mul_div_ceil(numer, denom * gst::ClockTime::SECOND.nseconds());
        first.saturating_add(frames.unwrap_or(u64::MAX))
    }

    /// How long so many frames are.
    pub fn span(&self, frames: u64) -> gst::ClockTime {
        let (numer, denom) = self.parts();
        let second = gst::ClockTime::SECOND.nseconds();
        let time = frames.mul_div_floor(denom * second, numer);
        gst::ClockTime::from_nseconds(time.unwrap_or(u64::MAX - 1))
    }

    fn parts(&self) -> (u64, u64) {
        (self.rate.numer().max(1) as u64, self.rate.denom().max(1) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_do_not_drift() {
        let pace = Pace::new(gst::Fraction::new(30_000, 1_001));
        assert_eq!(pace.time(30_000), 1_001 * gst::ClockTime::SECOND);
        let sum: u64 = (0..30_000).map(|frame| pace.duration(frame).nseconds()).sum();
        assert_eq!(pace.time(30_000).nseconds(), sum);
    }

    #[test]
    fn a_new_rate_starts_where_the_old_one_ends() {
        let mut pace = Pace::new(gst::Fraction::new(16, 1));
        pace.change(gst::Fraction::new(32, 1), 16);
        assert_eq!(pace.time(16), gst::ClockTime::SECOND);
        assert_eq!(pace.time(48), 2 * gst::ClockTime::SECOND);
    }

    #[test]
    fn frames_are_found_by_their_time() {
        let mut pace = Pace::new(gst::Fraction::new(16, 1));
        pace.anchor(5, gst::ClockTime::from_seconds(2));
        for frame in 5..200 {
            assert_eq!(pace.frame_from(pace.time(frame)), frame);
            assert_eq!(pace.frame_from(pace.time(frame) + gst::ClockTime::NSECOND), frame + 1);
        }
        assert_eq!(pace.frame_from(gst::ClockTime::ZERO), 5);
    }
}
