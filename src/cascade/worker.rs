//! One device's share of the blocks in flight: one forward a tick, and its own history.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

use super::AttentionMode;
use super::block::Block;
use super::history::{History, HistoryPolicy};
use super::link::{self, Link, Party};
use super::peers::{Again, Peers, Trails};
use super::timetable::{Pass, Stage, Timetable};
use crate::device;
use crate::model::{DenoiseInput, Interrupt, Kv, VideoModel};

/// A model on its device, and what is known there of the past.
#[derive(Debug)]
pub(super) struct Worker {
    rank: usize,
    model: Arc<dyn VideoModel>,
    /// Where keys and values of others arrive, beside what is computed.
    arrivals: Device,
    /// One for all passes, or one for each.
    histories: Vec<History>,
    /// What the last forward leaves, with the number of the history.
    left: Vec<(usize, Vec<Kv>)>,
}

/// What all workers of one tick know.
#[derive(Debug)]
pub(super) struct Tick<'a> {
    /// Oldest first, with their blocks.
    pub(super) flying: Vec<(Stage, &'a Block)>,
    /// By place, the timestep of each frame.
    pub(super) timesteps: Vec<Vec<f64>>,
    pub(super) policy: HistoryPolicy,
    pub(super) timetable: Timetable,
    pub(super) attention: AttentionMode,
    pub(super) interrupt: &'a Interrupt,
    pub(super) link: Link,
    /// Workers that there are, idle ones included.
    pub(super) workers: usize,
}

impl Tick<'_> {
    /// The rank that computes a block: a block stays where it is; with histories by pass, a pass does.
    fn owner(&self, place: usize) -> usize {
        match self.policy {
            HistoryPolicy::Clean => (self.flying[place].0.block % self.workers as u64) as usize,
            HistoryPolicy::StageMatched => self.timetable.worker_of(self.step(place), self.workers),
        }
    }

    /// Which of its passes a block makes, where there is no cache pass.
    fn step(&self, place: usize) -> usize {
        self.flying[place].0.pass.index(0)
    }

    /// Of the oldest blocks in flight, how many those at `places` see.
    fn wanted(&self, places: &[usize]) -> usize {
        match self.attention {
            AttentionMode::Bidirectional => self.flying.len(),
            AttentionMode::Causal => places.last().map_or(0, |youngest| youngest + 1),
        }
    }

    fn inputs(&self, places: &[usize], rank: usize) -> Vec<DenoiseInput<'_>> {
        let input = |&place: &usize| self.flying[place].1.input(&self.timesteps[place], rank);
        places.iter().map(input).collect()
    }

    fn caches(&self) -> bool {
        self.flying.first().is_some_and(|(stage, _)| stage.pass == Pass::Cache)
    }
}

impl Worker {
    /// Where all workers have a `shared` device, nothing arrives from another one.
    pub(super) fn new(
        rank: usize,
        model: Arc<dyn VideoModel>,
        histories: Vec<History>,
        shared: bool,
    ) -> Result<Self> {
        let device = model.device();
        let arrivals = if shared { device.clone() } else { device::beside(device)? };
        Ok(Self { rank, model, arrivals, histories, left: Vec::new() })
    }

    pub(super) fn device(&self) -> &Device {
        self.model.device()
    }

    /// Its blocks among those in flight, by place.
    pub(super) fn places(&self, tick: &Tick<'_>) -> Vec<usize> {
        (0..tick.flying.len()).filter(|&place| tick.owner(place) == self.rank).collect()
    }

    /// As the tick's link knows it, if it has blocks.
    pub(super) fn party(&self, tick: &Tick<'_>) -> Option<Party> {
        let places = self.places(tick);
        let (device, arrivals) = (self.device().clone(), self.arrivals.clone());
        (!places.is_empty()).then(|| Party {
            wanted: tick.wanted(&places),
            places,
            device,
            arrivals,
        })
    }

    /// The flow of each of its blocks, by place; `number` is its own among the link's parties.
    pub(super) fn forward(
        &mut self,
        number: usize,
        tick: &Tick<'_>,
    ) -> Result<Vec<(usize, Tensor)>> {
        self.left.clear();
        let places = self.places(tick);
        let flows = match tick.policy {
            HistoryPolicy::Clean => self.among_peers(number, tick, &places)?,
            HistoryPolicy::StageMatched => self.on_trails(tick, &places)?,
        };
        if flows.len() != places.len() {
            bail!("the model returned {} flows for {} blocks", flows.len(), places.len());
        }
        Ok(places.into_iter().zip(flows).collect())
    }

    fn among_peers(
        &mut self,
        number: usize,
        tick: &Tick<'_>,
        places: &[usize],
    ) -> Result<Vec<Tensor>> {
        let (history, in_flight) = (&mut self.histories[0], tick.flying.len());
        history.prepare(in_flight)?;
        let mut peers = Peers {
            history: history.view(in_flight),
            attention: tick.attention,
            wanted: tick.wanted(places),
            places,
            link: &tick.link,
            number,
            device: self.model.device(),
            interrupt: tick.interrupt,
            caches: tick.caches(),
            clean: Vec::new(),
        };
        let flows = self.model.predict_flow(&tick.inputs(places, self.rank), &mut peers)?;
        self.left.extend(peers.caches.then_some((0, peers.clean)));
        Ok(flows)
    }

    fn on_trails(&mut self, tick: &Tick<'_>, places: &[usize]) -> Result<Vec<Tensor>> {
        let steps: Vec<usize> = places.iter().map(|&place| tick.step(place)).collect();
        for &step in &steps {
            self.histories[step].prepare(1)?;
        }
        let mut trails = Trails {
            histories: steps.iter().map(|&step| self.histories[step].view(1)).collect(),
            link: &tick.link,
            interrupt: tick.interrupt,
            left: vec![Vec::new(); places.len()],
        };
        let flows = self.model.predict_flow(&tick.inputs(places, self.rank), &mut trails)?;
        self.left.extend(steps.into_iter().zip(trails.left));
        Ok(flows)
    }

    /// Keeps what the last forward left.
    pub(super) fn keep(&mut self) {
        for (history, kv) in self.left.drain(..) {
            self.histories[history].append(kv);
        }
    }

    /// Forgets the past.
    pub(super) fn forget(&mut self) {
        self.left.clear(); // there is some if the last tick failed elsewhere
        self.histories.iter_mut().for_each(History::clear);
    }

    /// Blocks that its history was given.
    pub(super) fn length(&self) -> u64 {
        self.histories[0].length()
    }

    /// Blocks that [`recompute`](Self::recompute) is for: the most recent ones.
    pub(super) fn recomputed(&self) -> usize {
        self.histories[0].recomputed()
    }

    /// Computes clean blocks of the history anew, in one forward; by block and layer.
    pub(super) fn recompute(
        &mut self,
        blocks: &[Block],
        timesteps: &[f64],
        interrupt: &Interrupt,
    ) -> Result<Vec<Vec<Kv>>> {
        let inputs: Vec<_> = blocks.iter().map(|block| block.input(timesteps, self.rank)).collect();
        let history = &mut self.histories[0];
        let left = vec![Vec::new(); blocks.len()];
        let mut again = Again { past: history.before_last(blocks.len())?, interrupt, left };
        self.model.predict_flow(&inputs, &mut again)?;
        Ok(again.left)
    }

    /// Such keys and values on this device.
    pub(super) fn on_its_device(&self, blocks: &[Vec<Kv>]) -> Result<Vec<Vec<Kv>>> {
        let here = |kv: &Kv| link::on(kv, self.device());
        blocks.iter().map(|layers| layers.iter().map(here).collect()).collect()
    }

    /// Puts them in the place of those of the most recent blocks.
    pub(super) fn replace(&mut self, blocks: Vec<Vec<Kv>>) {
        self.histories[0].replace_last(blocks);
    }
}
