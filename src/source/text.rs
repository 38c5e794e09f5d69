//! The text pad: what comes in on it, and how far the text is known.

use gstreamer as gst;

use super::prompts::Request;

/// Name of the pad.
pub const PAD: &str = "prompt";

/// Timed text as it comes in.
#[derive(Debug, Default)]
pub struct Track {
    is_linked: bool,
    has_ended: bool,
    is_markup: bool,
    segment: gst::FormattedSegment<gst::ClockTime>,
    /// Running time up to which, and including which, all text is known.
    known: Option<gst::ClockTime>,
}

/// How much of a stream can be made without text that is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    All,
    /// What is shown at this running time, or before.
    Until(gst::ClockTime),
    Nothing,
}

impl Track {
    /// A pad is there, or it is gone.
    pub fn link(&mut self, is_linked: bool) {
        *self = Self { is_linked, ..Self::default() };
    }

    /// Another stream starts, with the text from its beginning.
    pub fn restart(&mut self) {
        (self.has_ended, self.known) = (false, None);
    }

    pub fn known(&self) -> Known {
        match self.known {
            _ if !self.is_linked || self.has_ended => Known::All,
            Some(time) => Known::Until(time),
            None => Known::Nothing,
        }
    }

    /// When a buffer's text is for, if it says so.
    pub fn time(&self, buffer: &gst::BufferRef) -> Option<gst::ClockTime> {
        self.segment.to_running_time(buffer.pts()?)
    }

    /// The prompt in a buffer, if there is one; why not, if it is no text.
    pub fn prompt(&self, buffer: &gst::BufferRef) -> Result<Option<Request>, String> {
        let map = buffer.map_readable().map_err(|error| error.to_string())?;
        let text = std::str::from_utf8(&map).map_err(|error| format!("no UTF-8: {error}"))?;
        let text = if self.is_markup { without_markup(text) } else { text.into() };
        let text = text.trim_end_matches(['\n', '\r', '\0']);
        if text.is_empty() {
            return Ok(None);
        }
        if text.contains('\0') {
            return Err("got a NUL inside a text, expected none".into());
        }
        Ok(Some(Request { running_time: self.time(buffer), ..Request::new(text)? }))
    }

    /// What an event says of the text.
    pub fn event(&mut self, event: &gst::EventRef) {
        match event.view() {
            gst::EventView::Caps(caps) => {
                let fields = caps.caps().structure(0);
                let format = fields.and_then(|fields| fields.get::<&str>("format").ok());
                self.is_markup = format == Some("pango-markup");
            }
            gst::EventView::Segment(segment) => {
                let time = segment.segment().downcast_ref::<gst::ClockTime>().cloned();
                self.segment = time.unwrap_or_default();
            }
            gst::EventView::Gap(gap) => {
                let (start, duration) = gap.get();
                // What comes at its very end is not a part of it.
                let before =
                    |length: gst::ClockTime| length.saturating_sub(gst::ClockTime::NSECOND);
                let last = start.saturating_add(before(duration.unwrap_or_default()));
                self.advance(self.segment.to_running_time(last));
            }
            gst::EventView::StreamStart(_) => self.has_ended = false,
            gst::EventView::Eos(_) => self.has_ended = true,
            gst::EventView::FlushStop(_) => self.restart(),
            _ => {}
        }
    }

    /// All text is known up to a time, and what is for that time, too.
    pub fn advance(&mut self, time: Option<gst::ClockTime>) {
        self.known = self.known.max(time);
    }
}

/// Text as it reads: without tags, entities resolved.
fn without_markup(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, tag)) = rest.split_once('<') {
        plain.push_str(before);
        rest = tag.split_once('>').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    htmlize::unescape(plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_segment() {
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_start(gst::ClockTime::from_seconds(10));
        segment.set_base(gst::ClockTime::from_seconds(2));
        let mut track = Track::default();
        track.event(&gst::event::Segment::new(&segment));
        let time = |seconds| {
            let prompt = track.prompt(&buffer(b"a star", Some(seconds))).unwrap();
            prompt.unwrap().running_time
        };
        assert_eq!(time(11), Some(gst::ClockTime::from_seconds(3)));
        assert_eq!(time(5), None, "before the segment");
    }

    fn buffer(text: &[u8], seconds: Option<u64>) -> gst::Buffer {
        let mut buffer = gst::Buffer::from_slice(text.to_vec());
        buffer.get_mut().unwrap().set_pts(seconds.map(gst::ClockTime::from_seconds));
        buffer
    }

    fn track() -> Track {
        gst::init().unwrap();
        let mut track = Track::default();
        track.link(true);
        track.event(&gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
        track
    }

    #[test]
    fn text_is_known_as_far_as_it_came() {
        let mut track = track();
        assert_eq!(track.known(), Known::Nothing);
        let seconds = gst::ClockTime::from_seconds;
        track.advance(track.time(&buffer(b"a ball\n", Some(2))));
        assert_eq!(track.known(), Known::Until(seconds(2)));
        track.event(&gst::event::Gap::new(seconds(3), None));
        assert_eq!(track.known(), Known::Until(seconds(3)));
        track.event(&gst::event::Gap::new(seconds(3), seconds(2)));
        assert_eq!(track.known(), Known::Until(seconds(5) - gst::ClockTime::NSECOND));
        track.event(&gst::event::Eos::new());
        assert_eq!(track.known(), Known::All);
        track.event(&gst::event::StreamStart::new("another"));
        assert_eq!(track.known(), Known::Until(seconds(5) - gst::ClockTime::NSECOND));
        track.restart();
        assert_eq!(track.known(), Known::Nothing);
        track.link(false);
        assert_eq!(track.known(), Known::All);
    }

    #[test]
    fn a_buffer_is_a_prompt_without_its_newline() {
        let track = track();
        let request = track.prompt(&buffer(b"a ball\r\n", Some(2))).unwrap().unwrap();
        assert_eq!(
            (request.text.as_str(), request.running_time),
            ("a ball", Some(gst::ClockTime::from_seconds(2)))
        );
        assert_eq!(track.prompt(&buffer(b"\n", None)), Ok(None));
        assert!(track.prompt(&buffer(b"\xff\xfe", None)).unwrap_err().contains("no UTF-8"));
        assert!(track.prompt(&buffer(&[b'x'; 1 << 20], None)).is_err());
    }

    #[test]
    fn markup_is_read_as_text() {
        let mut track = track();
        let caps = gst::Caps::builder("text/x-raw").field("format", "pango-markup").build();
        track.event(&gst::event::Caps::new(&caps));
        let request = track.prompt(&buffer(b"<i>a <b>cat</b></i> &amp; dog <", None)).unwrap();
        assert_eq!(request.unwrap().text, "a cat & dog ");
    }
}
