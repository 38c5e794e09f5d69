//! What blocks of one forward see of the past and of each other.

use candle_core::{Device, Result, bail};

use super::AttentionMode;
use super::history::HistoryView;
use super::link::{self, Link};
use crate::model::{Interrupt, Kv, KvExchange, Visible};

/// Blocks in flight see each other, behind one history of clean blocks.
#[derive(Debug)]
pub(super) struct Peers<'a> {
    pub(super) history: HistoryView<'a>,
    pub(super) attention: AttentionMode,
    /// Blocks in flight that any block here sees: the oldest ones.
    pub(super) wanted: usize,
    /// Those of this worker, by place among them, oldest first.
    pub(super) places: &'a [usize],
    pub(super) link: &'a Link,
    /// Of this worker, among those that the link joins.
    pub(super) number: usize,
    pub(super) device: &'a Device,
    /// Checked at every exchange, so that a tick ends within a layer.
    pub(super) interrupt: &'a Interrupt,
    /// Whether the oldest block makes its cache pass.
    pub(super) caches: bool,
    /// The oldest block's keys and values by layer, if it does.
    pub(super) clean: Vec<Kv>,
}

impl KvExchange for Peers<'_> {
    fn offer(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible<Option<Kv>>> {
        self.interrupt.check()?;
        let own = self.placed(own)?;
        self.link.give(layer, self.number, &own)?;
        let mut known = vec![None; self.wanted];
        for (place, kv) in own {
            self.keep(place, &kv)?;
            known[place] = Some(kv);
        }
        let past: Vec<_> = self.history.context(layer).cloned().map(Some).collect();
        let seeing = |known: &[Option<Kv>]| past.iter().chain(known).cloned().collect();
        Ok(match self.attention {
            AttentionMode::Bidirectional => Visible::Shared(seeing(&known)),
            AttentionMode::Causal => {
                Visible::Each(self.places.iter().map(|&place| seeing(&known[..=place])).collect())
            }
        })
    }

    fn receive(&mut self, layer: usize) -> Result<Visible> {
        let others = self.link.take(layer, self.number)?;
        for (place, kv) in &others {
            self.keep(*place, kv)?;
        }
        let before = |end: usize| {
            let older = others.iter().filter(|(place, _)| *place < end);
            older.map(|(_, kv)| kv.clone()).collect()
        };
        Ok(match self.attention {
            AttentionMode::Bidirectional => Visible::Shared(before(self.wanted)),
            AttentionMode::Causal => {
                Visible::Each(self.places.iter().map(|&place| before(place)).collect())
            }
        })
    }
}

impl Peers<'_> {
    /// With their places; those that history will keep do not keep others alive.
    fn placed(&self, own: Vec<Kv>) -> Result<Vec<(usize, Kv)>> {
        if own.len() != self.places.len() {
            bail!("the model offers {} keys for {} blocks", own.len(), self.places.len());
        }
        let mut own: Vec<_> = self.places.iter().copied().zip(own).collect();
        if let (true, Some((0, oldest))) = (self.caches, own.first_mut()) {
            *oldest = compact(oldest)?;
        }
        Ok(own)
    }

    fn keep(&mut self, place: usize, kv: &Kv) -> Result<()> {
        if self.caches && place == 0 {
            self.clean.push(link::on(kv, self.device)?);
        }
        Ok(())
    }
}

/// Each block sees what older ones left at its own pass, and itself.
#[derive(Debug)]
pub(super) struct Trails<'a> {
    /// One for each block here.
    pub(super) histories: Vec<HistoryView<'a>>,
    /// Others give nothing, but may fail.
    pub(super) link: &'a Link,
    pub(super) interrupt: &'a Interrupt,
    /// What each block leaves, by layer.
    pub(super) left: Vec<Vec<Kv>>,
}

impl KvExchange for Trails<'_> {
    fn offer(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible<Option<Kv>>> {
        self.interrupt.check()?;
        self.link.check()?;
        let mut lists = Vec::with_capacity(own.len());
        for ((history, left), kv) in self.histories.iter().zip(&mut self.left).zip(&own) {
            let kv = compact(kv)?;
            left.push(kv.clone());
            lists.push(history.context(layer).cloned().chain([kv]).collect());
        }
        Ok(Visible::Each(lists).into())
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
    fn offer(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible<Option<Kv>>> {
        self.interrupt.check()?;
        for (left, kv) in self.left.iter_mut().zip(&own) {
            left.push(compact(kv)?);
        }
        Ok(Visible::Shared(self.past.context(layer).cloned().chain(own).collect()).into())
    }
}

/// A copy that does not keep the storage of other blocks alive.
fn compact(kv: &Kv) -> Result<Kv> {
    Ok(Kv { k: kv.k.force_contiguous()?, v: kv.v.force_contiguous()? })
}
