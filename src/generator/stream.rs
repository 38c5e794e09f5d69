//! A stream's three threads: text, denoising, decoding.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use candle_core::{Error as Cause, Tensor};

use super::Parts;
use super::conditioning::Conditioning;
use super::config::Plan;
use super::error::{Error, Result};
use super::frames::{Frame, FrameSize, Place};
use super::gate::{Closed, Gate};
use super::prompt::{AppliedPrompt, Desk, Due, PromptId};
use super::queue::{Popped, Queue};
use super::timing::{Meter, Timing};
use crate::cascade::{BlockCost, Cascade, CleanBlock};
use crate::model::{FrameDecoder, TextEncoder, VideoModel};

/// A block on its way to the decoder.
#[derive(Debug)]
struct Clean {
    latent: Tensor,
    index: u64,
    prompt: Arc<AppliedPrompt>,
}

/// What the threads of a stream and its reader share.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) gate: Gate,
    pub(super) desk: Desk,
    pub(super) frames: Queue<Result<Frame>>,
    /// One clean block waits while another is decoded.
    latents: Queue<Result<Clean>>,
    denoising: Meter,
    decoding: Meter,
    /// Of the newest clean block.
    cost: Mutex<BlockCost>,
}

impl Line {
    /// For at most `queue_frames` decoded frames; streams start from `prompt`.
    pub(super) fn new(queue_frames: usize, prompt: String) -> Self {
        Self {
            gate: Gate::default(),
            desk: Desk::new(prompt),
            frames: Queue::new(queue_frames),
            latents: Queue::new(1),
            denoising: Meter::default(),
            decoding: Meter::default(),
            cost: Mutex::default(),
        }
    }

    pub(super) fn timing(&self) -> Timing {
        let cost = *self.cost.lock().unwrap_or_else(PoisonError::into_inner);
        Timing { denoise: self.denoising.times(), decode: self.decoding.times(), cost }
    }

    pub(super) fn close(&self) {
        self.wind_down();
        self.frames.close();
    }

    /// Ends the threads before the reader; what is decoded can still be read.
    fn wind_down(&self) {
        self.gate.close();
        self.desk.close();
        self.latents.close();
    }

    fn reset(&self) {
        self.gate.reset();
        self.desk.reset();
        self.latents.reset();
        self.frames.reset();
        self.denoising.reset();
        self.decoding.reset();
        self.spent(BlockCost::default());
    }

    fn spent(&self, cost: BlockCost) {
        *self.cost.lock().unwrap_or_else(PoisonError::into_inner) = cost;
    }
}

/// Why a thread ends before its work does.
enum Stop {
    Closed,
    Failed(Error),
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

/// The running threads.
#[derive(Debug, Default)]
pub(super) struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    pub(super) fn start(parts: &Parts, plan: &Plan, line: &Arc<Line>) -> Result<Self> {
        let mut threads = Self::default();
        let started = threads.start_all(parts, plan, line);
        if let Err(cause) = started {
            threads.stop(line);
            return Err(Error::worker("starting a thread", Cause::wrap(cause)));
        }
        Ok(threads)
    }

    fn start_all(&mut self, parts: &Parts, plan: &Plan, line: &Arc<Line>) -> io::Result<()> {
        let (text, mut decoder) = (parts.text.clone(), parts.decoder.fresh());
        let models = parts.models.clone();
        let (plan, size) = (plan.clone(), plan.size);
        let (l1, l2, l3) = (line.clone(), line.clone(), line.clone());
        self.spawn("blockcascade-text", move || {
            l1.guard("encoding a prompt", &l1.latents, || encode(&*text, &l1));
            l1.desk.close();
        })?;
        self.spawn("blockcascade-denoise", move || {
            l2.guard("denoising", &l2.latents, || denoise(&models, &plan, &l2));
            l2.latents.end();
        })?;
        self.spawn("blockcascade-decode", move || {
            l3.guard("decoding", &l3.frames, || decode(&mut *decoder, size, &l3));
            l3.frames.end();
            l3.wind_down();
        })
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.0.push(Builder::new().name(name.into()).spawn(work)?);
        Ok(())
    }

    /// Ends the stream; its threads stop within a layer, and nobody waits for them.
    pub(super) fn leave(self, line: &Line) {
        line.close();
    }

    /// Ends the stream and waits for its threads, at most one layer's work.
    pub(super) fn stop(self, line: &Line) {
        line.close();
        for thread in self.0 {
            if let Err(panic) = thread.join() {
                log::error!("a thread of the stream {}", panic_message(&*panic));
            }
        }
        line.reset();
    }
}

impl Line {
    /// Runs a thread's work; a failure or a panic becomes the last thing that the next thread gets.
    fn guard<T>(&self, work: &str, out: &Queue<Result<T>>, run: impl FnOnce() -> Result<(), Stop>) {
        let failure = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(()) | Err(Stop::Closed)) => return,
            Ok(Err(Stop::Failed(error))) => error,
            Err(panic) => Error::worker(work, Cause::msg(panic_message(&*panic))),
        };
        if out.push(Err(failure)).is_err() {
            log::debug!("{work} failed in a stream that is already over");
        }
    }
}

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".into()))
}

fn encode(encoder: &dyn TextEncoder, line: &Line) -> Result<(), Stop> {
    loop {
        let job = line.desk.next_job()?;
        let embedding = line.gate.persist(|interrupt| encoder.encode(&job.text, interrupt))?;
        line.desk.encoded(&job, embedding);
    }
}

fn denoise(models: &[Arc<dyn VideoModel>], plan: &Plan, line: &Line) -> Result<(), Stop> {
    let failed = |cause| failed("denoising", cause);
    let mut conditioning = Conditioning::new(models.to_vec(), plan.change);
    conditioning.turn(line.desk.due(Some(0))?.ok_or(Stop::Closed)?).map_err(unheard)?;
    let (text, _) = conditioning.advance(true).map_err(unheard)?.ok_or(Stop::Closed)?;
    let mut cascade = plan.cascade(models, text).map_err(failed)?;
    while !cascade.is_finished() {
        // What nobody takes yet is not denoised yet: a new prompt can still touch it.
        line.latents.wait_for_room()?;
        hear(line, &mut conditioning, &mut cascade)?;
        let tick = |interrupt: &_| line.denoising.time(|| awaited(cascade.tick(interrupt)?));
        let clean = line.gate.persist(tick)?.map_err(failed)?;
        if let Some(CleanBlock { index, latent, text, cost }) = clean {
            log::debug!("block {index} is clean");
            line.spent(cost);
            line.denoising.block();
            line.latents.push(Ok(Clean { latent, index, prompt: conditioning.prompt(&text) }))?;
        }
    }
    Ok(())
}

/// A clean block when it is there: a GPU's is only queued, which neither clocks nor other streams know.
fn awaited(clean: Option<CleanBlock>) -> candle_core::Result<Option<CleanBlock>> {
    if let Some(clean) = &clean {
        clean.latent.device().synchronize()?;
    }
    Ok(clean)
}

/// Conditions the coming tick on what is due. After a cut it may start a block that it would not have
/// started: that one is asked for, too, and hears nothing older than the cut.
fn hear(line: &Line, conditioning: &mut Conditioning, cascade: &mut Cascade) -> Result<(), Stop> {
    let starts = cascade.admits();
    let due = line.desk.due(starts)?;
    let newest = due.as_ref().map_or(PromptId::default(), |due| due.prompt.id);
    tell(due, starts, conditioning, cascade)?;
    let now_starts = cascade.admits();
    if now_starts == starts {
        return Ok(());
    }
    match line.desk.due_after(newest, now_starts)?.filter(|due| due.prompt.id > newest) {
        None => Ok(()),
        due => tell(due, now_starts, conditioning, cascade),
    }
}

/// Tells blocks of a new prompt, or of the next place on the way to the last one.
fn tell(
    due: Option<Due>,
    starts: Option<u64>,
    conditioning: &mut Conditioning,
    cascade: &mut Cascade,
) -> Result<(), Stop> {
    if let Some(due) = due {
        conditioning.turn(due).map_err(unheard)?;
    }
    if let Some((text, policy)) = conditioning.advance(starts.is_some()).map_err(unheard)? {
        cascade.set_text(text, policy);
    }
    Ok(())
}

fn decode(decoder: &mut dyn FrameDecoder, size: FrameSize, line: &Line) -> Result<(), Stop> {
    let mut index = 0;
    loop {
        let clean = match line.latents.pop() {
            Popped::Item(clean) => clean.map_err(Stop::Failed)?,
            Popped::End | Popped::Cancelled => return Ok(()),
        };
        let latents = &clean.latent;
        // One latent frame at a time: its frames leave before the next is decoded.
        for frame in 0..latents.dims().first().copied().unwrap_or(0) {
            let latent = latents.narrow(0, frame, 1);
            let latent = latent.map_err(|cause| failed("decoding", cause))?;
            let place = Place { frame: index, block: clean.index, prompt: clean.prompt.clone() };
            let mut frames = |interrupt: &_| {
                Frame::from_pixels(&decoder.step(&latent, interrupt)?, size, place.clone())
            };
            let step = |interrupt: &_| line.decoding.time(|| frames(interrupt));
            for frame in line.gate.persist(step)?.map_err(|cause| failed("decoding", cause))? {
                index += 1;
                line.frames.push(Ok(frame))?;
            }
        }
        line.decoding.block();
    }
}

fn unheard(cause: Cause) -> Stop {
    failed("encoding a prompt", cause)
}

fn failed(work: &str, cause: Cause) -> Stop {
    Stop::Failed(Error::worker(work, cause))
}
