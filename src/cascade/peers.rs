//! What blocks of one forward see of the past and of each other.

use candle_core::{Device, Result, bail};

use super::AttentionMode;
use super::history::HistoryView;
use super::link::{Link, Offer};
use crate::model::{Interrupt, Kv, KvExchange, Visible};

/// Blocks in flight see each other, behind one history of clean blocks.
#[derive(Debug)]
pub(super) struct Peers<'a> {
    pub(super) history: HistoryView<'a>,
    pub(super) attention: AttentionMode,
    /// Blocks in flight, on all workers.
    pub(super) in_flight: usize,
    /// Those of this worker, by place among them, oldest first.
    pub(super) places: &'a [usize],
    pub(super) link: &'a Link,
    pub(super) device: &'a Device,
    /// Checked at every exchange, so that a tick ends within a layer.
    pub(super) interrupt: &'a Interrupt,
    /// Whether the oldest block makes its cache pass.
    pub(super) caches: bool,
    /// The oldest block's keys and values by layer, if it does.
    pub(super) clean: Vec<Kv>,
}

impl KvExchange for Peers<'_> {
    fn exchange(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible> {
        self.interrupt.check()?;
        let all = self.gather(layer, own)?;
        if let (true, Some(oldest)) = (self.caches, all.first()) {
            self.clean.push(oldest.clone());
        }
        let past: Vec<Kv> = self.history.context(layer).cloned().collect();
        let seeing = |others: &[Kv]| past.iter().chain(others).cloned().collect();
        Ok(match self.attention {
            AttentionMode::Bidirectional => Visible::Shared(seeing(&all)),
            AttentionMode::Causal => {
                Visible::Each(self.places.iter().map(|&place| seeing(&all[..=place])).collect())
            }
        })
    }
}

impl Peers<'_> {
    /// Keys and values of the blocks in flight that any block here sees, oldest first.
    fn gather(&self, layer: usize, own: Vec<Kv>) -> Result<Vec<Kv>> {
        if own.len() != self.places.len() {
            bail!("the model offers {} keys for {} blocks", own.len(), self.places.len());
        }
        let mut own: Vec<_> = self.places.iter().copied().zip(own).collect();
        if let (true, Some((0, oldest))) = (self.caches, own.first_mut()) {
            *oldest = compact(oldest)?;
        }
        let wanted = match self.attention {
            AttentionMode::Bidirectional => self.in_flight,
            AttentionMode::Causal => self.places.last().map_or(0, |youngest| youngest + 1),
        };
        self.link.gather(Offer { layer, own, wanted, device: self.device })
    }
}

/// Each block sees what older ones left at its own pass, and itself.
#[derive(Debug)]
pub(super) struct Trails<'a> {
    /// One for each block here.
    pub(super) histories: Vec<HistoryView<'a>>,
    pub(super) interrupt: &'a Interrupt,
    /// What each block leaves, by layer.
    pub(super) left: Vec<Vec<Kv>>,
}

impl KvExchange for Trails<'_> {
    fn exchange(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible> {
        self.interrupt.check()?;
        let mut lists = Vec::with_capacity(own.len());
        for ((history, left), kv) in self.histories.iter().zip(&mut self.left).zip(&own) {
            let kv = compact(kv)?;
            left.push(kv.clone());
            lists.push(history.context(layer).cloned().chain([kv]).collect());
        }
        Ok(Visible::Each(lists))
    }
}

/// Clean blocks that are computed anew see each other and what is kept of the past before them.
#[derive(Debug)]
pub(super) struct Again<'a> {
    pub(super) past: HistoryView<'a>,
    pub(super) interrupt: &'a Interrupt,
    /// What each block leaves, by layer.
    pub(super) left: Vec<Vec<Kv>>,
}

impl KvExchange for Again<'_> {
    fn exchange(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible> {
        self.interrupt.check()?;
        for (left, kv) in self.left.iter_mut().zip(&own) {
            left.push(compact(kv)?);
        }
        Ok(Visible::Shared(self.past.context(layer).cloned().chain(own).collect()))
    }
}

/// A copy that does not keep the storage of other blocks alive.
fn compact(kv: &Kv) -> Result<Kv> {
    Ok(Kv { k: kv.k.force_contiguous()?, v: kv.v.force_contiguous()? })
}
