//! What the blocks of one forward see of the past and of each other.

use candle_core::Result;

use super::AttentionMode;
use super::history::HistoryView;
use crate::model::{Interrupt, Kv, KvExchange, Visible};

/// One worker's view for one tick.
pub(super) struct Peers<'a> {
    pub(super) history: HistoryView<'a>,
    pub(super) attention: AttentionMode,
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
        if let (true, Some(oldest)) = (self.caches, own.first()) {
            self.clean.push(compact(oldest)?);
        }
        let past: Vec<Kv> = self.history.context(layer).cloned().collect();
        let seeing = |others: &[Kv]| past.iter().chain(others).cloned().collect();
        Ok(match self.attention {
            AttentionMode::Bidirectional => Visible::Shared(seeing(&own)),
            AttentionMode::Causal => {
                Visible::Each((1..=own.len()).map(|count| seeing(&own[..count])).collect())
            }
        })
    }
}

/// A copy that does not keep the storage of younger blocks alive.
fn compact(kv: &Kv) -> Result<Kv> {
    Ok(Kv { k: kv.k.force_contiguous()?, v: kv.v.force_contiguous()? })
}
