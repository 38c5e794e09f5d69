//! The generator from outside: threads, prompts, cancelling, failures, bad settings.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result as CandleResult, Tensor, bail};
use candle_nn::VarBuilder;
use gstblockcascade::cascade::{AttentionMode, BlockCost, HistoryPolicy, PromptPolicy};
use gstblockcascade::checkpoint::{self, Manifest, Role};
use gstblockcascade::device::Devices;
use gstblockcascade::generator::{
    Controls, Decoder, Dtype, Error, Frame, FrameSize, Generator, GeneratorConfig, Parts, Prompt,
    PromptChange, Timing, WeightPaths, WeightsSource,
};
use gstblockcascade::model::{
    DenoiseInput, FrameDecoder, Interrupt, KvExchange, TextContext, TextEmbedding, VideoModel,
    VideoSpec,
};
use gstblockcascade::wan::text::Umt5Encoder;
use gstblockcascade::wan::vae::WanDecoder;
use gstblockcascade::wan::{WanDit, dit_config, text_config, vae_config};

#[path = "support/toy.rs"]
mod arithmetic;
use arithmetic::{LAYERS, Lengths, SPEC};

/// No test may hang: what waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A model whose clean latents are its prompt's length: `flow = (x - length) / sigma`.
#[derive(Debug)]
struct Toy {
    spec: VideoSpec,
    behaviour: Behaviour,
    forwards: AtomicUsize,
    entered: Mutex<mpsc::Sender<()>>,
}

/// What the toy does at its n-th forward.
#[derive(Clone, Debug)]
enum Behaviour {
    Work,
    FailAt(usize),
    PanicAt(usize),
    /// Every layer takes so long.
    Slow(Duration),
    /// Every layer takes until somebody else comes there, too.
    Held(Arc<Barrier>),
}

impl VideoModel for Toy {
    fn spec(&self) -> &VideoSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn text_context(&self, text: &TextEmbedding) -> CandleResult<TextContext> {
        Ok(arithmetic::text_context(text))
    }

    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        kv: &mut dyn KvExchange,
    ) -> CandleResult<Vec<Tensor>> {
        let forward = self.forwards.fetch_add(1, Ordering::SeqCst);
        for layer in 0..LAYERS {
            kv.exchange(layer, vec![arithmetic::kv()?; blocks.len()])?;
            let _listening = self.entered.lock().unwrap().send(());
            match &self.behaviour {
                Behaviour::FailAt(n) if *n == forward => bail!("toy failure"),
                Behaviour::PanicAt(n) if *n == forward => panic!("toy panic"),
                Behaviour::Slow(time) => thread::sleep(*time),
                Behaviour::Held(gate) => {
                    gate.wait();
                }
                _ => {}
            }
        }
        blocks.iter().map(arithmetic::flow).collect()
    }
}

/// Grey frames: 1 for the first latent, 4 for each later one.
#[derive(Debug)]
struct Mean {
    /// Pixels that a latent row or column stands for.
    stride: usize,
    started: bool,
    fails: bool,
}

impl FrameDecoder for Mean {
    fn step(&mut self, latents: &Tensor, interrupt: &Interrupt) -> CandleResult<Tensor> {
        interrupt.check()?;
        if self.fails {
            bail!("toy decoder failure");
        }
        let frames = if std::mem::replace(&mut self.started, true) { 4 } else { 1 };
        let (_, _, rows, cols) = latents.dims4()?;
        let shape = (frames, rows * self.stride, cols * self.stride, 3);
        latents.mean_all()?.reshape((1, 1, 1, 1))?.broadcast_as(shape)?.contiguous()
    }

    fn fresh(&self) -> Box<dyn FrameDecoder> {
        Box::new(Self { started: false, ..*self })
    }
}

fn config(prompt: &str, blocks: u64) -> GeneratorConfig {
    let weights = WeightsSource::Random { seed: 0 };
    GeneratorConfig { weights, ..pocket(prompt, blocks) }
}

/// The embedded model, with a small picture.
fn pocket(prompt: &str, blocks: u64) -> GeneratorConfig {
    let model = Manifest::named("pocket").unwrap();
    let prompt = prompt.to_owned();
    let size = Some(FrameSize { width: 16, height: 16 });
    GeneratorConfig { prompt, blocks: Some(blocks), size, ..GeneratorConfig::new(model) }
}

struct Rig {
    generator: Generator,
    /// Hears of every layer.
    entered: mpsc::Receiver<()>,
}

fn rig(config: &GeneratorConfig, behaviour: Behaviour, decoder_fails: bool) -> Rig {
    let (sender, entered) = mpsc::channel();
    let (forwards, sender) = (AtomicUsize::new(0), Mutex::new(sender));
    let model = Arc::new(Toy { spec: SPEC, behaviour, forwards, entered: sender });
    let decoder = Arc::new(Mean { stride: 8, started: false, fails: decoder_fails });
    let parts = Parts { text: Arc::new(Lengths), models: vec![model], decoder };
    let controls = Controls::new(config).unwrap();
    Rig { generator: Generator::from_parts(parts, config, controls).unwrap(), entered }
}

fn toy(config: &GeneratorConfig) -> Generator {
    rig(config, Behaviour::Work, false).generator
}

/// The grey of each frame, in hundredths: the length of its prompt.
fn lengths(frames: &[Frame]) -> Vec<u32> {
    frames.iter().map(|frame| (u32::from(frame.rgb[0]) * 100 + 127) / 255).collect()
}

fn all(generator: &mut Generator) -> Vec<Frame> {
    generator.collect::<Result<Vec<_>, _>>().unwrap()
}

/// All frames of a stream.
fn run(config: &GeneratorConfig) -> Vec<Frame> {
    all(&mut Generator::new(config).unwrap())
}

/// Runs `work` on a thread and fails when it takes too long.
fn within_patience<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(PATIENCE).expect("hung or panicked")
}

#[test]
fn frames_are_counted_and_the_stream_ends() {
    let mut generator = toy(&config("0123456789", 4));
    let frames = all(&mut generator);
    assert_eq!(frames.len(), 9 + 3 * 12);
    assert!(frames.iter().zip(0..).all(|(frame, index)| frame.index == index));
    assert_eq!(generator.next_frame().unwrap(), None);
}

/// A family whose latents and tokens are smaller than Wan's, at a size that Wan cannot make.
#[test]
fn sizes_follow_the_model_and_frames_the_format() {
    let run = |width, height, stride| {
        let spec = VideoSpec { spatial_stride: 4, patch: 1, ..SPEC };
        let (forwards, entered) = (AtomicUsize::new(0), Mutex::new(mpsc::channel().0));
        let model = Arc::new(Toy { spec, behaviour: Behaviour::Work, forwards, entered });
        let decoder = Arc::new(Mean { stride, started: false, fails: false });
        let parts = Parts { text: Arc::new(Lengths), models: vec![model], decoder };
        let config = GeneratorConfig { size: Some(FrameSize { width, height }), ..config("x", 1) };
        let controls = Controls::new(&config)?;
        let mut generator = Generator::from_parts(parts, &config, controls)?;
        assert_eq!(generator.format().size, FrameSize { width, height });
        generator.next_frame()
    };
    let frame = run(20, 12, 4).unwrap().unwrap();
    assert_eq!((frame.width, frame.height, frame.rgb.len()), (20, 12, 20 * 12 * 3));
    let error = run(20, 10, 4).unwrap_err().to_string();
    assert!(error.contains("got 20x10, expected multiples of 4"), "{error}");
    let error = run(20, 12, 8).unwrap_err().to_string();
    assert!(error.contains("decoding: expected frames of [12, 20, 3]"), "{error}");
}

/// What the two threads did, in order; each may wait for the other.
#[derive(Clone, Debug, Default)]
struct Diary(Arc<(Mutex<Vec<Event>>, Condvar)>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// Of the forward that comes right after the first clean block.
    DenoiseBegins,
    DenoiseEnds,
    /// Of the stream's first latent.
    DecodeBegins,
    DecodeEnds,
}

impl Diary {
    fn enter(&self, event: Event) {
        self.0.0.lock().unwrap().push(event);
        self.0.1.notify_all();
    }

    /// Two events and in between, for the first to end, the other thread's first.
    fn between(&self, begins: Event, other: Event, ends: Event) -> CandleResult<()> {
        self.enter(begins);
        let waits = |events: &mut Vec<Event>| !events.contains(&other);
        let wait = self.0.1.wait_timeout_while(self.0.0.lock().unwrap(), PATIENCE, waits);
        if wait.unwrap().1.timed_out() {
            bail!("{begins:?}, and no {other:?} meanwhile");
        }
        self.enter(ends);
        Ok(())
    }
}

/// A toy of which one forward waits for the decoder.
#[derive(Debug)]
struct SlowToy {
    toy: Toy,
    /// Forwards before it.
    after: usize,
    diary: Diary,
}

impl VideoModel for SlowToy {
    fn spec(&self) -> &VideoSpec {
        self.toy.spec()
    }

    fn device(&self) -> &Device {
        self.toy.device()
    }

    fn text_context(&self, text: &TextEmbedding) -> CandleResult<TextContext> {
        self.toy.text_context(text)
    }

    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        kv: &mut dyn KvExchange,
    ) -> CandleResult<Vec<Tensor>> {
        if self.toy.forwards.load(Ordering::SeqCst) == self.after {
            let begins = Event::DenoiseBegins;
            self.diary.between(begins, Event::DecodeBegins, Event::DenoiseEnds)?;
        }
        self.toy.predict_flow(blocks, kv)
    }
}

/// A decoder of which the first call waits for the model.
#[derive(Debug)]
struct SlowMean {
    mean: Mean,
    diary: Diary,
}

impl FrameDecoder for SlowMean {
    fn step(&mut self, latents: &Tensor, interrupt: &Interrupt) -> CandleResult<Tensor> {
        if !self.mean.started {
            let begins = Event::DecodeBegins;
            self.diary.between(begins, Event::DenoiseBegins, Event::DecodeEnds)?;
        }
        self.mean.step(latents, interrupt)
    }

    fn fresh(&self) -> Box<dyn FrameDecoder> {
        Box::new(Self { mean: Mean { started: false, ..self.mean }, diary: self.diary.clone() })
    }
}

/// Each of the two begins before the other ends, or one of them waits in vain.
#[test]
fn decoding_overlaps_denoising() {
    let diary = Diary::default();
    let (forwards, entered) = (AtomicUsize::new(0), Mutex::new(mpsc::channel().0));
    let toy = Toy { spec: SPEC, behaviour: Behaviour::Work, forwards, entered };
    let mean = Mean { stride: 8, started: false, fails: false };
    let config = config("0123456789", 2);
    let after = config.model.preset.denoising_steps.len();
    let parts = Parts {
        text: Arc::new(Lengths),
        models: vec![Arc::new(SlowToy { toy, after, diary: diary.clone() })],
        decoder: Arc::new(SlowMean { mean, diary: diary.clone() }),
    };
    let controls = Controls::new(&config).unwrap();
    let mut generator = Generator::from_parts(parts, &config, controls).unwrap();
    assert_eq!(all(&mut generator).len(), 21);
    let events = diary.0.0.lock().unwrap().clone();
    let place = |event| events.iter().position(|&other| other == event).unwrap();
    assert!(place(Event::DecodeBegins) < place(Event::DenoiseEnds), "{events:?}");
    assert!(place(Event::DenoiseBegins) < place(Event::DecodeEnds), "{events:?}");
    assert_eq!(events.len(), 4, "{events:?}");
}

#[test]
fn width_does_not_change_the_number_of_frames() {
    for cascade_width in 1..=5 {
        let config = GeneratorConfig { cascade_width, ..config("0123456789", 3) };
        assert_eq!(all(&mut toy(&config)).len(), 33, "width {cascade_width}");
    }
}

#[test]
fn a_scheduled_prompt_takes_effect_at_its_block_every_time() {
    for policy in
        [PromptPolicy::InFlight, PromptPolicy::NextBlock, PromptPolicy::Recache, PromptPolicy::Cut]
    {
        let change = PromptChange { policy, ..PromptChange::default() };
        for cascade_width in [1, 2, 5] {
            let base = config(&"x".repeat(80), 6);
            let mut generator = toy(&GeneratorConfig { cascade_width, change, ..base });
            let text = "y".repeat(20);
            generator.controls().set_prompt(Prompt { from_block: Some(3), ..text.into() });
            let lengths = lengths(&all(&mut generator));
            let old = 9 + 2 * 12;
            assert!(lengths[..old].iter().all(|&length| length == 80), "{lengths:?}");
            assert!(lengths[old..].iter().all(|&length| length == 20), "{lengths:?}");
        }
    }
}

#[test]
fn a_transition_arrives_block_by_block() {
    let change = PromptChange { blocks: 3, ..PromptChange::default() };
    for cascade_width in [1, 2, 5] {
        let config = GeneratorConfig { cascade_width, ..config(&"x".repeat(80), 8) };
        let mut generator = toy(&config);
        let prompt = "y".repeat(20).into();
        let prompt = Prompt { from_block: Some(3), change: Some(change), ..prompt };
        let id = generator.controls().set_prompt(prompt);
        let frames = all(&mut generator);
        let first = |block: usize| 9 + 12 * (block - 1);
        let lengths = lengths(&frames);
        let blocks: Vec<_> = (3..8).map(|block| lengths[first(block)]).collect();
        assert_eq!((lengths[first(3) - 1], blocks), (80, vec![60, 40, 20, 20, 20]));
        let heard: Vec<_> = frames.iter().map(|frame| frame.prompt.id == id).collect();
        assert_eq!(heard.iter().position(|&new| new), Some(first(3)));
    }
}

#[test]
fn a_prompt_that_comes_in_a_transition_starts_from_where_it_is() {
    let change = Some(PromptChange { blocks: 4, ..PromptChange::default() });
    let mut generator = toy(&config(&"x".repeat(80), 8));
    for (block, length) in [(1, 40), (3, 20)] {
        let prompt = "y".repeat(length).into();
        generator.controls().set_prompt(Prompt { from_block: Some(block), change, ..prompt });
    }
    let lengths = lengths(&all(&mut generator));
    let blocks: Vec<_> = (1..8).map(|block| lengths[9 + 12 * (block - 1)]).collect();
    // Half of the way to 40 is 60; from there it is 40 to 20, in four steps.
    assert_eq!(blocks, [70, 60, 50, 40, 30, 20, 20]);
}

#[test]
fn a_stream_is_left_without_waiting_for_its_layer() {
    let gate = Arc::new(Barrier::new(2));
    let held = Behaviour::Held(gate.clone());
    let Rig { mut generator, entered } = rig(&config("x", 3), held, false);
    assert!(!generator.wait_frame(Duration::ZERO).unwrap());
    entered.recv_timeout(PATIENCE).unwrap();
    within_patience(move || generator.leave());
    gate.wait();
    // Its thread notices after the layer, and is gone then: nobody tells of layers any more.
    assert_eq!(entered.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
}

fn devices(names: &str) -> Devices {
    names.parse().unwrap()
}

/// Frames of the embedded model differ by no more than one level, for numbers of any crew differ by
/// rounding only.
#[test]
fn the_number_of_workers_does_not_show() {
    for (history_policy, attention) in [
        (HistoryPolicy::Clean, AttentionMode::Bidirectional),
        (HistoryPolicy::Clean, AttentionMode::Causal),
        (HistoryPolicy::StageMatched, AttentionMode::Bidirectional),
    ] {
        let base = GeneratorConfig {
            history_policy,
            attention,
            cascade_width: 4,
            ..pocket("a red ball", 5)
        };
        let expected = run(&base);
        for names in ["cpu,cpu", "cpu,cpu,cpu"] {
            let frames = run(&GeneratorConfig { devices: devices(names), ..base.clone() });
            assert_eq!(frames.len(), expected.len());
            for (frame, expected) in frames.iter().zip(&expected) {
                let apart = frame.rgb.iter().zip(&expected.rgb).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(apart <= Some(1), "{apart:?} levels in frame {} on {names}", frame.index);
            }
        }
    }
}

#[test]
fn blocks_are_timed() {
    let mut generator = toy(&config("0123456789", 3));
    let controls = generator.controls();
    assert_eq!(controls.timing(), Timing::default());
    generator.by_ref().take(21).for_each(|frame| drop(frame.unwrap()));
    let Timing { denoise, decode, cost } = controls.timing();
    assert_eq!(cost, BlockCost { ticks: 5, exchanged_bytes: 0 });
    for times in [denoise, decode] {
        assert!(times.last > Duration::ZERO && times.mean <= times.p95, "{times:?}");
    }
}

#[test]
fn a_prompt_set_while_running_is_shown_without_a_block_to_wait_for() {
    let endless = GeneratorConfig { blocks: None, ..config(&"x".repeat(80), 1) };
    let mut generator = toy(&endless);
    let controls = generator.controls();
    let first = generator.next_frame().unwrap().unwrap();
    assert_eq!((first.index, lengths(&[first])), (0, vec![80]));
    controls.set_prompt("y".repeat(20));
    let begun = Instant::now();
    let is_old = |frame: &Frame| {
        assert!(begun.elapsed() < PATIENCE, "it never came");
        lengths(std::slice::from_ref(frame)) == [80]
    };
    let shown = generator.by_ref().map(Result::unwrap).skip_while(is_old).take(60);
    assert_eq!(lengths(&shown.collect::<Vec<_>>()), [20; 60]);
}

/// Of what nobody reads, one block is decoded and one is clean; the next one waits for a prompt as long as for a
/// reader.
#[test]
fn blocks_that_nobody_takes_are_not_denoised_ahead() {
    let config = GeneratorConfig { queue_blocks: 1, ..config(&"x".repeat(80), 6) };
    let layer = Duration::from_millis(100); // a prompt is encoded sooner
    let Rig { mut generator, entered } = rig(&config, Behaviour::Slow(layer), false);
    assert_eq!(generator.next_frame().unwrap().map(|frame| frame.index), Some(0));
    let passes = 5 + 5 + 4; // the third block's cache pass is for the fourth
    for _ in 0..passes * LAYERS {
        entered.recv_timeout(PATIENCE).unwrap();
    }
    assert!(entered.recv_timeout(3 * layer).is_err());
    generator.controls().set_prompt("y".repeat(20));
    let lengths = lengths(&all(&mut generator));
    assert_eq!(lengths.iter().filter(|&&length| length == 80).count(), 8 + 12 + 12);
}

#[test]
fn cancel_stops_a_blocked_read_and_resume_loses_nothing() {
    let config = config("0123456789", 9);
    let expected = all(&mut toy(&config));
    let layer = Duration::from_millis(3);
    let Rig { mut generator, entered } = rig(&config, Behaviour::Slow(layer), false);
    let controls = generator.controls();
    let reader = thread::spawn(move || {
        let (mut frames, mut cancels) = (Vec::new(), 0);
        loop {
            match generator.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, cancels),
                Err(Error::Cancelled) => {
                    cancels += 1;
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    for _ in 0..5 {
        (0..4).for_each(|_| entered.recv_timeout(PATIENCE).unwrap());
        controls.cancel();
        entered.try_iter().for_each(drop); // what began before
        thread::sleep(20 * layer);
        let late = entered.try_iter().count();
        assert!(late <= 1, "{late} layers while cancelled");
        controls.resume();
    }
    let (frames, cancels) = within_patience(move || reader.join().unwrap());
    assert!(cancels > 0);
    assert_eq!(frames, expected);
}

#[test]
fn restart_begins_again_with_another_seed_under_the_prompt_of_now() {
    let mut generator = toy(&config(&"x".repeat(80), 2));
    all(&mut generator);
    generator.controls().set_prompt("y".repeat(20));
    generator.restart(5);
    let frames = all(&mut generator);
    assert_eq!((frames.len(), frames[0].index), (21, 0));
    assert!(lengths(&frames).iter().all(|&length| length == 20));
}

#[test]
fn restart_takes_no_cancel_back() {
    let mut generator = toy(&config("four", 2));
    let controls = generator.controls();
    generator.next_frame().unwrap();
    controls.cancel();
    generator.restart(1);
    assert!(matches!(generator.next_frame(), Err(Error::Cancelled)));
    controls.resume();
    assert_eq!(lengths(&all(&mut generator)), [4; 21]);
}

/// Two blocks are decoded, or about to be, a third is clean and nobody takes it: the tick of its cache pass,
/// which starts no block, waits. A cut that comes now has it start the fourth.
fn cut_before_the_fourth_block(hold: Option<u64>) -> Generator {
    let config = GeneratorConfig { queue_blocks: 1, ..config("four", 6) };
    let Rig { mut generator, entered } = rig(&config, Behaviour::Work, false);
    let controls = generator.controls();
    controls.hold(hold);
    controls.set_prompt(Prompt { from_block: Some(3), .."older".into() });
    assert!(generator.wait_frame(PATIENCE).unwrap());
    for _ in 0..(5 + 5 + 4) * LAYERS {
        entered.recv_timeout(PATIENCE).unwrap();
    }
    let change = PromptChange { policy: PromptPolicy::Cut, ..PromptChange::default() };
    controls.set_prompt(Prompt { change: Some(change), .."the cut".into() });
    thread::sleep(SETTLED);
    generator
}

/// Long enough for a toy to encode a prompt on a busy machine.
const SETTLED: Duration = Duration::from_secs(2);

#[test]
fn a_block_that_a_cut_starts_hears_nothing_older_than_the_cut() {
    let mut generator = cut_before_the_fourth_block(None);
    let frames = lengths(&all(&mut generator));
    assert_eq!(frames, [&[4; 33][..], &[7; 36]].concat());
}

#[test]
fn a_block_that_a_cut_starts_can_be_held() {
    let mut generator = cut_before_the_fourth_block(Some(3));
    let shown: Vec<_> = generator.by_ref().take(33).map(Result::unwrap).collect();
    assert_eq!(lengths(&shown), [4; 33]);
    assert!(!generator.wait_frame(SETTLED).unwrap());
    generator.controls().hold(None);
    assert_eq!(lengths(&all(&mut generator)), [7; 36]);
}

#[test]
fn dropping_a_running_generator_ends_its_threads_within_a_layer() {
    let slow = Behaviour::Slow(Duration::from_millis(50));
    let Rig { mut generator, entered } = rig(&config("0123456789", 1000), slow, false);
    let reading = generator.controls();
    let reader = thread::spawn(move || generator.next_frame().map(|_| generator));
    entered.recv_timeout(PATIENCE).unwrap();
    reading.cancel();
    entered.try_iter().for_each(drop); // what began before
    assert!(matches!(reader.join().unwrap(), Err(Error::Cancelled)));
    // The toy, and its sender with it, is gone once the last thread is.
    let more = within_patience(move || entered.iter().count());
    assert!(more <= 1, "{more} layers more");
}

#[test]
fn a_failure_arrives_after_the_frames_before_it() {
    for behaviour in [Behaviour::FailAt(10), Behaviour::PanicAt(10)] {
        let mut generator = rig(&config("0123456789", 9), behaviour, false).generator;
        let (frames, error) = within_patience(move || {
            let mut frames = 0;
            loop {
                match generator.next_frame() {
                    Ok(Some(_)) => frames += 1,
                    Ok(None) => panic!("no error"),
                    Err(error) => return (frames, error),
                }
            }
        });
        assert_eq!(frames, 9 + 12, "two blocks of five passes each were made");
        assert!(error.to_string().contains("toy"), "{error}");
    }
}

#[test]
fn decoders_and_encoders_that_fail_end_the_stream() {
    let mut generator = rig(&config("0123456789", 9), Behaviour::Work, true).generator;
    let error = within_patience(move || generator.next_frame().unwrap_err());
    assert!(error.to_string().contains("toy decoder failure"), "{error}");
    let mut generator = toy(&config("refuse", 9));
    let error = within_patience(move || generator.next_frame().unwrap_err());
    assert!(error.to_string().contains("toy refusal"), "{error}");
}

#[test]
fn a_stream_that_failed_can_be_restarted() {
    let mut generator = rig(&config("0123456789", 3), Behaviour::FailAt(2), false).generator;
    assert!(generator.next_frame().is_err());
    generator.restart(0);
    assert_eq!(all(&mut generator).len(), 33);
}

#[test]
fn pocket_with_random_weights_makes_the_same_frames_every_time() {
    let config = GeneratorConfig { cascade_width: 2, ..config("a red ball", 2) };
    let run = |seed| run(&GeneratorConfig { seed, ..config.clone() });
    let frames = run(1);
    assert_eq!((frames.len(), frames[0].width, frames[0].height), (21, 16, 16));
    assert!(frames == run(1) && frames != run(2));
    let levels: std::collections::HashSet<u8> = frames[20].rgb.iter().copied().collect();
    assert!(levels.len() > 16, "a picture has more than {levels:?}");
}

#[test]
fn pocket_needs_no_files_and_its_frames_follow_the_seed_and_the_prompt() {
    let ball = pocket("a red ball", 2);
    let frames = run(&ball);
    assert_eq!((frames.len(), frames[0].width, frames[0].height), (21, 16, 16));
    assert!(frames == run(&ball));
    assert!(frames != run(&GeneratorConfig { seed: 1, ..ball.clone() }));
    assert!(frames != run(&pocket("a blue square at night", 2)), "the prompt reaches the picture");
    assert!(frames != run(&config("a red ball", 2)), "weights are not random");
}

#[test]
fn a_cascade_of_ones_own_makes_the_latents_of_the_stream() {
    let config = GeneratorConfig { cascade_width: 2, seed: 3, ..pocket("a red ball", 2) };
    let (parts, controls) = (Parts::load(&config, &Interrupt::default()), Controls::new(&config));
    let (parts, interrupt) = (parts.unwrap(), Interrupt::default());
    let mut decoder = parts.decoder.fresh();
    let mut stream = Generator::from_parts(parts, &config, controls.unwrap()).unwrap();
    let mut cascade = stream.cascade(&config.prompt).unwrap();
    let mut levels: Vec<u8> = Vec::new();
    while !cascade.is_finished() {
        let Some(clean) = cascade.tick(&interrupt).unwrap() else { continue };
        for frame in 0..clean.latent.dim(0).unwrap() {
            let pixels = decoder.step(&clean.latent.narrow(0, frame, 1).unwrap(), &interrupt);
            let pixels: Vec<f32> = pixels.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            levels.extend(pixels.iter().map(|value| (value * 255.0).round() as u8));
        }
    }
    let frames: Vec<u8> = all(&mut stream).into_iter().flat_map(|frame| frame.rgb).collect();
    assert_eq!(levels.len(), 21 * 16 * 16 * 3);
    let apart = levels.iter().zip(&frames).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(frames.len() == levels.len() && apart <= Some(1), "{apart:?} levels");
}

#[test]
fn any_prompt_makes_a_video() {
    let long = "a red ball bounces, ".repeat(500);
    let scripts =
        ["ein roter Ball fällt über den Strand", "красный мяч", "赤いボール", "كرة حمراء"];
    let odd = ["", " \n\t ", &long, "🔴⚽🏖️👩‍👩‍👧‍👦", "\0\u{202e}\u{fffd}", "<pad></s><unk>&nbsp;"];
    for prompt in scripts.iter().chain(&odd) {
        assert_eq!(run(&pocket(prompt, 1)).len(), 9, "{prompt}");
    }
}

#[test]
fn single_files_take_the_place_of_embedded_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (config, embedded) = (pocket("a red ball", 1), run(&pocket("a red ball", 1)));
    let architecture = config.model.architecture;
    let dit =
        write(folder.path(), "dit.safetensors", |vb| WanDit::new(&dit_config(architecture), vb));
    let with = |paths: WeightPaths| {
        let weights = WeightsSource::Files(paths);
        Generator::new(&GeneratorConfig { weights, ..config.clone() })
    };
    let paths = WeightPaths { dit: Some(dit.clone()), ..WeightPaths::default() };
    let own = all(&mut with(paths).unwrap());
    assert!(own.len() == 9 && own != embedded);
    let paths = WeightPaths { decoder: Some(dit), ..WeightPaths::default() };
    let error = with(paths).unwrap_err().to_string();
    assert!(error.contains("dit.safetensors: ") && error.contains("missing"), "{error}");
}

#[test]
fn an_embedded_file_of_another_network_is_refused_by_name() {
    let text = include_str!("../models/pocket.toml").replace("pocket/vae.", "pocket/dit.");
    let model = Manifest::parse(Path::new("m"), &text).unwrap();
    let error = Generator::new(&GeneratorConfig { model, ..pocket("", 1) }).unwrap_err();
    assert!(matches!(error, Error::Weights(checkpoint::Error::Mismatch { .. })), "{error}");
    assert!(error.to_string().starts_with("pocket/dit.safetensors (embedded): "), "{error}");
}

#[test]
fn a_decoder_that_the_model_lacks_must_be_named_or_random() {
    for decoder in [Decoder::Light, Decoder::Tiny, Decoder::LightTiny] {
        let config = GeneratorConfig { decoder, ..pocket("", 1) };
        let error = config.validate().unwrap_err();
        assert!(matches!(error, Error::Config { field: "decoder", .. }), "{error}");
        assert!(error.to_string().contains("pocket has files for full;"), "{error}");
        let named = WeightPaths { decoder: Some("here.pth".into()), ..WeightPaths::default() };
        for weights in [WeightsSource::Files(named), WeightsSource::Random { seed: 0 }] {
            GeneratorConfig { weights, ..config.clone() }.validate().unwrap();
        }
    }
}

#[test]
fn every_dtype_and_decoder_makes_frames() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let config = GeneratorConfig { dtype, ..config("a red ball", 1) };
        assert_eq!(run(&config).len(), 9, "{dtype:?}");
    }
    for decoder in [Decoder::Light, Decoder::Tiny, Decoder::LightTiny] {
        let config = GeneratorConfig { decoder, ..config("a red ball", 2) };
        let frames = run(&config);
        assert_eq!((frames.len(), frames[0].width), (21, 16), "{decoder:?}");
    }
}

#[test]
fn missing_files_are_listed() {
    let model = Manifest::named("longlive-1.3b").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let paths = WeightPaths {
        folder: Some(folder.path().into()),
        tokenizer: Some("here.json".into()),
        ..WeightPaths::default()
    };
    let weights = WeightsSource::Files(paths);
    let decoder = Decoder::Tiny;
    let mut config = GeneratorConfig { weights, decoder, ..GeneratorConfig::new(model) };
    let error = config.check_weights().unwrap_err();
    assert!(matches!(error, Error::MissingWeights { .. }), "{error}");
    let error = error.to_string();
    assert_eq!(Generator::new(&config).unwrap_err().to_string(), error);
    for file in ["longlive_base.pt", "lora.pt", "umt5-xxl-enc-bf16.pth", "taew2_1.safetensors"] {
        assert!(error.contains(file), "{file} is not in {error}");
    }
    for file in ["Wan2.1_VAE.pth", "tokenizer.json"] {
        assert!(!error.contains(file), "{file} is in {error}");
    }
    let all = "fetch longlive-1.3b --role dit --role lora --role text-encoder --role taehv`";
    assert!(error.contains(all), "a small decoder is not fetched unasked: {error}");
    config.weights = WeightsSource::Files(WeightPaths {
        folder: None,
        dit: Some("dit.pt".into()),
        loras: vec!["style.pt".into()],
        text_encoder: Some("text.pth".into()),
        tokenizer: Some("tokenizer.json".into()),
        decoder: Some("decoder.pth".into()),
    });
    let error = config.check_weights().unwrap_err().to_string();
    let expected = "longlive-1.3b: not on disk: lora.pt; `blockcascade fetch longlive-1.3b` gets what \
                    is missing";
    assert_eq!(error, expected, "no other LoRA stands for its own");
    config.model.files.retain(|file| file.role != Role::Lora);
    config.check_weights().unwrap();
}

#[test]
fn files_that_are_not_the_models_are_refused_by_name() {
    let fixture =
        |file: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file);
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    std::fs::write(&tokenizer, "{}").unwrap();
    let mut paths = WeightPaths {
        text_encoder: Some("none.pth".into()),
        tokenizer: Some(tokenizer.clone()),
        ..WeightPaths::default()
    };
    let refuse = |paths: &WeightPaths| {
        let weights = WeightsSource::Files(paths.clone());
        let config = GeneratorConfig { weights, ..config("", 1) };
        Generator::new(&config).unwrap_err().to_string()
    };
    assert!(refuse(&paths).contains("tokenizer.json"), "{}", refuse(&paths));
    std::fs::write(&tokenizer, TOKENIZER).unwrap();
    assert!(refuse(&paths).contains("cannot be read"), "{}", refuse(&paths));
    paths.text_encoder = Some(fixture("umt5/model.safetensors"));
    let error = refuse(&paths);
    assert!(error.contains("umt5/model.safetensors") && error.contains("shape"), "{error}");
}

/// Writes all tensors that a network asks for, random ones, and returns the file.
fn write<T>(
    folder: &Path,
    name: &str,
    build: impl FnOnce(VarBuilder<'static>) -> CandleResult<T>,
) -> PathBuf {
    let vb = checkpoint::random(3, DType::F32, &Device::Cpu);
    let tensors = checkpoint::requested(build).unwrap().into_iter();
    let tensors = tensors.map(|t| (t.name.clone(), vb.get(t.shape, &t.name).unwrap()));
    let tensors: HashMap<String, Tensor> = tensors.collect();
    let path = folder.join(name);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    path
}

#[test]
fn a_model_runs_from_its_files_and_loading_can_be_cancelled() {
    let architecture = Manifest::named("pocket").unwrap().architecture;
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    std::fs::write(&tokenizer, TOKENIZER).unwrap();
    let dit =
        write(folder.path(), "dit.safetensors", |vb| WanDit::new(&dit_config(architecture), vb));
    let (text, vae) = (text_config(architecture), vae_config(architecture));
    let text_encoder = write(folder.path(), "text.safetensors", |vb| Umt5Encoder::new(&text, vb));
    let decoder = write(folder.path(), "vae.safetensors", |vb| WanDecoder::new(&vae, vb));
    let weights = WeightsSource::Files(WeightPaths {
        dit: Some(dit),
        text_encoder: Some(text_encoder),
        tokenizer: Some(tokenizer),
        decoder: Some(decoder),
        ..WeightPaths::default()
    });
    let config = GeneratorConfig { weights, ..config("a", 2) };
    let frames = run(&config);
    assert_eq!(frames.len(), 21);
    let other = GeneratorConfig { prompt: "aa".into(), ..config.clone() };
    assert!(frames != run(&other), "the prompt reaches the picture");

    let controls = Controls::new(&config).unwrap();
    controls.cancel();
    let cancelled = Generator::with_controls(&config, controls.clone());
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
    controls.resume();
    let mut generator = Generator::with_controls(&config, controls).unwrap();
    assert!(all(&mut generator) == frames);
}

/// The smallest vocabulary that has umT5's pad, end and unknown tokens.
const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
    "decoder": null, "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": false,
    "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["a", -1.0]]}}"#;

#[test]
fn generators_move_between_threads_and_controls_are_shared() {
    fn sends<T: Send>() {}
    fn shares<T: Send + Sync>() {}
    sends::<Generator>();
    shares::<Controls>();
}

#[test]
fn settings_that_make_no_sense_are_named() {
    type Change = fn(&mut GeneratorConfig);
    let cases: [(&str, &str, Change); 17] = [
        ("size", "250x144", |c| c.size = Some(FrameSize { width: 250, height: 144 })),
        ("size", "256x0", |c| c.size = Some(FrameSize { width: 256, height: 0 })),
        ("cascade-width", "got 0", |c| c.cascade_width = 0),
        ("cascade-width", "1 to 5", |c| c.cascade_width = 6),
        ("cascade-width", "1 to 4", |c| {
            c.cascade_width = 5;
            c.history_policy = HistoryPolicy::StageMatched;
        }),
        ("devices", "got 2, expected at most 1", |c| c.devices = devices("cpu,cpu")),
        ("devices", "auto among several", |c| {
            c.cascade_width = 2;
            c.devices = devices("cpu,auto");
        }),
        ("threads", "got 0", |c| c.threads = Some(0)),
        ("prompt-policy", "recache", |c| {
            c.history_policy = HistoryPolicy::StageMatched;
            c.change.policy = PromptPolicy::Recache;
        }),
        ("queue-blocks", "got 0", |c| c.queue_blocks = 0),
        ("blocks", "got 0", |c| c.blocks = Some(0)),
        ("window", "0 to 1024", |c| c.model.preset.window = 5000),
        ("sink", "got 5000", |c| c.model.preset.sink = 5000),
        ("denoising-steps", "[]", |c| c.model.preset.denoising_steps = vec![]),
        ("denoising-steps", "[500, 750]", |c| c.model.preset.denoising_steps = vec![500, 750]),
        ("timestep-shift", "got NaN", |c| c.model.preset.timestep_shift = f64::NAN),
        ("timestep-shift", "1 to 100", |c| c.model.preset.timestep_shift = 0.5),
    ];
    for (field, said, change) in cases {
        let mut config = config("", 1);
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(field) && error.contains(said), "{field}: {error}");
        assert!(Generator::new(&config).is_err());
    }
    assert!("12by7".parse::<FrameSize>().is_err());
}
