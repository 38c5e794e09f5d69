//! A stream's three threads: text, denoising, decoding.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use candle_core::{Error as Cause, Tensor};

use super::Parts;
use super::config::Plan;
use super::error::{Error, Result};
use super::frames::{Frame, FrameSize, Place};
use super::gate::{Closed, Gate};
use super::noise::SeededNoise;
use super::prompt::{AppliedPrompt, Desk, Due};
use super::queue::{Popped, Queue};
use crate::cascade::{Cascade, CleanBlock, PromptPolicy};
use crate::model::{FrameDecoder, TextContext, TextEncoder, VideoModel};

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
}

impl Line {
    /// For at most `queue_frames` decoded frames; streams start from `prompt`.
    pub(super) fn new(queue_frames: usize, prompt: String) -> Self {
        Self {
            gate: Gate::default(),
            desk: Desk::new(prompt),
            frames: Queue::new(queue_frames),
            latents: Queue::new(1),
        }
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

/// The running threads; they give back what they were lent.
#[derive(Debug)]
pub(super) struct Threads {
    text: JoinHandle<Box<dyn TextEncoder>>,
    denoise: JoinHandle<Arc<dyn VideoModel>>,
    decode: JoinHandle<Box<dyn FrameDecoder>>,
}

impl Threads {
    pub(super) fn start(parts: Parts, plan: &Plan, line: &Arc<Line>) -> Result<Self> {
        let Parts { text, model, mut decoder } = parts;
        decoder.reset();
        let (plan, size) = (plan.clone(), plan.size);
        let (l1, l2, l3) = (line.clone(), line.clone(), line.clone());
        Ok(Self {
            text: spawn("blockcascade-text", move || {
                l1.guard("encoding a prompt", &l1.latents, || encode(&*text, &l1));
                l1.desk.close();
                text
            })?,
            denoise: spawn("blockcascade-denoise", move || {
                l2.guard("denoising", &l2.latents, || denoise(&model, &plan, &l2));
                l2.latents.end();
                model
            })?,
            decode: spawn("blockcascade-decode", move || {
                l3.guard("decoding", &l3.frames, || decode(&mut *decoder, size, &l3));
                l3.frames.end();
                l3.wind_down();
                decoder
            })?,
        })
    }

    /// Ends the stream and waits for its threads, at most one layer's work.
    pub(super) fn stop(self, line: &Line) -> Result<Parts> {
        line.close();
        let lost = || Error::worker("stopping", Cause::msg("a thread of the stream panicked"));
        let text = self.text.join().map_err(|_| lost());
        let model = self.denoise.join().map_err(|_| lost());
        let decoder = self.decode.join().map_err(|_| lost());
        line.reset();
        Ok(Parts { text: text?, model: model?, decoder: decoder? })
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let thread = Builder::new().name(name.into()).spawn(work);
    thread.map_err(|error| Error::worker("starting a thread", Cause::wrap(error)))
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

fn denoise(model: &Arc<dyn VideoModel>, plan: &Plan, line: &Line) -> Result<(), Stop> {
    let first = line.desk.due(Some(0))?.ok_or(Stop::Closed)?;
    let noise = Arc::new(SeededNoise { seed: plan.seed });
    let mut heard = Heard::default();
    let (text_of_first, config) = (heard.text(&**model, first)?, plan.cascade.clone());
    let mut cascade =
        Cascade::new(model.clone(), plan.schedule.clone(), noise, text_of_first, config);
    while !cascade.is_finished() {
        if let Some(due) = line.desk.due(cascade.admits())? {
            let policy = if due.scheduled { PromptPolicy::NextBlock } else { plan.prompt_policy };
            cascade.set_text(heard.text(&**model, due)?, policy);
        }
        let block = line.gate.persist(|interrupt| cascade.tick(interrupt))?;
        if let Some(CleanBlock { index, latent, text }) =
            block.map_err(|cause| failed("denoising", cause))?
        {
            log::debug!("block {index} is clean");
            line.latents.push(Ok(Clean { latent, index, prompt: heard.prompt(&text) }))?;
        }
    }
    Ok(())
}

/// The prompts that blocks in flight are conditioned on, and what each said.
#[derive(Default)]
struct Heard {
    prompts: Vec<(Arc<TextContext>, Arc<AppliedPrompt>)>,
}

impl Heard {
    /// What blocks are conditioned on from now on.
    fn text(&mut self, model: &dyn VideoModel, due: Due) -> Result<Arc<TextContext>, Stop> {
        let context = due.text.and_then(|embedding| model.text_context(&embedding));
        let context = Arc::new(context.map_err(|cause| failed("encoding a prompt", cause))?);
        // What nobody else holds any more was heard by the last block that could.
        self.prompts.retain(|(context, _)| Arc::strong_count(context) > 1);
        self.prompts.push((context.clone(), Arc::new(due.prompt)));
        Ok(context)
    }

    fn prompt(&self, text: &Arc<TextContext>) -> Arc<AppliedPrompt> {
        let heard = self.prompts.iter().find(|(context, _)| Arc::ptr_eq(context, text));
        heard.map(|(_, prompt)| prompt.clone()).unwrap_or_default()
    }
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
            let step = |interrupt: &_| decoder.step(&latents.narrow(0, frame, 1)?, interrupt);
            let pixels = line.gate.persist(step)?;
            let place = Place { frame: index, block: clean.index, prompt: clean.prompt.clone() };
            let frames = pixels.and_then(|pixels| Frame::from_pixels(&pixels, size, place));
            for frame in frames.map_err(|cause| failed("decoding", cause))? {
                index += 1;
                line.frames.push(Ok(frame))?;
            }
        }
    }
}

fn failed(work: &str, cause: Cause) -> Stop {
    Stop::Failed(Error::worker(work, cause))
}
