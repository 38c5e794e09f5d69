//! The definition of the cascade as a slow, plain loop over ticks.
//!
//! Shares nothing with the code under test: its own arithmetic for timetable, sigmas, renoising,
//! history and positions, and one forward for each block. K/V of other blocks come from earlier
//! rounds of the same tick: layer `n` of a block depends on its peers' layers below `n` only, so
//! after `layers` rounds every key is what it would be in one forward of all.

use candle_core::{DType, Device, Result, Tensor};
use gstblockcascade::cascade::{AttentionMode, HistoryBudget, PromptPolicy, SinkPosition};
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
    let mut oracle = Oracle { subject, case, text: 0, flying: Vec::new(), past: Vec::new() };
    let last = (case.blocks - 1) * case.stagger as u64 + case.steps.len() as u64 - 1;
    (0..=last).map(|tick| oracle.tick(tick)).collect()
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
    /// K/V of all clean blocks there ever were, by block and layer.
    past: Vec<Vec<Kv>>,
}

struct Flying {
    index: u64,
    x: Tensor,
    text: usize,
}

impl Oracle<'_> {
    fn tick(&mut self, tick: u64) -> Result<Beat> {
        let stagger = self.case.stagger as u64;
        self.switch(tick);
        let starts = tick.is_multiple_of(stagger) && tick / stagger < self.case.blocks;
        let admits = starts.then_some(tick / stagger);
        if let Some(index) = admits {
            let x = self.subject.noise(index, 0)?;
            self.flying.push(Flying { index, x, text: self.text });
        }
        let passes: Vec<usize> =
            self.flying.iter().map(|block| (tick - block.index * stagger) as usize).collect();
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
        if passes.first() == Some(&self.case.steps.len()) {
            self.past.extend(kv.into_iter().next());
            self.flying.remove(0);
        }
        Ok(Beat { admits, clean })
    }

    fn switch(&mut self, tick: u64) {
        let Some(switch) = self.case.switch.filter(|switch| switch.tick == tick) else { return };
        self.text = 1;
        for block in &mut self.flying {
            let pass = tick - block.index * self.case.stagger as u64;
            let unclean = pass < self.case.steps.len() as u64;
            if unclean && switch.policy == PromptPolicy::InFlight {
                block.text = 1;
            }
        }
    }

    /// Flow and K/V of every block in flight, each computed alone.
    fn forward(&self, passes: &[usize]) -> Result<(Vec<Tensor>, Vec<Vec<Kv>>)> {
        let past = self.seen_past()?;
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
                    let view = View { past: &past, older, younger, own: Vec::new() };
                    block.forward(self.subject, timestep, view)
                });
            (flows, kv) = round.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        }
        Ok((flows, kv))
    }

    /// Sink and window, keys where this tick sees them.
    fn seen_past(&self) -> Result<Vec<Vec<Kv>>> {
        let limits = self.case.rules.limits;
        let (sink, rolled) = self.past.split_at(limits.sink.min(self.past.len()));
        let mut most = limits.window.unwrap_or(rolled.len());
        if let (HistoryBudget::Constant, Some(window)) = (self.case.rules.budget, limits.window) {
            let total = limits.sink + window + 1; // as in sequential generation
            most = most.min(total.saturating_sub(limits.sink + self.flying.len()).max(1));
        }
        let window = &rolled[rolled.len().saturating_sub(most)..];
        let w0 = (self.past.len() - window.len()) * FRAMES;
        let distance = match self.case.rules.sink_position {
            SinkPosition::Rebased => w0 - sink.len() * FRAMES,
            SinkPosition::Absolute => 0,
        };
        let mut seen = Vec::new();
        for block in sink {
            let at = |kv: &Kv| Ok(Kv { k: turned(&kv.k, distance)?, v: kv.v.clone() });
            seen.push(block.iter().map(at).collect::<Result<_>>()?);
        }
        seen.extend_from_slice(window);
        Ok(seen)
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
        let view = View { past, older: &[], younger: &[], own: Vec::new() };
        self.forward(subject, timestep, view)
    }
}

/// What one block sees; K/V by block and layer, those of peers as far as they are known.
struct View<'a> {
    past: &'a [Vec<Kv>],
    older: &'a [Vec<Kv>],
    younger: &'a [Vec<Kv>],
    own: Vec<Kv>,
}

impl KvExchange for View<'_> {
    fn exchange(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible> {
        let of = |blocks: &[Vec<Kv>]| -> Vec<Kv> {
            blocks.iter().filter_map(|block| block.get(layer).cloned()).collect()
        };
        self.own.extend(own.iter().cloned());
        Ok(Visible::Shared([of(self.past), of(self.older), own, of(self.younger)].concat()))
    }
}

/// models.md 2.2; a listed step of 0 conditions on 0.
pub fn timestep(number: u32) -> f64 {
    1000.0 * shifted(f64::from(number) / 1000.0)
}

/// models.md 2.1: the trained schedule ends at 1, so a step of 0 is denoised as a step of 1.
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
    let width = d - 4 * (d / 6); // models.md 1.4
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
