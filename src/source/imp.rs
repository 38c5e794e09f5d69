use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use glib::subclass::Signal;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_base as gst_base;
use gstreamer_base::prelude::*;
use gstreamer_base::subclass::base_src::CreateSuccess;
use gstreamer_base::subclass::prelude::*;
use gstreamer_video as gst_video;
use once_cell::sync::Lazy;

use super::frames::Work;
use super::properties::{self, Property};
use super::settings::Settings;
use super::stream::{Flush, Stream};
use super::text::{self, Track};
use super::{caps, failure, prompting};
use crate::generator::{Error, FrameSize, Loading};

pub(super) static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    let text = Some("Block-causal video diffusion");
    gst::DebugCategory::new("blockcascadesrc", gst::DebugColorFlags::empty(), text)
});

/// The element: what the user asked for, what the stream is doing, and what blocks its thread.
#[derive(Debug, Default)]
pub struct BlockCascadeSrc {
    pub(super) settings: Mutex<Settings>,
    /// From start to stop.
    pub(super) stream: Mutex<Option<Stream>>,
    /// The streaming thread's own; out of its place while a frame is made.
    pub(super) work: Mutex<Work>,
    /// A hold on the networks, from start, or READY with `preload`, to NULL.
    pub(super) networks: Mutex<Option<Arc<Loading>>>,
    pub(super) wait: Mutex<ClockWait>,
    pub(super) text: Mutex<Track>,
    /// An error was posted: the base class's own about the same is not.
    pub(super) failed: AtomicBool,
}

/// What the streaming thread waits for.
#[derive(Debug, Default)]
pub struct ClockWait {
    pub(super) id: Option<gst::SingleShotClockId>,
    pub(super) flushing: bool,
    /// What ended the last wait was no flush: it begins again, with another clock it may be.
    pub(super) is_anew: bool,
}

#[glib::object_subclass]
impl ObjectSubclass for BlockCascadeSrc {
    const NAME: &'static str = "GstBlockCascadeSrc";
    type Type = super::BlockCascadeSrc;
    type ParentType = gst_base::PushSrc;
    type Interfaces = (gst::Preset,);
}

impl ObjectImpl for BlockCascadeSrc {
    fn properties() -> &'static [glib::ParamSpec] {
        static SPECS: Lazy<Vec<glib::ParamSpec>> = Lazy::new(properties::specs);
        &SPECS
    }

    fn signals() -> &'static [Signal] {
        static SIGNALS: Lazy<Vec<Signal>> = Lazy::new(|| vec![prompting::set_prompt_signal()]);
        &SIGNALS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, spec: &glib::ParamSpec) {
        let Some(property) = Property::named(spec.name()) else { return };
        if spec.name() == "prompt" {
            return self.set_prompt_property(property, value);
        }
        property.set(&mut lock(&self.settings), value);
    }

    fn property(&self, _id: usize, spec: &glib::ParamSpec) -> glib::Value {
        match (Property::named(spec.name()), spec.name()) {
            (Some(property), _) => property.get(&lock(&self.settings)),
            (None, "current-prompt") => {
                lock(&self.stream).as_ref().and_then(|s| s.current_prompt.clone()).to_value()
            }
            (None, _) => self.stats().to_value(),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        self.obj().set_format(gst::Format::Time);
    }
}

impl GstObjectImpl for BlockCascadeSrc {}
impl PresetImpl for BlockCascadeSrc {}

impl ElementImpl for BlockCascadeSrc {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: Lazy<gst::subclass::ElementMetadata> = Lazy::new(|| {
            gst::subclass::ElementMetadata::new(
                "Block Cascade source",
                "Source/Video",
                "Turns prompts into live video by block-causal diffusion",
                "The gst-plugin-blockcascade authors",
            )
        });
        Some(&*METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: Lazy<Vec<gst::PadTemplate>> = Lazy::new(|| {
            let (always, request) = (gst::PadPresence::Always, gst::PadPresence::Request);
            let (src, sink) = (gst::PadDirection::Src, gst::PadDirection::Sink);
            let frames = gst::PadTemplate::new("src", src, always, &caps::template());
            let prompts = gst::PadTemplate::new(text::PAD, sink, request, &caps::text());
            [frames, prompts]
                .map(|template| {
                    template.expect("a name, and caps that are fixed or ranges, make a template")
                })
                .to_vec()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        match transition {
            gst::StateChange::NullToReady => self.get_ready()?,
            gst::StateChange::ReadyToPaused => {
                let is_live = lock(&self.settings).is_live;
                self.obj().set_live(is_live);
            }
            gst::StateChange::PausedToPlaying => self.wait_anew(),
            _ => {}
        }
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            self.let_go();
        }
        Ok(success)
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        _name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        let element = self.obj();
        if element.static_pad(text::PAD).is_some() {
            gst::warning!(CAT, imp = self, "there is one text pad, and it is in use");
            return None;
        }
        let pad = self.text_pad(template);
        lock(&self.text).link(true); // before the first text comes
        self.watch_links(&pad);
        let is_running = element.current_state() > gst::State::Ready;
        if is_running || element.pending_state() >= gst::State::Paused {
            let _ = pad.set_active(true); // a pad that is not is refused by a warning
        }
        element.add_pad(&pad).ok()?;
        self.hold_blocks();
        Some(pad)
    }

    fn release_pad(&self, pad: &gst::Pad) {
        let _ = pad.set_active(false); // it is going away
        let _ = self.obj().remove_pad(pad);
        lock(&self.text).link(false);
        self.hold_blocks();
    }

    /// The base class would lose events that an application sends here, and seek without asking whether it may.
    fn send_event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::Seek {
            return false;
        }
        self.note_flush(&event);
        self.prompt_event(&event).unwrap_or_else(|| self.parent_send_event(event))
    }

    /// Of one failure there is one message, the first.
    fn post_message(&self, message: gst::Message) -> bool {
        let is_error = message.type_() == gst::MessageType::Error;
        if is_error && self.failed.swap(true, Ordering::SeqCst) {
            gst::debug!(CAT, imp = self, "not posted: {message:?}");
            return true;
        }
        self.parent_post_message(message)
    }
}

impl BaseSrcImpl for BlockCascadeSrc {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        self.failed.store(false, Ordering::SeqCst);
        let settings = lock(&self.settings).clone(); // not locked while files are looked at
        let config = settings.config().map_err(to_message)?;
        gst::info!(CAT, imp = self, "{} with seed {}", config.model.name, config.seed);
        let networks = self.hold_networks(&config).map_err(to_message)?;
        let is_live = self.obj().is_live();
        let stream = Stream::new(config, networks, is_live).map_err(to_message)?;
        *lock(&self.work) = Work::default();
        lock(&self.text).restart();
        *lock(&self.stream) = Some(stream);
        self.ask_if_new(&settings.prompt);
        self.watch_loading();
        self.hold_blocks();
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let work = std::mem::take(&mut *lock(&self.work));
        work.stop();
        let Some(mut stream) = lock(&self.stream).take() else { return Ok(()) };
        if stream.is_loading() {
            self.cancel_loading(&stream);
        }
        let answers = stream.close();
        self.post_answers(&answers, &[]);
        if stream.current_prompt.is_some() {
            self.obj().notify("current-prompt"); // nothing is shown any more
        }
        Ok(())
    }

    fn is_seekable(&self) -> bool {
        false
    }

    fn caps(&self, filter: Option<&gst::Caps>) -> Option<gst::Caps> {
        let mut caps = self.obj().src_pad().pad_template_caps();
        if let Some(size) = self.settled_size() {
            caps = caps::of_size(caps, size);
        }
        Some(match filter {
            Some(filter) => filter.intersect_with_mode(&caps, gst::CapsIntersectMode::First),
            None => caps,
        })
    }

    fn fixate(&self, caps: gst::Caps) -> gst::Caps {
        let Some(format) = lock(&self.stream).as_ref().map(Stream::format) else {
            return self.parent_fixate(caps);
        };
        self.parent_fixate(caps::fixated(caps, format))
    }

    /// The base class alone would only say that something is not negotiated.
    fn negotiate(&self) -> Result<(), gst::LoggableError> {
        self.parent_negotiate().inspect_err(|_| self.explain_negotiation())
    }

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = gst_video::VideoInfo::from_caps(caps)
            .map_err(|_| gst::loggable_error!(CAT, "no video in {caps}"))?;
        gst::debug!(CAT, imp = self, "{caps}");
        let number = lock(&self.work).number; // caps change between frames
        if let Some(stream) = lock(&self.stream).as_mut() {
            stream.config.size = Some(caps::size(&info));
            stream.pace.change(info.fps(), number);
            stream.info = Some(info);
        }
        if !self.obj().is_live() {
            self.time_prompts(); // a live stream's times start with its first frame
        }
        self.hold_blocks();
        let latency = gst::message::Latency::builder().src(&*self.obj()).build();
        let _ = self.obj().post_message(latency); // false only without a bus
        Ok(())
    }

    fn decide_allocation(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        let (caps, _) = query.get_owned();
        let info = caps.as_ref().and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok());
        let info = info.ok_or_else(|| gst::loggable_error!(CAT, "allocation without caps"))?;
        let offered = query.allocation_pools().next();
        let (pool, size, min, max) = offered.unwrap_or((None, 0, 0, 0));
        let size = size.max(u32::try_from(info.size()).unwrap_or(u32::MAX));
        let pool = pool.unwrap_or_else(|| gst_video::VideoBufferPool::new().upcast());
        let mut config = pool.config();
        config.set_params(caps.as_ref(), size, min, max);
        if query.find_allocation_meta::<gst_video::VideoMeta>().is_some() {
            config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
        }
        if let Err(error) = pool.set_config(config) {
            gst::debug!(
                CAT,
                imp = self,
                "{pool:?} wants it otherwise, the base class copes: {error}"
            );
            return self.parent_decide_allocation(query);
        }
        if query.allocation_pools().next().is_some() {
            query.set_nth_allocation_pool(0, Some(&pool), size, min, max);
        } else {
            query.add_allocation_pool(Some(&pool), size, min, max);
        }
        self.parent_decide_allocation(query)
    }

    fn query(&self, query: &mut gst::QueryRef) -> bool {
        match query.view_mut() {
            gst::QueryViewMut::Latency(query) => {
                let Some(latency) = self.frame_duration() else { return false };
                query.set(self.obj().is_live(), latency, gst::ClockTime::NONE);
                true
            }
            gst::QueryViewMut::Duration(query) if query.format() == gst::Format::Time => {
                let Some(duration) = self.duration() else {
                    return BaseSrcImplExt::parent_query(self, query); // not known
                };
                query.set(duration);
                true
            }
            _ => BaseSrcImplExt::parent_query(self, query),
        }
    }

    fn event(&self, event: &gst::Event) -> bool {
        self.note_flush(event);
        self.prompt_event(event).unwrap_or_else(|| self.parent_event(event))
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        let mut wait = lock(&self.wait);
        (wait.flushing, wait.is_anew) = (true, false);
        if let Some(id) = wait.id.take() {
            id.unschedule();
        }
        drop(wait);
        if let Some(stream) = lock(&self.stream).as_ref() {
            stream.controls.wake();
            stream.loading.wake();
        }
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        lock(&self.wait).flushing = false;
        if let Some(stream) = lock(&self.stream).as_ref() {
            stream.controls.resume();
            stream.loading.resume();
        }
        Ok(())
    }
}

impl PushSrcImpl for BlockCascadeSrc {
    fn create(&self, _: Option<&mut gst::BufferRef>) -> Result<CreateSuccess, gst::FlowError> {
        let mut work = std::mem::take(&mut *lock(&self.work));
        let buffer = self.make(&mut work);
        *lock(&self.work) = work;
        buffer.map(CreateSuccess::NewBuffer)
    }
}

/// What downstream and queries ask.
impl BlockCascadeSrc {
    fn explain_negotiation(&self) {
        let element = self.obj();
        let (pad, own) = (element.src_pad(), self.caps(None).unwrap_or_else(caps::template));
        let accepted = pad.peer_query_caps(None);
        if pad.pad_flags().contains(gst::PadFlags::FLUSHING) || accepted.can_intersect(&own) {
            return;
        }
        gst::element_imp_error!(
            self,
            gst::CoreError::Negotiation,
            ("downstream accepts {accepted}, expected some of {own}")
        );
    }

    /// Nobody sends text to a pad that was linked and is not: no block waits for it then.
    fn watch_links(&self, pad: &gst::Pad) {
        let watch = |is_linked| {
            let element = self.obj().downgrade();
            move |_: &gst::Pad, _: &gst::Pad| {
                if let Some(element) = element.upgrade() {
                    lock(&element.imp().text).link(is_linked);
                    element.imp().hold_blocks();
                }
            }
        };
        pad.connect_linked(watch(true));
        pad.connect_unlinked(watch(false));
    }

    /// After a flush that starts time anew, so do the frames' times.
    fn note_flush(&self, event: &gst::Event) {
        let gst::EventView::FlushStop(flush) = event.view() else { return };
        if let Some(stream) = lock(&self.stream).as_mut() {
            // One that time was reset by may not have been followed by a frame.
            let resets = flush.resets_time() || stream.flushed == Some(Flush::Reset);
            stream.flushed = Some(if resets { Flush::Reset } else { Flush::Keep });
        }
    }

    /// Before caps are negotiated, as the model has it.
    fn frame_duration(&self) -> Option<gst::ClockTime> {
        lock(&self.stream).as_ref().map(|stream| stream.pace.span(1))
    }

    /// Known only when the number of buffers is.
    fn duration(&self) -> Option<gst::ClockTime> {
        let buffers = u64::try_from(self.obj().property::<i32>("num-buffers")).ok()?;
        let stream = lock(&self.stream);
        let stream = stream.as_ref().filter(|stream| stream.info.is_some())?;
        Some(stream.pace.span(buffers))
    }

    /// Size of the frames, once it cannot change any more.
    fn settled_size(&self) -> Option<FrameSize> {
        let stream = lock(&self.stream);
        let stream = stream.as_ref().filter(|stream| !stream.devices.is_empty())?;
        stream.info.as_ref().map(caps::size)
    }

    fn stats(&self) -> gst::Structure {
        let element = self.obj();
        let is_paused = element.current_state() == gst::State::Paused;
        let stream = lock(&self.stream);
        let Some(stream) = stream.as_ref() else {
            return gst::Structure::builder("stats").field("state", "stopped").build();
        };
        let state = match stream.counters.frames {
            _ if self.failed.load(Ordering::SeqCst) => "error",
            _ if stream.is_loading() => "loading",
            _ if is_paused => "paused",
            0 => "ready",
            _ => "generating",
        };
        stream.stats().field("state", state).build()
    }
}

fn to_message(error: Error) -> gst::ErrorMessage {
    let cancelled = || gst::error_msg!(gst::CoreError::StateChange, ["cancelled"]);
    failure::message(&error).unwrap_or_else(cancelled)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
