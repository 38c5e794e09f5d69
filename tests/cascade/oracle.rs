//! The definition of the cascade as a slow, plain loop over ticks.
//!
//! Shares nothing with the code under test: its own arithmetic for timetable, sigmas, renoising,
//! history and positions, and one forward for each block. K/V of other blocks come from earlier
//! rounds of the same tick: layer `n` of a block depends on its peers' layers below `n` only, so
//! after `layers` rounds every key is what it would be in one forward of all.

use candle_core::{DType, Device, Result, Tensor};
use gstblockcascade::cascade::{
    AttentionMode, HistoryBudget, HistoryPolicy, PromptPolicy, SinkPosition,
};
use gstblockcascade::model::{DenoiseInput, Kv, KvExchange, Visible};

use super::case::{Case, FRAMES, SHIFT, Subject};

/// What a tick does as seen from outside.
#[derive(Clone, Debug)]
pub struct Beat {
    /// The block that starts.
    pub admits: Option<u64>,
    /// The block that becomes clean, and its latent.
    pub clean: Option<(u64, Tensor)>,
}

/// All ticks of a stream, to the one in which its last block becomes clean.
pub fn run(subject: &Subject, case: &Case) -> Result<Vec<Beat>> {
    let mut oracle = Oracle {
        subject,
        case,
        text: 0,
        flying: Vec::new(),
        past: vec![Vec::new(); case.steps.len()],
        clean: Vec::new(),
        begun: (0, 0),
    };
    let mut beats = Vec::new();
    while (oracle.clean.len() as u64) < case.blocks {
        beats.push(oracle.tick(beats.len() as u64)?);
    }
    Ok(beats)
}

/// The published algorithm: one block after the other, over all of history, under one text.
pub fn sequential(subject: &Subject, case: &Case) -> Result<Vec<Tensor>> {
    let mut past: Vec<Vec<Kv>> = Vec::new();
    let mut latents = Vec::new();
    for index in 0..case.blocks {
        let mut x = subject.noise(index, 0)?;
        for (step, &number) in case.steps.iter().enumerate() {
            let block = Flying { index, x: x.clone(), text: 0 };
            let (flow, _) = block.alone(subject, timestep(number), &past)?;
            let next = case.steps.get(step + 1);
            x = denoised(&x, &flow, sigma(number))?;
            if let Some(&next) = next {
                x = renoised(&x, &subject.noise(index, step + 1)?, sigma(next))?;
            }
        }
        let block = Flying { index, x: x.clone(), text: 0 };
        past.push(block.alone(subject, case.context_timestep, &past)?.1);
        latents.push(x);
    }
    Ok(latents)
}

struct Oracle<'a> {
    subject: &'a Subject,
    case: &'a Case,
    /// Which text blocks start under.
    text: usize,
    /// Blocks in flight, oldest first.
    flying: Vec<Flying>,
    /// K/V that all blocks left since the last cut, by block and layer: one list for each pass, or
    /// the first for all.
    past: Vec<Vec<Vec<Kv>>>,
    /// The latents of all clean blocks there ever were.
    clean: Vec<Tensor>,
    /// Tick and block of the last cut, or of the start.
    begun: (u64, u64),
}

struct Flying {
    index: u64,
    x: Tensor,
    text: usize,
}

impl Oracle<'_> {
    fn tick(&mut self, tick: u64) -> Result<Beat> {
        let stagger = self.case.stagger as u64;
        self.switch(tick)?;
        let since = tick - self.begun.0;
        let next = self.begun.1 + since / stagger;
        let admits = (since.is_multiple_of(stagger) && next < self.case.blocks).then_some(next);
        if let Some(index) = admits {
            let x = self.subject.noise(index, 0)?;
            self.flying.push(Flying { index, x, text: self.text });
        }
        let passes: Vec<usize> = self.flying.iter().map(|block| self.pass(block, tick)).collect();
        let (flows, kv) = self.forward(&passes)?;
        let mut clean = None;
        for ((block, &pass), flow) in self.flying.iter_mut().zip(&passes).zip(&flows) {
            let Some(&number) = self.case.steps.get(pass) else { continue };
            block.x = denoised(&block.x, flow, sigma(number))?;
            match self.case.steps.get(pass + 1) {
                Some(&next) => {
                    let noise = self.subject.noise(block.index, pass + 1)?;
                    block.x = renoised(&block.x, &noise, sigma(next))?;
                }
                None => clean = Some((block.index, block.x.clone())),
            }
        }
        self.clean.extend(clean.iter().map(|(_, latent)| latent.clone()));
        self.leave(&passes, kv);
        Ok(Beat { admits, clean })
    }

    fn pass(&self, block: &Flying, tick: u64) -> usize {
        let (begun, first) = self.begun;
        (tick - begun - (block.index - first) * self.case.stagger as u64) as usize
    }

    /// What blocks leave behind, and the one that is done.
    fn leave(&mut self, passes: &[usize], kv: Vec<Vec<Kv>>) {
        let is_done = passes.first().is_some_and(|pass| pass + 1 == self.case.passes());
        match self.case.rules.policy {
            HistoryPolicy::StageMatched => {
                passes.iter().zip(kv).for_each(|(&pass, kv)| self.past[pass].push(kv));
            }
            HistoryPolicy::Clean if is_done => self.past[0].extend(kv.into_iter().next()),
            HistoryPolicy::Clean => {}
        }
        if is_done {
            self.flying.remove(0);
        }
    }

    fn switch(&mut self, tick: u64) -> Result<()> {
        let Some(switch) = self.case.switch.filter(|switch| switch.tick == tick) else {
            return Ok(());
        };
        self.text = 1;
        let (steps, begun) = (self.case.steps.len(), self.begun);
        let stagger = self.case.stagger as u64;
        for block in &mut self.flying {
            let pass = tick - begun.0 - (block.index - begun.1) * stagger;
            block.text = match switch.policy {
                PromptPolicy::InFlight => usize::from(pass < steps as u64),
                PromptPolicy::NextBlock => 0,
                PromptPolicy::Recache | PromptPolicy::Cut => 1,
            };
        }
        match switch.policy {
            PromptPolicy::Recache if self.case.rules.policy == HistoryPolicy::Clean => {
                self.recache()?;
            }
            PromptPolicy::Cut => {
                self.flying.clear();
                self.past.iter_mut().for_each(Vec::clear);
                self.begun = (tick, self.clean.len() as u64);
            }
            _ => {}
        }
        Ok(())
    }

    /// Computes what is kept anew under the second text: all blocks together, behind the sink once
    /// the window has rolled past it.
    fn recache(&mut self) -> Result<()> {
        let (past, limits) = (&self.past[0], self.case.rules.limits);
        let sink = limits.sink.min(past.len());
        let window = limits.window.unwrap_or(past.len()).min(past.len() - sink);
        let has_rolled = past.len() > sink + window;
        let start = if has_rolled { past.len() - window } else { 0 };
        let before = if has_rolled { self.sink(past, start)? } else { Vec::new() };
        let again = |place: usize| {
            let index = self.begun.1 + (start + place) as u64;
            Flying { index, x: self.clean[index as usize].clone(), text: 1 }
        };
        let blocks: Vec<Flying> = (0..past.len() - start).map(again).collect();
        let mut kv: Vec<Vec<Kv>> = vec![Vec::new(); blocks.len()];
        for _round in 0..=self.subject.model.spec().layers {
            let round = blocks.iter().enumerate().map(|(place, block)| {
                let (older, younger) = (&kv[..place], &kv[place + 1..]);
                let view = View { past: &before, older, younger, own: Vec::new() };
                Ok(block.forward(self.subject, self.case.context_timestep, view)?.1)
            });
            kv = round.collect::<Result<_>>()?;
        }
        self.past[0].truncate(start);
        self.past[0].extend(kv);
        Ok(())
    }

    /// Flow and K/V of every block in flight, each computed alone.
    fn forward(&self, passes: &[usize]) -> Result<(Vec<Tensor>, Vec<Vec<Kv>>)> {
        let mut kv: Vec<Vec<Kv>> = vec![Vec::new(); self.flying.len()];
        let mut flows = Vec::new();
        for _round in 0..=self.subject.model.spec().layers {
            let round =
                self.flying.iter().zip(passes).enumerate().map(|(place, (block, &pass))| {
                    let number = self.case.steps.get(pass);
                    let timestep = number.map_or(self.case.context_timestep, |&n| timestep(n));
                    let (older, younger) = (&kv[..place], &kv[place + 1..]);
                    let younger = match self.case.attention {
                        AttentionMode::Bidirectional => younger,
                        AttentionMode::Causal => &[],
                    };
                    let (past, in_flight) = match self.case.rules.policy {
                        HistoryPolicy::Clean => (&self.past[0], self.flying.len()),
                        HistoryPolicy::StageMatched => (&self.past[pass], 1),
                    };
                    let past = self.seen_past(past, in_flight)?;
                    let view = match self.case.rules.policy {
                        HistoryPolicy::Clean => {
                            View { past: &past, older, younger, own: Vec::new() }
                        }
                        HistoryPolicy::StageMatched => View::alone(&past),
                    };
                    block.forward(self.subject, timestep, view)
                });
            (flows, kv) = round.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        }
        Ok((flows, kv))
    }

    /// Sink and window of a past, keys where a tick with so many blocks sees them.
    fn seen_past(&self, past: &[Vec<Kv>], in_flight: usize) -> Result<Vec<Vec<Kv>>> {
        let limits = self.case.rules.limits;
        let rolled = past.len() - limits.sink.min(past.len());
        let mut most = limits.window.unwrap_or(rolled);
        if let (HistoryBudget::Constant, Some(window)) = (self.case.rules.budget, limits.window) {
            let total = limits.sink + window + 1; // as in sequential generation
            most = most.min(total.saturating_sub(limits.sink + in_flight).max(1));
        }
        let start = past.len() - rolled.min(most);
        let mut seen = self.sink(past, start)?;
        seen.extend_from_slice(&past[start..]);
        Ok(seen)
    }

    /// The sink, keys where they are seen by what comes behind a window that starts there.
    fn sink(&self, past: &[Vec<Kv>], start: usize) -> Result<Vec<Vec<Kv>>> {
        let sink = &past[..self.case.rules.limits.sink.min(past.len())];
        let distance = match self.case.rules.sink_position {
            SinkPosition::Rebased => (start - sink.len()) * FRAMES,
            SinkPosition::Absolute => 0,
        };
        let at = |kv: &Kv| Ok(Kv { k: turned(&kv.k, distance)?, v: kv.v.clone() });
        sink.iter().map(|block| block.iter().map(at).collect()).collect()
    }
}

impl Flying {
    fn forward(
        &self,
        subject: &Subject,
        timestep: f64,
        mut view: View<'_>,
    ) -> Result<(Tensor, Vec<Kv>)> {
        let input = DenoiseInput {
            latent: &self.x,
            first_frame: self.index as usize * FRAMES,
            timesteps: &[timestep; FRAMES],
            text: &subject.texts[self.text],
        };
        let flow = subject.model.predict_flow(&[input], &mut view)?.remove(0);
        Ok((flow, view.own))
    }

    fn alone(
        &self,
        subject: &Subject,
        timestep: f64,
        past: &[Vec<Kv>],
    ) -> Result<(Tensor, Vec<Kv>)> {
        self.forward(subject, timestep, View::alone(past))
    }
}

/// What one block sees; K/V by block and layer, those of peers as far as they are known.
struct View<'a> {
    past: &'a [Vec<Kv>],
    older: &'a [Vec<Kv>],
    younger: &'a [Vec<Kv>],
    own: Vec<Kv>,
}

impl<'a> View<'a> {
    fn alone(past: &'a [Vec<Kv>]) -> Self {
        Self { past, older: &[], younger: &[], own: Vec::new() }
    }
}

impl KvExchange for View<'_> {
    fn offer(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible<Option<Kv>>> {
        let of = |blocks: &[Vec<Kv>]| -> Vec<Kv> {
            blocks.iter().filter_map(|block| block.get(layer).cloned()).collect()
        };
        self.own.extend(own.iter().cloned());
        Ok(Visible::Shared([of(self.past), of(self.older), own, of(self.younger)].concat()).into())
    }
}

/// A listed step of 0 conditions on 0.
pub fn timestep(number: u32) -> f64 {
    1000.0 * shifted(f64::from(number) / 1000.0)
}

/// The trained schedule ends at 1, so a step of 0 is denoised as a step of 1.
fn sigma(number: u32) -> f64 {
    shifted(f64::from(number.max(1)) / 1000.0)
}

fn shifted(u: f64) -> f64 {
    SHIFT * u / (1.0 + (SHIFT - 1.0) * u)
}

fn denoised(x: &Tensor, flow: &Tensor, sigma: f64) -> Result<Tensor> {
    combined([(x, 1.0), (flow, -sigma)])
}

fn renoised(x0: &Tensor, noise: &Tensor, sigma: f64) -> Result<Tensor> {
    combined([(x0, 1.0 - sigma), (noise, sigma)])
}

fn combined([(a, p), (b, q)]: [(&Tensor, f64); 2]) -> Result<Tensor> {
    let (a, b) = (numbers(a)?, b.to_dtype(DType::F32)?);
    let values =
        a.iter().zip(numbers(&b)?).map(|(a, b)| (f64::from(*a) * p + f64::from(b) * q) as f32);
    Tensor::from_vec(values.collect::<Vec<_>>(), b.shape(), &Device::Cpu)
}

pub fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1::<f32>()
}

/// Keys `frames` further along the stream: the frame's complex pairs times `e^(i frames w_j)`.
pub fn turned(keys: &Tensor, frames: usize) -> Result<Tensor> {
    let d = keys.dim(3)?;
    let width = d - 4 * (d / 6);
    let mut numbers = numbers(keys)?;
    for head in numbers.chunks_mut(d) {
        for (j, pair) in head[..width].chunks_mut(2).enumerate() {
            let angle = frames as f64 * 10_000f64.powf(-((2 * j) as f64) / width as f64);
            let (re, im) = (f64::from(pair[0]), f64::from(pair[1]));
            pair[0] = (re * angle.cos() - im * angle.sin()) as f32;
            pair[1] = (re * angle.sin() + im * angle.cos()) as f32;
        }
    }
    Tensor::from_vec(numbers, keys.shape(), &Device::Cpu)
}
