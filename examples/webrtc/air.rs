//! What is on air: one generator, one encoder, and the news of both.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_utils::{StreamProducer, streamproducer::ProducerSettings};
use nonzero_ext::nonzero;
use tokio::sync::broadcast;

use crate::message::{State, Wish};
use crate::news::{Asker, News};
use crate::options::Options;
use crate::page::Site;
use crate::warn;

/// A slow encoder loses frames and holds up nothing; key frames come when someone joins, asks for one
/// or changes the prompt, and no closer than the interval.
const REST: &str = "queue name=queue max-size-buffers=8 max-size-bytes=0 max-size-time=0 leaky=downstream ! \
     vp8enc deadline=1 cpu-used=6 end-usage=cbr target-bitrate=2000000 buffer-size=600 \
     buffer-initial-size=400 buffer-optimal-size=500 min-quantizer=4 max-quantizer=50 \
     keyframe-max-dist=320 min-force-key-unit-interval=300000000 error-resilient=default ! \
     appsink name=frames";
/// News that a session may be behind.
const NEWS: usize = 64;
/// Prompts that are remembered.
const HISTORY: usize = 20;
/// How often an error is answered by a new start.
const RECOVERIES: Quota = Quota::per_minute(nonzero!(1u32)).allow_burst(nonzero!(3u32));
/// Names of what is asked of the thread that watches.
const RESTART: &str = "restart";
const STOP: &str = "stop";

/// The pipeline that all viewers share.
#[derive(Debug)]
pub struct Air {
    pipeline: gst::Pipeline,
    source: gst::Element,
    producer: StreamProducer,
    news: broadcast::Sender<News>,
    history: Mutex<VecDeque<String>>,
    is_over: AtomicBool,
}

impl Air {
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        let source = gst::ElementFactory::make("blockcascadesrc")
            .property("is-live", true)
            .property_from_str("underrun-policy", "repeat")
            .property_from_str("startup-policy", "slate")
            .property("queue-blocks", 1u32)
            .property("model", &options.model)
            .property("prompt", &options.prompt)
            .property("seed", options.seed.unwrap_or(-1))
            .property("cascade-width", options.width)
            .property("devices", &options.devices)
            .build()?;
        Self::with(source, REST)
    }

    fn with(source: gst::Element, rest: &str) -> anyhow::Result<Self> {
        let pipeline = gst::Pipeline::new();
        let rest = gst::parse::bin_from_description(rest, true)?;
        pipeline.add_many([&source, rest.upcast_ref()])?;
        source.link(&rest)?;
        let frames = rest.by_name("frames").and_downcast::<gst_app::AppSink>();
        let frames = frames.context("no appsink")?;
        // Frames that were waited for already go out at once.
        let producer = StreamProducer::with(&frames, ProducerSettings { sync: false });
        keep_time(&pipeline, &gst::SystemClock::obtain(), None);
        let (news, history) = (broadcast::Sender::new(NEWS), Mutex::default());
        Ok(Self { pipeline, source, producer, news, history, is_over: AtomicBool::new(false) })
    }

    pub fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    pub fn producer(&self) -> &StreamProducer {
        &self.producer
    }

    /// Gives a viewer's pipeline this one's time, so that a frame has the same in both.
    pub fn share_time(&self, pipeline: &gst::Pipeline) {
        keep_time(pipeline, &self.pipeline.pipeline_clock(), self.pipeline.base_time());
    }

    /// Whether the generator takes a prompt.
    pub fn ask(&self, asker: Asker, wish: &Wish) -> bool {
        let options = gst::Structure::builder("options")
            .field("id", asker.to_string())
            .field("prompt-policy", wish.policy.nick())
            .field("transition-blocks", wish.blocks)
            .field("transition-method", wish.method.nick())
            .build();
        self.source.emit_by_name("set-prompt", &[&wish.text.trim(), &options])
    }

    /// From a new first frame on; without a seed, by chance.
    pub fn restart(&self, seed: Option<u32>) {
        let seed = seed.map_or(-1, i64::from);
        self.post(gst::Structure::builder(RESTART).field("seed", seed).build());
    }

    /// The end; whoever calls does not wait for it.
    pub fn stop(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.post(gst::Structure::new_empty(STOP));
        let _ = self.news.send(News::End); // nobody may be there
    }

    fn post(&self, structure: gst::Structure) {
        // False only without a bus.
        let _ = self.pipeline.post_message(gst::message::Application::new(structure));
    }

    /// Comes true at the end.
    pub fn ending(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut news = self.news();
        async move {
            while !matches!(
                news.recv().await,
                Ok(News::End) | Err(broadcast::error::RecvError::Closed)
            ) {}
        }
    }

    /// Something went wrong: for pages.
    pub fn inform(&self, trouble: String) {
        let _ = self.news.send(News::Trouble(trouble)); // nobody may be there
    }

    /// For pages and the terminal.
    fn tell(&self, trouble: String) {
        warn(&trouble);
        self.inform(trouble);
    }

    /// Prompts shown so far, the last one first.
    pub fn history(&self) -> VecDeque<String> {
        let mut history = self.lock_history();
        if let Some(prompt) = self.current_prompt().filter(|_| history.is_empty()) {
            history.push_front(prompt);
        }
        history.clone()
    }

    fn remember(&self, prompt: &str) {
        let _ = self.history(); // the first one was nobody's
        let mut history = self.lock_history();
        history.retain(|known| known != prompt);
        history.push_front(prompt.into());
        history.truncate(HISTORY);
    }

    fn lock_history(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn model(&self) -> String {
        self.source.property("model")
    }

    pub fn width(&self) -> u32 {
        self.source.property("cascade-width")
    }

    fn current_prompt(&self) -> Option<String> {
        self.source.property("current-prompt")
    }

    fn state(&self, stats: &gst::StructureRef) -> State {
        State {
            state: stats.get("state").unwrap_or_default(),
            prompt: self.current_prompt(),
            seed: stats.get("seed").ok(),
            pace: stats.get("realtime-factor").ok(),
            frames: stats.get("frames").unwrap_or_default(),
            underruns: stats.get("underruns").unwrap_or_default(),
            ..State::default()
        }
    }

    fn stats(&self) -> Option<gst::Structure> {
        self.source.property("stats")
    }
}

/// The thread that watches: the only one that changes the pipeline's state.
impl Air {
    /// From the start of the stream to its end; an error is why it cannot go on.
    pub fn watch(&self) -> anyhow::Result<()> {
        let ended = self.follow();
        self.pipeline.set_state(gst::State::Null)?;
        ended
    }

    fn follow(&self) -> anyhow::Result<()> {
        let bus = self.pipeline.bus().context("a pipeline without a bus")?;
        let recoveries = RateLimiter::direct(RECOVERIES);
        self.play();
        for message in bus.iter_timed(gst::ClockTime::NONE) {
            match message.view() {
                gst::MessageView::Error(error) => self.recover(error, &recoveries)?,
                gst::MessageView::Warning(warning) => self.tell(warning.error().to_string()),
                gst::MessageView::Eos(_) => bail!("the source has ended"),
                gst::MessageView::Latency(_) => drop(self.pipeline.recalculate_latency()),
                gst::MessageView::Element(element) => {
                    element.structure().into_iter().for_each(|fields| self.answer(fields));
                }
                gst::MessageView::Application(asked) => self.obey(asked),
                _ => {}
            }
            if self.is_over.load(Ordering::SeqCst) {
                break;
            }
        }
        Ok(())
    }

    /// Whatever goes wrong here is a message on the bus.
    fn play(&self) {
        let _ = self.pipeline.set_state(gst::State::Playing);
    }

    /// Starts again from nothing, where that may help.
    fn recover(
        &self,
        error: &gst::message::Error,
        recoveries: &DefaultDirectRateLimiter,
    ) -> anyhow::Result<()> {
        let reason = error.error();
        let frames = self.stats().and_then(|stats| stats.get::<u64>("frames").ok());
        let has_begun = frames.is_some_and(|frames| frames > 0);
        let _ = self.pipeline.set_state(gst::State::Null); // other messages of this error go with it
        if !has_begun || recoveries.check().is_err() {
            bail!("{reason}");
        }
        self.tell(format!("{reason}; starting again"));
        self.play();
        Ok(())
    }

    fn obey(&self, asked: &gst::message::Application) {
        let Some(fields) = asked.structure().filter(|fields| fields.name() == RESTART) else {
            return;
        };
        let Ok(seed) = fields.get::<i64>("seed") else { return };
        // Down to where the seed may change and networks stay.
        let _ = self.pipeline.set_state(gst::State::Ready); // or it is on the bus
        self.source.set_property("seed", seed);
        self.play();
    }

    /// What became of a prompt.
    fn answer(&self, fields: &gst::StructureRef) {
        let asker = fields.get::<&str>("id").ok().and_then(|id| id.parse().ok());
        let text = fields.get::<&str>("text").unwrap_or_default();
        let number = |name| fields.get::<u64>(name).unwrap_or_default();
        let news = match fields.name().as_str() {
            "blockcascade/prompt-applied" => News::Applied {
                asker,
                text: text.into(),
                block: number("block"),
                latency: Duration::from_nanos(number("latency")),
                pts: gst::ClockTime::from_nseconds(number("pts")),
            },
            "blockcascade/prompt-dropped" => match asker {
                Some(asker) => News::Dropped(asker),
                None => return,
            },
            _ => return,
        };
        if let News::Applied { text, .. } = &news {
            self.remember(text);
        }
        let _ = self.news.send(news); // nobody may be there
    }
}

/// A running time that goes on when the pipeline starts anew, from a base that others may share.
fn keep_time(pipeline: &gst::Pipeline, clock: &impl IsA<gst::Clock>, base: Option<gst::ClockTime>) {
    pipeline.use_clock(Some(clock));
    pipeline.set_start_time(gst::ClockTime::NONE);
    pipeline.set_base_time(base.unwrap_or_else(|| clock.time()));
}

/// Tells once a second how the stream is.
pub async fn pulse(air: Arc<Air>, site: Arc<Site>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let (mut frames, mut since) = (0u64, Instant::now());
    loop {
        ticks.tick().await;
        let Some(stats) = air.stats() else { continue };
        let (before, seconds) = (frames, since.elapsed().as_secs_f64());
        (frames, since) = (stats.get("frames").unwrap_or_default(), Instant::now());
        let made = frames.saturating_sub(before) as f64 / seconds.max(f64::EPSILON);
        let state = State { made, viewers: site.viewers(), ..air.state(&stats) };
        let _ = air.news.send(News::State(state)); // nobody may be there
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Once;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn air(model: &str, rest: &str) -> Arc<Air> {
        static REGISTERED: Once = Once::new();
        REGISTERED.call_once(|| {
            gst::init().unwrap();
            gstblockcascade::register_static().unwrap();
        });
        let source = gst::ElementFactory::make("blockcascadesrc").property("model", model);
        Arc::new(Air::with(source.build().unwrap(), rest).unwrap())
    }

    /// How it ended, and what was told until then.
    fn watched(air: &Arc<Air>) -> (Result<(), String>, Vec<News>) {
        let (mut news, (ended, end)) = (air.news(), channel());
        let watching = air.clone();
        thread::spawn(move || ended.send(watching.watch().map_err(|error| error.to_string())));
        let end = end.recv_timeout(PATIENCE).unwrap();
        (end, std::iter::from_fn(|| news.try_recv().ok()).collect())
    }

    #[test]
    fn an_error_is_told_and_the_stream_starts_again_but_not_for_ever() {
        let air = air("pocket", "identity error-after=4 ! vp8enc deadline=1 ! appsink name=frames");
        let (end, news) = watched(&air);
        assert!(end.unwrap_err().contains("Failed after iterations"));
        let again = |news: &&News| matches!(news, News::Trouble(why) if why.contains("again"));
        assert_eq!(
            news.iter().filter(again).count(),
            RECOVERIES.burst_size().get() as usize,
            "{news:?}"
        );
    }

    #[test]
    fn what_fails_before_its_first_frame_is_not_tried_again() {
        let air = air("no-such-model", "vp8enc ! appsink name=frames");
        let (end, news) = watched(&air);
        assert!(end.unwrap_err().contains("no-such-model"));
        assert!(news.is_empty(), "{news:?}");
    }

    #[test]
    fn it_stops_when_it_is_told() {
        let air = air("pocket", "vp8enc deadline=1 ! appsink name=frames");
        air.stop();
        assert_eq!(watched(&air).0, Ok(()));
    }
}
