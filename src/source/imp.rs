use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

use super::pace::Pace;
use super::prompts::{self, Answer, Book, Request, Waiting};
use super::properties::{self, Property};
use super::settings::{Settings, UnderrunPolicy};
use super::text::{self, Known, Track};
use super::{FRAME_META, caps, failure, picture};
use crate::generator::{
    Controls, Error, Frame, FrameSize, Generator, GeneratorConfig, Loading, Parts, Prompt,
    VideoFormat,
};

static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    let text = Some("Block-causal video diffusion");
    gst::DebugCategory::new("blockcascadesrc", gst::DebugColorFlags::empty(), text)
});

/// Code of the PROGRESS messages.
const LOADING: &str = "loading";

/// The element: what the user asked for, what the stream is doing, and what blocks its thread.
#[derive(Debug, Default)]
pub struct BlockCascadeSrc {
    settings: Mutex<Settings>,
    /// From start to stop.
    stream: Mutex<Option<Stream>>,
    /// The streaming thread's own; out of its place while a frame is made.
    work: Mutex<Work>,
    /// Networks of the last stream, until NULL.
    kept: Mutex<Option<Kept>>,
    wait: Mutex<ClockWait>,
    text: Mutex<Track>,
    /// An error was posted: the base class's own about the same is not.
    failed: AtomicBool,
}

/// A stream, as all threads see it.
#[derive(Debug)]
struct Stream {
    config: GeneratorConfig,
    controls: Controls,
    /// Until the streaming thread has the networks.
    loading: Option<Arc<Loading>>,
    load_time: Option<Duration>,
    info: Option<gst_video::VideoInfo>,
    pace: Pace,
    /// A generator was built for the size in `info`: it cannot change any more.
    is_settled: bool,
    /// Number of the coming buffer.
    number: u64,
    book: Book,
    /// Prompts for certain times that came before it was known how long a frame is.
    early: Vec<Request>,
    current_prompt: Option<String>,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    frames: u64,
    blocks: u64,
    repeated: u64,
    underruns: u64,
}

#[derive(Debug, Default)]
struct Work {
    generator: Option<Generator>,
    /// A frame that a flush kept from leaving.
    pending: Option<Frame>,
    last: Option<Frame>,
    /// Number of the next buffer: the frame's, plus those that an underrun put in between.
    number: u64,
    discont: bool,
}

/// Networks and what they were loaded from.
#[derive(Debug)]
struct Kept {
    config: GeneratorConfig,
    parts: Parts,
}

impl Kept {
    fn serves(&self, config: &GeneratorConfig) -> bool {
        let own = &self.config;
        (&own.model.files, &own.weights, own.device)
            == (&config.model.files, &config.weights, config.device)
            && own.model.architecture == config.model.architecture
            && (own.dtype, own.decoder) == (config.dtype, config.decoder)
    }
}

#[derive(Debug, Default)]
struct ClockWait {
    id: Option<gst::SingleShotClockId>,
    flushing: bool,
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
        static SIGNALS: Lazy<Vec<Signal>> = Lazy::new(|| vec![set_prompt_signal()]);
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
            [frames, prompts].map(|template| template.expect("names and caps are sound")).to_vec()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        match transition {
            gst::StateChange::NullToReady => self.check()?,
            gst::StateChange::ReadyToPaused => {
                let is_live = lock(&self.settings).is_live;
                self.obj().set_live(is_live);
            }
            _ => {}
        }
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            lock(&self.kept).take();
        }
        Ok(success)
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        _name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        let pad = self.text_pad(template);
        if self.obj().add_pad(&pad).is_err() {
            gst::warning!(CAT, imp = self, "there is one text pad, and it is in use");
            return None;
        }
        lock(&self.text).link(true);
        self.hold();
        Some(pad)
    }

    fn release_pad(&self, pad: &gst::Pad) {
        let _ = pad.set_active(false); // it is going away
        let _ = self.obj().remove_pad(pad);
        lock(&self.text).link(false);
        self.hold();
    }

    /// The base class would lose events that an application sends here.
    fn send_event(&self, event: gst::Event) -> bool {
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
        let config = lock(&self.settings).config().map_err(to_message)?;
        let controls = Controls::new(&config).map_err(to_message)?;
        let pace = Pace::new(gst::Fraction::new(config.model.preset.fps as i32, 1));
        gst::info!(CAT, imp = self, "{} with seed {}", config.model.name, config.seed);
        *lock(&self.work) = Work::default();
        let mut stream = Stream {
            loading: None,
            load_time: None,
            info: None,
            pace,
            is_settled: false,
            number: 0,
            book: Book::default(),
            early: Vec::new(),
            current_prompt: None,
            counters: Counters::default(),
            config,
            controls,
        };
        stream.loading = self.load(&stream.config).map_err(to_message)?;
        lock(&self.text).restart();
        *lock(&self.stream) = Some(stream);
        self.hold();
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let work = std::mem::take(&mut *lock(&self.work));
        let Some(mut stream) = lock(&self.stream).take() else { return Ok(()) };
        if stream.loading.take().is_some_and(|loading| !loading.is_done()) {
            self.progress(gst::ProgressType::Canceled, "loading was cancelled");
        }
        let answers = stream.book.close();
        self.post_answers(&answers, &[]);
        match work.generator.map(Generator::into_parts) {
            Some(Ok(parts)) => *lock(&self.kept) = Some(Kept { config: stream.config, parts }),
            Some(Err(error)) => gst::warning!(CAT, imp = self, "networks were lost: {error}"),
            None => {}
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

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = gst_video::VideoInfo::from_caps(caps)
            .map_err(|_| gst::loggable_error!(CAT, "no video in {caps}"))?;
        gst::debug!(CAT, imp = self, "{caps}");
        if let Some(stream) = lock(&self.stream).as_mut() {
            stream.config.size = Some(caps::size(&info));
            stream.pace.change(info.fps(), stream.number);
            stream.info = Some(info);
        }
        self.ask_early();
        self.hold();
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
        pool.set_config(config).map_err(|error| gst::loggable_error!(CAT, "{error}"))?;
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
                let Some(duration) = self.duration() else { return false };
                query.set(duration);
                true
            }
            _ => BaseSrcImplExt::parent_query(self, query),
        }
    }

    fn event(&self, event: &gst::Event) -> bool {
        self.prompt_event(event).unwrap_or_else(|| self.parent_event(event))
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        let mut wait = lock(&self.wait);
        wait.flushing = true;
        if let Some(id) = wait.id.take() {
            id.unschedule();
        }
        drop(wait);
        if let Some(stream) = lock(&self.stream).as_ref() {
            stream.controls.wake();
            stream.loading.iter().for_each(|loading| loading.wake());
        }
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        lock(&self.wait).flushing = false;
        if let Some(stream) = lock(&self.stream).as_ref() {
            stream.controls.resume();
            stream.loading.iter().for_each(|loading| loading.resume());
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

/// Frames.
impl BlockCascadeSrc {
    fn make(&self, work: &mut Work) -> Result<gst::Buffer, gst::FlowError> {
        if work.generator.is_none() {
            work.generator = Some(self.generator().map_err(|error| self.fail(&error))?);
        }
        let live = self.obj().is_live();
        let frame = if live { self.live_frame(work)? } else { self.next_frame(work)? };
        // A flush from here on keeps the frame for later.
        let buffer = self.buffer(work, &frame);
        match buffer {
            Ok(buffer) => {
                self.shown(work, &frame);
                work.number += 1;
                work.last = Some(frame);
                Ok(buffer)
            }
            Err(error) => {
                work.pending = Some(frame);
                Err(error)
            }
        }
    }

    /// From networks of the last stream, or those that are being loaded.
    fn generator(&self) -> Result<Generator, Error> {
        let (config, controls, loading) = {
            let stream = lock(&self.stream);
            let Some(stream) = stream.as_ref() else { return Err(Error::Cancelled) };
            (stream.config.clone(), stream.controls.clone(), stream.loading.clone())
        };
        let kept = lock(&self.kept).take();
        let parts = match (kept, loading) {
            (_, Some(loading)) => loading.wait()?,
            (Some(kept), None) => kept.parts,
            (None, None) => return Err(Error::Cancelled),
        };
        if let Some(stream) = lock(&self.stream).as_mut() {
            stream.loading = None;
            stream.is_settled = true;
        }
        Generator::from_parts(parts, &config, controls)
    }

    fn next_frame(&self, work: &mut Work) -> Result<Frame, gst::FlowError> {
        if let Some(frame) = work.pending.take() {
            return Ok(frame);
        }
        let generator = work.generator.as_mut().ok_or(gst::FlowError::Flushing)?;
        match generator.next_frame() {
            Ok(frame) => frame.ok_or(gst::FlowError::Eos),
            Err(error) => Err(self.fail(&error)),
        }
    }

    /// The frame of the coming number, at the time when it is due.
    fn live_frame(&self, work: &mut Work) -> Result<Frame, gst::FlowError> {
        let policy = lock(&self.settings).underrun_policy;
        while policy != UnderrunPolicy::Resync && work.number > 0 && !self.is_in_time(work)? {
            self.count(|counters| counters.underruns += 1);
            let due = self.pace().time(work.number);
            match (policy, work.last.take()) {
                (UnderrunPolicy::Repeat, Some(last)) => return self.again(work, last, due),
                _ => self.push_gap(work, due),
            }
        }
        let frame = self.next_frame(work)?;
        let due = self.due(work);
        if let Err(flushing) = self.wait_until(due) {
            work.pending = Some(frame);
            return Err(flushing);
        }
        Ok(frame)
    }

    /// The last frame, when another one was due.
    fn again(
        &self,
        work: &mut Work,
        last: Frame,
        due: gst::ClockTime,
    ) -> Result<Frame, gst::FlowError> {
        if let Err(flushing) = self.wait_until(due) {
            work.last = Some(last);
            return Err(flushing);
        }
        self.count(|counters| counters.repeated += 1);
        Ok(last)
    }

    /// Whether a frame comes before its number is over.
    fn is_in_time(&self, work: &mut Work) -> Result<bool, gst::FlowError> {
        let Some(generator) = work.generator.as_mut().filter(|_| work.pending.is_none()) else {
            return Ok(true);
        };
        let due = self.pace().time(work.number);
        let patience = Duration::from(due.saturating_sub(self.running_time()));
        generator.wait_frame(patience).map_err(|error| self.fail(&error))
    }

    /// When the coming number is due; what follows is counted from now if that is long past.
    fn due(&self, work: &mut Work) -> gst::ClockTime {
        let (now, mut stream) = (self.running_time(), lock(&self.stream));
        let Some(stream) = stream.as_mut() else { return now };
        let due = stream.pace.time(work.number);
        if work.number > 0 && now <= due + stream.pace.duration(work.number) {
            return due;
        }
        if work.number > 0 {
            gst::info!(CAT, imp = self, "frame {} is {} late", work.number, now - due);
            stream.counters.underruns += 1;
            work.discont = true;
        }
        stream.pace.anchor(work.number, now);
        now
    }

    fn push_gap(&self, work: &mut Work, due: gst::ClockTime) {
        let gap = gst::event::Gap::builder(due).duration(self.pace().duration(work.number)).build();
        self.obj().src_pad().push_event(gap);
        work.number += 1;
        work.discont = true;
    }

    fn wait_until(&self, due: gst::ClockTime) -> Result<(), gst::FlowError> {
        let (clock, base) = (self.obj().clock(), self.obj().base_time());
        let (Some(clock), Some(base)) = (clock, base) else { return Ok(()) };
        let id = clock.new_single_shot_id(base + due);
        {
            let mut wait = lock(&self.wait);
            if wait.flushing {
                return Err(gst::FlowError::Flushing);
            }
            wait.id = Some(id.clone());
        }
        let (result, _) = id.wait();
        lock(&self.wait).id = None;
        match result {
            Err(gst::ClockError::Unscheduled) => Err(gst::FlowError::Flushing),
            _ => Ok(()),
        }
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

/// Prompts.
impl BlockCascadeSrc {
    fn set_prompt_property(&self, property: &Property, value: &glib::Value) {
        let text = value.get::<Option<String>>().ok().flatten().unwrap_or_default();
        match Request::new(&text) {
            Ok(request) => {
                property.set(&mut lock(&self.settings), value);
                self.ask(request);
            }
            Err(reason) => self.refuse(&reason),
        }
    }

    /// Hands a prompt to the generator; whether there is one that takes it.
    fn ask(&self, request: Request) -> bool {
        let taken = lock(&self.stream).as_mut().map(|stream| stream.take(request));
        if taken == Some(false) {
            self.refuse(&format!("{} prompts wait for their frame already", prompts::MAX_WAITING));
        }
        taken == Some(true)
    }

    fn ask_early(&self) {
        let early = lock(&self.stream).as_mut().map(|stream| std::mem::take(&mut stream.early));
        early.into_iter().flatten().for_each(|request| {
            self.ask(request);
        });
    }

    fn refuse(&self, reason: &str) {
        gst::element_imp_warning!(self, gst::ResourceError::Settings, ("prompt refused: {reason}"));
    }

    /// Whether an event is a prompt that is accepted; `None` if it is no prompt at all.
    fn prompt_event(&self, event: &gst::Event) -> Option<bool> {
        let fields = event.structure().filter(|fields| fields.name() == prompts::EVENT)?;
        if !event.is_upstream() {
            return None;
        }
        let is_duplicate = |stream: &mut Stream| stream.book.is_duplicate(event.seqnum());
        if lock(&self.stream).as_mut().is_some_and(is_duplicate) {
            return Some(true);
        }
        Some(self.parse_and_ask(fields))
    }

    fn parse_and_ask(&self, fields: &gst::StructureRef) -> bool {
        match Request::parse(fields) {
            Ok(request) => self.ask_from_now_on(request),
            Err(reason) => {
                self.refuse(&reason);
                false
            }
        }
    }

    /// A prompt for no certain time is also what the next stream starts from.
    fn ask_from_now_on(&self, request: Request) -> bool {
        if request.running_time.is_none() {
            lock(&self.settings).prompt.clone_from(&request.text);
        }
        self.ask(request)
    }

    /// Tells everybody when a frame is the first of its prompt.
    fn shown(&self, work: &Work, frame: &Frame) {
        let (answers, time) = {
            let mut stream = lock(&self.stream);
            let Some(stream) = stream.as_mut() else { return };
            stream.counters.frames += 1;
            stream.counters.blocks = frame.block + 1;
            stream.number = work.number + 1;
            let Some(answers) = stream.book.show(&frame.prompt, frame.block) else { return };
            stream.current_prompt = Some(frame.prompt.text.clone());
            (answers, stream.pace.time(work.number))
        };
        let fields = [("frame", work.number), ("block", frame.block), ("pts", time.nseconds())];
        self.post_answers(&answers, &fields);
        if work.number > 0 && lock(&self.settings).force_key_unit {
            let event = gst_video::DownstreamForceKeyUnitEvent::builder().all_headers(true).build();
            self.parent_send_event(event);
        }
        self.obj().notify("current-prompt");
    }

    /// A message and an event downstream for each prompt that was applied or dropped.
    fn post_answers(&self, answers: &[Answer], place: &[(&str, u64)]) {
        for answer in answers {
            let fields = answer_fields(answer, place);
            let element = self.obj();
            let message = gst::message::Element::builder(fields.clone()).src(&*element).build();
            let _ = element.post_message(message); // false only without a bus
            if !place.is_empty() {
                self.parent_send_event(gst::event::CustomDownstream::new(fields));
            }
        }
    }
}

/// The text pad.
impl BlockCascadeSrc {
    fn text_pad(&self, template: &gst::PadTemplate) -> gst::Pad {
        gst::Pad::builder_from_template(template)
            .chain_function(|_, parent, buffer| {
                let failed = || Err(gst::FlowError::Error);
                Self::catch_panic_pad_function(parent, failed, |element| element.chain(&buffer))
            })
            .event_function(|_, parent, event| {
                Self::catch_panic_pad_function(
                    parent,
                    || false,
                    |element| element.text_event(&event),
                )
            })
            .build()
    }

    /// Takes a prompt and waits for nothing.
    fn chain(&self, buffer: &gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let prompt = lock(&self.text).prompt(buffer);
        match prompt {
            Ok(Some(request)) => {
                self.ask(request);
            }
            Ok(None) => {}
            Err(reason) => {
                gst::element_imp_warning!(self, gst::StreamError::Decode, ("prompt: {reason}"));
            }
        }
        self.hold();
        Ok(gst::FlowSuccess::Ok)
    }

    /// Nothing of the text goes on downstream; its end does not end the video.
    fn text_event(&self, event: &gst::EventRef) -> bool {
        lock(&self.text).event(event);
        self.hold();
        true
    }

    /// Lets those blocks start whose text is known.
    fn hold(&self) {
        let waits = !self.obj().is_live() && lock(&self.settings).wait_prompt;
        let known = if waits { lock(&self.text).known() } else { Known::All };
        let stream = lock(&self.stream);
        let Some(stream) = stream.as_ref() else { return };
        let after = |time| stream.pace.frame_from(time + gst::ClockTime::NSECOND);
        stream.controls.hold(match known {
            Known::All => None,
            Known::Until(time) if stream.info.is_some() => {
                Some(stream.format().block_from(after(time)))
            }
            Known::Until(_) | Known::Nothing => Some(0),
        });
    }
}

fn answer_fields(answer: &Answer, place: &[(&str, u64)]) -> gst::Structure {
    let name = if answer.applied { "prompt-applied" } else { "prompt-dropped" };
    let mut fields = gst::Structure::builder(format!("blockcascade/{name}"))
        .field("text", &answer.request.text)
        .field_if_some("id", answer.request.id.as_ref())
        .field("latency", gst::ClockTime::from_nseconds(elapsed(answer.since)));
    if answer.applied {
        fields = place.iter().fold(fields, |fields, &(name, value)| fields.field(name, value));
    } else {
        fields = fields.field("reason", "another prompt took its place, or the stream ended");
    }
    fields.build()
}

fn elapsed(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn set_prompt_signal() -> Signal {
    Signal::builder("set-prompt")
        .param_types([String::static_type(), gst::Structure::static_type()])
        .return_type::<bool>()
        .action()
        .class_handler(|args| {
            let element = args[0].get::<super::BlockCascadeSrc>().ok()?;
            let text = args[1].get::<Option<String>>().ok()?.unwrap_or_default();
            let options = args[2].get::<Option<gst::Structure>>().ok()?;
            let mut fields = options.unwrap_or_else(|| gst::Structure::new_empty("options"));
            fields.set("text", text);
            Some(element.imp().parse_and_ask(&fields).to_value())
        })
        .build()
}

/// Loading, failing, telling.
impl BlockCascadeSrc {
    /// Before anything starts: are the settings sound, are all files there?
    fn check(&self) -> Result<(), gst::StateChangeError> {
        self.failed.store(false, Ordering::SeqCst);
        let config = lock(&self.settings).config();
        let checked = config.and_then(|config| config.check_weights());
        checked.map_err(|error| {
            let _ = self.fail(&error); // a flow that there is not
            gst::StateChangeError
        })
    }

    /// Starts to load what is not kept from the last stream.
    fn load(&self, config: &GeneratorConfig) -> Result<Option<Arc<Loading>>, Error> {
        // No lock is held while messages are posted: whoever gets them may ask back.
        let kept = lock(&self.kept).take_if(|kept| !kept.serves(config));
        drop(kept);
        if lock(&self.kept).is_some() {
            return Ok(None);
        }
        self.progress(gst::ProgressType::Start, &format!("loading {}", config.model.name));
        let (element, begun) = (self.obj().downgrade(), Instant::now());
        let done = move |loaded: Result<(), &Error>| {
            let Some(element) = element.upgrade() else { return };
            element.imp().loaded(loaded, begun.elapsed());
        };
        Loading::start(config.clone(), done).map(Arc::new).map(Some)
    }

    /// Called on the loading thread.
    fn loaded(&self, loaded: Result<(), &Error>, time: Duration) {
        if let Some(stream) = lock(&self.stream).as_mut() {
            stream.load_time = Some(time);
        }
        match loaded {
            Ok(()) => self.progress(gst::ProgressType::Complete, "the model is loaded"),
            Err(Error::Cancelled) => gst::debug!(CAT, imp = self, "loading was cancelled"),
            Err(error) => {
                let _ = self.fail(error); // create() returns its own
                self.progress(gst::ProgressType::Error, &error.to_string());
            }
        }
    }

    fn progress(&self, kind: gst::ProgressType, text: &str) {
        let element = self.obj();
        let message = gst::message::Progress::builder(kind, LOADING, text).src(&*element).build();
        let _ = element.post_message(message); // false only without a bus
    }

    /// Posts an error, if it is one.
    fn fail(&self, error: &Error) -> gst::FlowError {
        let Some(message) = failure::message(error) else { return gst::FlowError::Flushing };
        gst::error!(CAT, imp = self, "{error}");
        self.post_error_message(message);
        gst::FlowError::Error
    }

    fn stats(&self) -> gst::Structure {
        let stats = gst::Structure::builder("stats");
        let stream = lock(&self.stream);
        let Some(stream) = stream.as_ref() else { return stats.field("state", "stopped").build() };
        let Counters { frames, blocks, repeated, underruns } = stream.counters;
        let state = if stream.loading.is_some() { "loading" } else { "generating" };
        let load_time = stream.load_time.map(|time| gst::ClockTime::try_from(time).ok());
        stats
            .field("state", state)
            .field("seed", stream.config.seed)
            .field("frames", frames)
            .field("blocks", blocks)
            .field("repeated", repeated)
            .field("underruns", underruns)
            .field("prompts-queued", stream.book.len() as u64)
            .field("prompts-applied", stream.book.applied)
            .field("prompts-dropped", stream.book.dropped)
            .field("duplicate-events", stream.book.duplicates)
            .field("queue-level", stream.controls.queued_frames() as u32)
            .field_if_some("load-time", load_time.flatten())
            .build()
    }
}

/// Times.
impl BlockCascadeSrc {
    fn pace(&self) -> Pace {
        let pace = lock(&self.stream).as_ref().map(|stream| stream.pace);
        pace.unwrap_or_else(|| Pace::new(gst::Fraction::new(1, 1)))
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        if let Some(stream) = lock(&self.stream).as_mut() {
            change(&mut stream.counters);
        }
    }

    fn running_time(&self) -> gst::ClockTime {
        self.obj().current_running_time().unwrap_or_default()
    }

    fn frame_duration(&self) -> Option<gst::ClockTime> {
        let stream = lock(&self.stream);
        stream.as_ref().filter(|stream| stream.info.is_some()).map(|stream| stream.pace.span(1))
    }

    /// Known only when the number of buffers is.
    fn duration(&self) -> Option<gst::ClockTime> {
        let buffers = u64::try_from(self.obj().property::<i32>("num-buffers")).ok()?;
        let stream = lock(&self.stream);
        stream
            .as_ref()
            .filter(|stream| stream.info.is_some())
            .map(|stream| stream.pace.span(buffers))
    }

    /// Size of the frames, once it cannot change any more.
    fn settled_size(&self) -> Option<FrameSize> {
        let stream = lock(&self.stream);
        let stream = stream.as_ref().filter(|stream| stream.is_settled)?;
        stream.info.as_ref().map(caps::size)
    }
}

impl Stream {
    /// Hands a prompt on, unless too many wait.
    fn take(&mut self, request: Request) -> bool {
        if self.book.is_full() || self.early.len() >= prompts::MAX_WAITING {
            return false;
        }
        if request.running_time.is_some() && self.info.is_none() {
            self.early.push(request);
            return true;
        }
        let frame = request.running_time.map(|time| self.pace.frame_from(time));
        let from_block = frame.map(|frame| self.format().block_from(frame));
        let prompt = Prompt { text: request.text.clone(), from_block };
        let prompt = self.controls.set_prompt(prompt);
        self.book.wait(Waiting { prompt, request, from_block, since: Instant::now() });
        true
    }

    fn format(&self) -> VideoFormat {
        let preset = &self.config.model.preset;
        VideoFormat {
            size: self.config.frame_size(),
            frames_per_second: preset.fps,
            frames_per_block: preset.frames_per_block,
        }
    }
}

fn to_message(error: Error) -> gst::ErrorMessage {
    let cancelled = || gst::error_msg!(gst::CoreError::StateChange, ["cancelled"]);
    failure::message(&error).unwrap_or_else(cancelled)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
