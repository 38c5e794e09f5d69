//! Clean keys and values by block: the sink stays, the window rolls.

use std::collections::VecDeque;

use candle_core::Result;

use crate::layers::rope::Rope;
use crate::model::Kv;

/// How many clean blocks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// First blocks of the stream, never evicted.
    pub sink: usize,
    /// Most recent blocks kept besides the sink; `None` keeps all.
    pub window: Option<usize>,
}

/// Whether blocks in flight count against the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistoryBudget {
    /// They come on top of it.
    #[default]
    History,
    /// History gives way, down to the sink and one block, so that a query sees no more keys than
    /// it would in sequential generation.
    Constant,
}

/// Where the sink sits once the window has rolled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SinkPosition {
    /// Right before the window, so that distances stay bounded without end.
    #[default]
    Rebased,
    /// Where it was generated: upstream's rule.
    Absolute,
}

/// Which keys and values a block reads of older ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistoryPolicy {
    /// Those of the clean block, which its cache pass leaves.
    #[default]
    Clean,
    /// Those that the older block left at the same pass, as noisy as the block is itself: no cache
    /// pass, and no keys between workers (HiAR, arXiv 2603.08703; SAF, arXiv 2609.38114).
    StageMatched,
}

impl HistoryPolicy {
    /// Forwards that a block of so many denoising steps makes.
    pub fn passes(self, steps: usize) -> usize {
        match self {
            Self::Clean => steps.saturating_add(1),
            Self::StageMatched => steps,
        }
    }
}

/// The rules that a history follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryRules {
    /// Which keys and values are read.
    pub policy: HistoryPolicy,
    /// How many blocks are kept.
    pub limits: CacheLimits,
    /// How many of them are seen.
    pub budget: HistoryBudget,
    /// Where the sink is seen.
    pub sink_position: SinkPosition,
}

impl HistoryRules {
    /// Blocks of history that each of `in_flight` blocks sees once `clean` blocks were appended.
    pub fn seen(&self, clean: usize, in_flight: usize) -> usize {
        let sink = clean.min(self.limits.sink);
        let window = (clean - sink).min(self.limits.window.unwrap_or(usize::MAX));
        sink + self.seen_window(window, in_flight)
    }

    /// The same of the window alone, of which `kept` blocks are there.
    fn seen_window(&self, kept: usize, in_flight: usize) -> usize {
        match (self.budget, self.limits.window) {
            (HistoryBudget::Constant, Some(window)) => {
                let left = window.saturating_add(1).saturating_sub(in_flight).max(1);
                left.min(kept)
            }
            _ => kept,
        }
    }
}

/// Clean keys and values by block and layer.
///
/// Blocks are whole and immutable; eviction is a `pop_front` that frees, nothing is moved.
#[derive(Clone, Debug)]
pub struct History {
    rules: HistoryRules,
    rope: Rope,
    frames_per_block: usize,
    sink: Vec<Vec<Kv>>, // by block, by layer
    window: VecDeque<Vec<Kv>>,
    /// Blocks appended so far.
    length: u64,
    /// By how many frames the sink is moved, and the moved sink when that is not 0.
    moved: (i64, Vec<Vec<Kv>>),
}

impl History {
    /// An empty history; `rope` turns keys of the sink to where they are seen.
    pub fn new(rules: HistoryRules, rope: Rope, frames_per_block: usize) -> Self {
        Self {
            rules,
            rope,
            frames_per_block,
            sink: Vec::new(),
            window: VecDeque::new(),
            length: 0,
            moved: (0, Vec::new()),
        }
    }

    /// Adds the next clean block, keys and values by layer, and evicts what the limits do not hold.
    pub fn append(&mut self, block: Vec<Kv>) {
        self.length += 1;
        if self.sink.len() < self.rules.limits.sink {
            return self.sink.push(block);
        }
        self.window.push_back(block);
        while self.rules.limits.window.is_some_and(|window| self.window.len() > window) {
            self.window.pop_front();
        }
    }

    /// Puts other keys and values in the place of those of the most recent blocks.
    pub fn replace_last(&mut self, blocks: Vec<Vec<Kv>>) {
        let from_sink = blocks.len().saturating_sub(self.window.len());
        let kept = self.len().saturating_sub(blocks.len());
        let mut blocks = blocks.into_iter();
        if from_sink > 0 {
            self.sink.truncate(kept);
            self.sink.extend(blocks.by_ref().take(from_sink));
            self.moved = (0, Vec::new());
        }
        let start = self.window.len() - blocks.len();
        self.window.range_mut(start..).zip(blocks).for_each(|(old, new)| *old = new);
    }

    /// Forgets all blocks.
    pub fn clear(&mut self) {
        *self = Self::new(self.rules, self.rope.clone(), self.frames_per_block);
    }

    /// Moves the sink to where a tick with `in_flight` blocks sees it.
    pub fn prepare(&mut self, in_flight: usize) -> Result<()> {
        self.move_sink(self.seen_window(in_flight))
    }

    /// What the most recent `count` blocks see when they are computed anew: the sink, unless it is
    /// among them.
    pub fn before_last(&mut self, count: usize) -> Result<HistoryView<'_>> {
        if count > self.window.len() {
            return Ok(HistoryView { blocks: Vec::new() });
        }
        self.move_sink(self.window.len())?;
        Ok(HistoryView { blocks: self.moved_sink().iter().collect() })
    }

    fn move_sink(&mut self, seen: usize) -> Result<()> {
        let shift = self.sink_shift(seen);
        if self.moved.0 != shift {
            let blocks = self.sink.iter().map(|block| self.shifted(block, shift));
            self.moved = (shift, blocks.collect::<Result<_>>()?);
        }
        Ok(())
    }

    /// What such a tick sees, once it is prepared.
    pub fn view(&self, in_flight: usize) -> HistoryView<'_> {
        let sink = self.moved_sink();
        let start = self.window.len() - self.seen_window(in_flight);
        HistoryView { blocks: sink.iter().chain(self.window.range(start..)).collect() }
    }

    fn moved_sink(&self) -> &[Vec<Kv>] {
        if self.moved.0 == 0 { &self.sink } else { &self.moved.1 }
    }

    /// Blocks of the window that are seen beside `in_flight` others.
    fn seen_window(&self, in_flight: usize) -> usize {
        self.rules.seen_window(self.window.len(), in_flight)
    }

    /// Frames by which the sink moves so that it ends where the seen window starts.
    fn sink_shift(&self, seen: usize) -> i64 {
        match self.rules.sink_position {
            SinkPosition::Absolute => 0,
            SinkPosition::Rebased => {
                let gap = self.length - (self.sink.len() + seen) as u64;
                gap.saturating_mul(self.frames_per_block as u64).try_into().unwrap_or(i64::MAX)
            }
        }
    }

    fn shifted(&self, block: &[Kv], frames: i64) -> Result<Vec<Kv>> {
        let shift = |kv: &Kv| Ok(Kv { k: self.rope.shift(&kv.k, frames)?, v: kv.v.clone() });
        block.iter().map(shift).collect()
    }

    /// Blocks that a change of prompt recomputes: the window and, before anything is evicted, the
    /// sink, which later keeps what it was made under
    /// (LongLive, <https://github.com/NVlabs/LongLive/tree/v1.0>).
    pub fn recomputed(&self) -> usize {
        let has_evicted = self.length > self.len() as u64;
        if has_evicted { self.window.len() } else { self.len() }
    }

    /// Blocks appended so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Blocks kept.
    pub fn len(&self) -> usize {
        self.sink.len() + self.window.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The clean blocks that one tick sees, oldest first.
#[derive(Clone, Debug)]
pub struct HistoryView<'a> {
    blocks: Vec<&'a Vec<Kv>>,
}

impl HistoryView<'_> {
    /// Keys and values of one layer, oldest block first; none for a layer that there is not.
    pub fn context(&self, layer: usize) -> impl Iterator<Item = &Kv> {
        self.blocks.iter().filter_map(move |block| block.get(layer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    const FRAMES: usize = 3;

    /// A block whose value names it, and whose key is its position's rotation of a constant.
    fn block(rope: &Rope, index: usize) -> Vec<Kv> {
        let grid = crate::layers::rope::Grid { rows: 1, cols: 1 };
        let ones = Tensor::ones((1, FRAMES, 1, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        let rotation = rope.rotation(index * FRAMES, FRAMES, grid, &Device::Cpu).unwrap();
        vec![Kv { k: rotation.apply(&ones).unwrap(), v: (ones * index as f64).unwrap() }]
    }

    fn history(sink: usize, window: Option<usize>, budget: HistoryBudget) -> History {
        let limits = CacheLimits { sink, window };
        let policy = HistoryPolicy::Clean;
        let rules = HistoryRules { policy, limits, budget, sink_position: SinkPosition::Rebased };
        History::new(rules, Rope::new(8), FRAMES)
    }

    fn seen(history: &mut History, in_flight: usize) -> Vec<usize> {
        let name = |kv: &Kv| kv.v.max_all().unwrap().to_scalar::<f32>().unwrap() as usize;
        history.prepare(in_flight).unwrap();
        history.view(in_flight).context(0).map(name).collect()
    }

    #[test]
    fn sink_stays_and_window_rolls() {
        let mut history = history(1, Some(2), HistoryBudget::History);
        let rope = Rope::new(8);
        (0..6).for_each(|index| history.append(block(&rope, index)));
        assert_eq!(seen(&mut history, 5), [0, 4, 5]);
    }

    #[test]
    fn a_constant_budget_counts_blocks_in_flight() {
        let mut history = history(1, Some(3), HistoryBudget::Constant);
        let rope = Rope::new(8);
        (0..6).for_each(|index| history.append(block(&rope, index)));
        assert_eq!(seen(&mut history, 1), [0, 3, 4, 5]);
        assert_eq!(seen(&mut history, 2), [0, 4, 5]);
        assert_eq!(seen(&mut history, 9), [0, 5]);
    }

    #[test]
    fn any_window_and_any_place_will_do() {
        let mut history = history(1, Some(usize::MAX), HistoryBudget::Constant);
        let rope = Rope::new(8);
        (0..3).for_each(|index| history.append(block(&rope, index)));
        assert_eq!(seen(&mut history, 2), [0, 1, 2]);
        let grid = crate::layers::rope::Grid { rows: 1, cols: 1 };
        assert!(rope.rotation(usize::MAX, 2, grid, &Device::Cpu).is_ok());
    }

    #[test]
    fn the_sink_is_seen_right_before_the_window() {
        let mut history = history(1, Some(1), HistoryBudget::History);
        let rope = Rope::new(8);
        (0..4).for_each(|index| history.append(block(&rope, index)));
        history.prepare(1).unwrap();
        let view = history.view(1);
        let sink = &view.context(0).next().unwrap().k;
        let expected = &block(&rope, 2)[0].k; // the window holds block 3
        let difference = (sink - expected).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn never_more_than_the_limits_and_always_in_order(
            sink in 0usize..3, window in 0usize..4, appended in 0usize..12, in_flight in 1usize..6,
        ) {
            let mut history = history(sink, Some(window), HistoryBudget::Constant);
            let rope = Rope::new(8);
            (0..appended).for_each(|index| history.append(block(&rope, index)));
            prop_assert!(history.len() <= sink + window);
            let seen = seen(&mut history, in_flight);
            prop_assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(seen.len(), history.len().min(
                history.sink.len() + (window + 1).saturating_sub(in_flight).max(1)));
            prop_assert_eq!(seen.len(), history.rules.seen(appended, in_flight));
        }
    }
}
