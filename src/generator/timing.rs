//! How long blocks take.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cascade::BlockCost;

/// Blocks that are remembered.
const RECENT: usize = 64;

/// Time that the last blocks of a stream took. Denoising and decoding overlap: the slower one
/// decides how fast the stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// The ticks from one clean block to the next, waiting excluded.
    pub denoise: BlockTimes,
    /// Latents to frames.
    pub decode: BlockTimes,
    /// What the newest clean block took besides time.
    pub cost: BlockCost,
}

/// Times of one kind of work, over at most 64 blocks; zero before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockTimes {
    /// Of the newest block.
    pub last: Duration,
    /// Mean of all.
    pub mean: Duration,
    /// Nineteen of twenty take no longer.
    pub p95: Duration,
}

/// Where a thread writes down the times of its blocks.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Of the block that is being made.
    so_far: Duration,
    recent: VecDeque<Duration>,
}

impl Meter {
    /// Runs a part of a block's work.
    pub(super) fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = work();
        self.lock().so_far += begun.elapsed();
        result
    }

    /// A block is done.
    pub(super) fn block(&self) {
        let mut state = self.lock();
        let time = std::mem::take(&mut state.so_far);
        if state.recent.len() == RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back(time);
    }

    pub(super) fn times(&self) -> BlockTimes {
        let state = self.lock();
        let mut sorted: Vec<_> = state.recent.iter().copied().collect();
        sorted.sort_unstable();
        let Some(last) = state.recent.back().copied() else { return BlockTimes::default() };
        let mean = sorted.iter().sum::<Duration>() / sorted.len() as u32;
        BlockTimes { last, mean, p95: sorted[(sorted.len() * 19).div_ceil(20) - 1] }
    }

    pub(super) fn reset(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(seconds: impl IntoIterator<Item = u64>) -> Meter {
        let meter = Meter::default();
        for time in seconds {
            meter.lock().so_far += Duration::from_secs(time);
            meter.block();
        }
        meter
    }

    #[test]
    fn times_are_of_the_last_blocks() {
        assert_eq!(meter([]).times(), BlockTimes::default());
        let seconds = Duration::from_secs;
        let times = meter(1..=20).times();
        let expected = BlockTimes { last: seconds(20), mean: seconds(21) / 2, p95: seconds(19) };
        assert_eq!(times, expected);
        let old = std::iter::repeat_n(900, 10).chain(std::iter::repeat_n(3, RECENT));
        assert_eq!(meter(old).times().mean, seconds(3));
    }

    #[test]
    fn work_is_added_up_until_the_block_is_done() {
        let meter = Meter::default();
        let pause = Duration::from_millis(2);
        assert_eq!(
            [1, 2].map(|n| meter.time(|| {
                std::thread::sleep(pause);
                n
            })),
            [1, 2]
        );
        meter.block();
        assert!(meter.times().last >= 2 * pause);
        meter.reset();
        assert_eq!(meter.times(), BlockTimes::default());
    }
}
