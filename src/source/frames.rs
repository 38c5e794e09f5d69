//! Frames on their way out: made, waited for until they are due, and put into buffers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_base::prelude::*;

use super::imp::{BlockCascadeSrc, CAT, lock};
use super::pace::Pace;
use super::settings::{StartupPolicy, UnderrunPolicy};
use super::stream::{Counters, Flush, LoadState};
use super::{FRAME_META, picture, slate};
use crate::generator::{Error, Frame, Generator};

/// The streaming thread's own.
#[derive(Debug, Default)]
pub struct Work {
    generator: Option<Generator>,
    /// A frame that a flush kept from leaving.
    pending: Option<Frame>,
    last: Option<Frame>,
    /// Why no further frame comes.
    failure: Option<Error>,
    /// Number of the next buffer: the frame's, plus those of buffers that are no new frames.
    pub(super) number: u64,
    discont: bool,
    /// No buffer left since a flush: downstream has no segment for a gap.
    is_flushed: bool,
    /// A frame of the model's was shown.
    has_begun: bool,
    /// The last number was late already: one message tells of all in a row.
    is_late: bool,
}

impl Work {
    /// A buffer shows this frame, and the next one has the next number.
    fn sent(&mut self, frame: Frame) {
        self.last = Some(frame);
        self.number += 1;
        self.is_flushed = false;
    }

    /// Does not wait for the layer that is being computed: whoever changes a state may not.
    pub(super) fn stop(self) {
        if let Some(generator) = self.generator {
            generator.leave();
        }
    }
}

/// What the coming buffer shows.
enum Picture {
    New(Frame),
    /// A slate, or a frame once more.
    Other(Frame),
}

impl BlockCascadeSrc {
    pub(super) fn make(&self, work: &mut Work) -> Result<gst::Buffer, gst::FlowError> {
        self.go_on_after_flush(work);
        let picture = if self.obj().is_live() {
            self.live_picture(work)?
        } else {
            Picture::New(self.next_frame(work)?)
        };
        let (Picture::New(frame) | Picture::Other(frame)) = &picture;
        match (self.buffer(work, frame), picture) {
            (Ok(buffer), Picture::New(frame)) => {
                self.shows(work, &frame);
                self.begins(work, &frame.prompt.text);
                work.sent(frame);
                Ok(buffer)
            }
            (Ok(buffer), Picture::Other(frame)) => {
                work.sent(frame);
                Ok(buffer)
            }
            // A flush from here on keeps the frame for later.
            (Err(error), Picture::New(frame)) => {
                work.pending = Some(frame);
                Err(error)
            }
            (Err(error), Picture::Other(frame)) => {
                work.last = Some(frame);
                Err(error)
            }
        }
    }

    /// A flush loses no frame, but the next one may have another time.
    fn go_on_after_flush(&self, work: &mut Work) {
        if lock(&self.wait).flushing {
            return; // this frame is not to leave, and may have another time than the next one
        }
        let (is_live, now) = (self.obj().is_live(), self.running_time());
        let mut stream = lock(&self.stream);
        let Some(stream) = stream.as_mut() else { return };
        let Some(flush) = stream.flushed.take() else { return };
        (work.discont, work.is_flushed) = (true, true);
        self.failed.store(false, Ordering::SeqCst); // whoever flushes may have mended what it was
        if flush == Flush::Reset {
            let start = if is_live { now } else { gst::ClockTime::ZERO };
            stream.pace.anchor(work.number, start);
        }
    }

    /// With the model's first frame: it is known now which number it has.
    fn begins(&self, work: &mut Work, prompt: &str) {
        if std::mem::replace(&mut work.has_begun, true) {
            return;
        }
        if self.obj().is_live() {
            self.time_prompts();
        }
        let mut tags = gst::TagList::new();
        let fields = tags.make_mut();
        let application = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
        fields.add::<gst::tags::ApplicationName>(&application, gst::TagMergeMode::Replace);
        if !prompt.is_empty() {
            fields.add::<gst::tags::Title>(&prompt, gst::TagMergeMode::Replace);
        }
        self.parent_send_event(gst::event::Tag::new(tags));
    }

    fn next_frame(&self, work: &mut Work) -> Result<Frame, gst::FlowError> {
        if let Some(frame) = work.pending.take() {
            return Ok(frame);
        }
        if let Some(error) = &work.failure {
            return Err(self.fail(error)); // a flush does not mend it
        }
        match self.generator(work)?.next_frame() {
            Ok(frame) => frame.ok_or(gst::FlowError::Eos),
            Err(error) => {
                let flow = self.fail(&error);
                work.failure = Some(error).filter(|error| !matches!(error, Error::Cancelled));
                Err(flow)
            }
        }
    }

    /// Waits for the networks if there is no generator yet.
    fn generator<'a>(&self, work: &'a mut Work) -> Result<&'a mut Generator, gst::FlowError> {
        if work.generator.is_none() {
            let (config, controls, loading) = {
                let stream = lock(&self.stream);
                let stream = stream.as_ref().ok_or(gst::FlowError::Flushing)?;
                (stream.config.clone(), stream.controls.clone(), stream.loading.clone())
            };
            let parts = loading.wait().map_err(|error| self.fail(&error))?;
            let generator = Generator::from_parts(parts, &config, controls);
            let generator = generator.map_err(|error| self.fail(&error))?;
            if let Some(stream) = lock(&self.stream).as_mut() {
                stream.devices = generator.devices();
            }
            work.generator = Some(generator);
        }
        work.generator.as_mut().ok_or(gst::FlowError::Error)
    }

    fn buffer(&self, work: &mut Work, frame: &Frame) -> Result<gst::Buffer, gst::FlowError> {
        let (info, pace, seed) = {
            let stream = lock(&self.stream);
            let stream = stream.as_ref().ok_or(gst::FlowError::Flushing)?;
            let info = stream.info.clone().ok_or(gst::FlowError::NotNegotiated)?;
            (info, stream.pace, stream.config.seed)
        };
        let pool = self.obj().buffer_pool().ok_or(gst::FlowError::NotNegotiated)?;
        let mut buffer = pool.acquire_buffer(None)?;
        let writable = buffer.make_mut();
        if let Err(reason) = picture::write(frame, writable, &info) {
            gst::element_imp_error!(self, gst::StreamError::Format, ("{reason}"));
            return Err(gst::FlowError::Error);
        }
        writable.set_pts(pace.time(work.number));
        writable.set_duration(pace.duration(work.number));
        writable.set_offset(work.number);
        writable.set_offset_end(work.number + 1);
        if std::mem::take(&mut work.discont) {
            writable.set_flags(gst::BufferFlags::DISCONT | gst::BufferFlags::RESYNC);
        }
        if let Ok(mut meta) = gst::meta::CustomMeta::add(writable, FRAME_META) {
            let fields = meta.mut_structure();
            fields.set("frame", frame.index);
            fields.set("block", frame.block);
            fields.set("prompt-id", frame.prompt.id.0);
            fields.set("seed", seed);
        }
        Ok(buffer)
    }
}

/// Live: each number has its time.
impl BlockCascadeSrc {
    /// The picture of the coming number, at the time when it is due.
    fn live_picture(&self, work: &mut Work) -> Result<Picture, gst::FlowError> {
        let startup = lock(&self.settings).startup_policy;
        if startup == StartupPolicy::Slate && !work.has_begun && !self.can_begin(work)? {
            return self.slate(work).map(Picture::Other);
        }
        while work.number > 0 {
            let policy = lock(&self.settings).underrun_policy; // it may change while frames are late
            if policy == UnderrunPolicy::Resync || !self.is_late(work)? {
                break;
            }
            self.tell_underrun(work, policy);
            if policy == UnderrunPolicy::Repeat
                && let Some(last) = work.last.take()
            {
                return self.again(work, last);
            }
            if work.is_flushed {
                break;
            }
            self.push_gap(work);
        }
        let frame = self.next_frame(work)?;
        match self.wait_playing().and_then(|()| self.wait_due(work)) {
            Ok(()) => Ok(Picture::New(frame)),
            Err(flushing) => {
                work.pending = Some(frame);
                Err(flushing)
            }
        }
    }

    /// In PAUSED times go on that will not have passed in PLAYING: nothing is due before.
    fn wait_playing(&self) -> Result<(), gst::FlowError> {
        self.obj().wait_playing().map(|_| ())
    }

    /// Whether the coming number is over without a frame, while it plays.
    fn is_late(&self, work: &mut Work) -> Result<bool, gst::FlowError> {
        loop {
            self.wait_playing()?;
            if self.is_in_time(work)? {
                return Ok(false);
            }
            if self.obj().current_state() == gst::State::Playing {
                return Ok(true);
            }
        }
    }

    /// Whether the first frame comes before its number is over.
    fn can_begin(&self, work: &mut Work) -> Result<bool, gst::FlowError> {
        let load_state = lock(&self.stream).as_ref().map(|stream| stream.load_state);
        if let Some(LoadState::Percent(_)) = load_state {
            return Ok(false);
        }
        self.generator(work)?;
        Ok(work.number > 0 && !self.is_late(work)?)
    }

    /// What stands for frames that are still to come.
    fn slate(&self, work: &mut Work) -> Result<Frame, gst::FlowError> {
        self.wait_playing()?;
        self.wait_due(work)?;
        let (size, load_state) = {
            let mut stream = lock(&self.stream);
            let stream = stream.as_mut().ok_or(gst::FlowError::Flushing)?;
            stream.counters.slates += 1;
            (stream.format().size, stream.load_state)
        };
        let percent = match load_state {
            LoadState::Percent(percent) => percent,
            _ => 100,
        };
        Ok(slate::frame(size, percent))
    }

    /// The last frame, when another one was due.
    fn again(&self, work: &mut Work, last: Frame) -> Result<Picture, gst::FlowError> {
        let due = self.pace().time(work.number);
        if let Err(flushing) = self.wait_for(work, due) {
            work.last = Some(last);
            return Err(flushing);
        }
        self.count(|counters| counters.repeated += 1);
        Ok(Picture::Other(last))
    }

    /// Whether a frame comes before its number is over.
    fn is_in_time(&self, work: &mut Work) -> Result<bool, gst::FlowError> {
        if work.pending.is_some() {
            return Ok(true);
        }
        let due = self.pace().time(work.number);
        let patience = Duration::from(due.saturating_sub(self.running_time()));
        let is_in_time = self.generator(work)?.wait_frame(patience);
        let is_in_time = is_in_time.map_err(|error| self.fail(&error))?;
        work.is_late &= !is_in_time;
        Ok(is_in_time)
    }

    /// When the coming number is due; what follows is counted from now if that is long past.
    fn due(&self, work: &mut Work) -> gst::ClockTime {
        let now = self.running_time();
        let pace = self.pace();
        let due = pace.time(work.number);
        if work.number == 0 {
            return self.anchor(work, now);
        }
        if self.has_turned_back(work, now) {
            return self.anchor_anew(work, now);
        }
        if now <= due + pace.duration(work.number) {
            work.is_late = false;
            return due;
        }
        self.tell_underrun(work, UnderrunPolicy::Resync);
        self.anchor_anew(work, now)
    }

    /// The coming number is due now, and what follows is counted from it.
    fn anchor(&self, work: &Work, now: gst::ClockTime) -> gst::ClockTime {
        if let Some(stream) = lock(&self.stream).as_mut() {
            stream.pace.anchor(work.number, now);
        }
        now
    }

    /// Counts an underrun, and says so at the first of several in a row.
    fn tell_underrun(&self, work: &mut Work, policy: UnderrunPolicy) {
        self.count(|counters| counters.underruns += 1);
        if std::mem::replace(&mut work.is_late, true) {
            return;
        }
        let due = self.pace().time(work.number);
        let late = self.running_time().saturating_sub(due);
        gst::info!(CAT, imp = self, "buffer {} is {late} late", work.number);
        let policy = policy.to_value();
        let policy = glib::EnumValue::from_value(&policy).map(|(_, value)| value.nick().to_owned());
        self.post_element_message(
            gst::Structure::builder("blockcascade/underrun")
                .field("offset", work.number)
                .field("pts", due)
                .field("late", late)
                .field_if_some("policy", policy)
                .build(),
        );
    }

    fn push_gap(&self, work: &mut Work) {
        let pace = self.pace();
        let gap = gst::event::Gap::builder(pace.time(work.number));
        let gap = gap.duration(pace.duration(work.number)).build();
        self.obj().src_pad().push_event(gap);
        self.count(|counters| counters.gaps += 1);
        work.number += 1;
        work.discont = true;
    }

    /// Whether running time went back, as where a pipeline starts its time anew without a flush of this element: by
    /// itself, a number is due at most a frame's duration from now.
    fn has_turned_back(&self, work: &Work, now: gst::ClockTime) -> bool {
        let pace = self.pace();
        pace.time(work.number) > now + 2 * pace.duration(work.number)
    }

    fn anchor_anew(&self, work: &mut Work, now: gst::ClockTime) -> gst::ClockTime {
        gst::info!(
            CAT,
            imp = self,
            "{} was due at {}, and is at {now}",
            work.number,
            self.pace().time(work.number)
        );
        work.discont = true;
        self.anchor(work, now)
    }

    fn wait_due(&self, work: &mut Work) -> Result<(), gst::FlowError> {
        let due = self.due(work);
        self.wait_for(work, due)
    }

    /// A pause does not end the wait for a time, as of GStreamer 1.22, and what is made in one would be
    /// lost in a flush. When it is over, base time is another one, and so may the clock be.
    fn wait_for(&self, work: &mut Work, due: gst::ClockTime) -> Result<(), gst::FlowError> {
        loop {
            self.wait_until(due)?;
            self.wait_playing()?;
            match self.obj().current_running_time() {
                Some(now) if now < due && self.has_turned_back(work, now) => {
                    self.anchor_anew(work, now);
                    return Ok(());
                }
                Some(now) if now < due => {}
                _ => return Ok(()),
            }
        }
    }

    fn wait_until(&self, due: gst::ClockTime) -> Result<(), gst::FlowError> {
        let id = {
            let mut wait = lock(&self.wait);
            if wait.flushing {
                return Err(gst::FlowError::Flushing);
            }
            let (clock, base) = (self.obj().clock(), self.obj().base_time());
            let (Some(clock), Some(base)) = (clock, base) else { return Ok(()) };
            let id = clock.new_single_shot_id(base + due);
            (wait.id, wait.is_anew) = (Some(id.clone()), false);
            id
        };
        let (result, _) = id.wait();
        let mut wait = lock(&self.wait);
        wait.id = None;
        match result {
            Err(gst::ClockError::Unscheduled) if !wait.is_anew => Err(gst::FlowError::Flushing),
            _ => Ok(()),
        }
    }

    /// Before it plays: with the clock and the base time that it has now, for a clock that was lost in the
    /// pause would be waited for without end.
    pub(super) fn wait_anew(&self) {
        let mut wait = lock(&self.wait);
        if let Some(id) = wait.id.take() {
            wait.is_anew = true;
            id.unschedule();
        }
    }

    fn pace(&self) -> Pace {
        let pace = lock(&self.stream).as_ref().map(|stream| stream.pace);
        pace.unwrap_or_else(|| Pace::new(gst::Fraction::new(1, 1)))
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        if let Some(stream) = lock(&self.stream).as_mut() {
            change(&mut stream.counters);
        }
    }

    pub(super) fn running_time(&self) -> gst::ClockTime {
        self.obj().current_running_time().unwrap_or_default()
    }
}
