//! How fast blocks come, from what a tick costs: a timetable in seconds.

use gstblockcascade::cascade::{Stage, Timetable};

/// What a stream's viewers notice of its ticks, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A tick on average.
    pub tick: f64,
    /// From one clean block to the next on average.
    pub block: f64,
    /// From the start to the first clean block.
    pub first: f64,
    /// From the start of a tick that hears a new prompt to the first clean block that it touched, at
    /// worst (performance.md 2.6). What is left of the tick before comes first.
    pub affected: f64,
    /// The same to the first block that knew no other.
    pub conditioned: f64,
}

/// How much is behind the blocks in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nothing: the stream starts.
    Empty,
    /// As much as is ever kept.
    Full,
}

/// The ticks of a stream whose history is full; they repeat.
struct Steady {
    timetable: Timetable,
    ticks: Vec<f64>,
}

impl Pace {
    /// Of a timetable whose blocks go round `gpus`, by the seconds of a tick.
    pub fn of(timetable: Timetable, gpus: usize, seconds: impl Fn(&[Stage], Past) -> f64) -> Self {
        let tick = |tick, past| seconds(&timetable.at(tick).collect::<Vec<_>>(), past);
        let period = (timetable.stagger() * gpus) as u64;
        let full = period * timetable.passes() as u64;
        let ticks: Vec<f64> = (full..full + period).map(|t| tick(t, Past::Full)).collect();
        let sum: f64 = ticks.iter().sum();
        let steady = Steady { timetable, ticks };
        Self {
            tick: sum / period as f64,
            block: sum / gpus as f64,
            // The first block is clean before any leaves keys and values behind.
            first: (0..=timetable.clean_at(0)).map(|t| tick(t, Past::Empty)).sum(),
            affected: steady.worst(|tick| steady.next_clean(tick)),
            conditioned: steady.worst(|tick| tick.div_ceil(timetable.stagger() as u64)),
        }
    }
}

impl Steady {
    /// The longest time from the start of a tick until `block`, which it answers for, is clean.
    fn worst(&self, block: impl Fn(u64) -> u64) -> f64 {
        let period = self.ticks.len() as u64;
        let full = period * self.timetable.passes() as u64;
        let wait = |from| {
            let clean = self.timetable.clean_at(block(from));
            (from..=clean).map(|tick| self.ticks[(tick % period) as usize]).sum()
        };
        (full..full + period).map(wait).fold(0.0, f64::max)
    }

    /// The oldest block that still has a denoising step ahead.
    fn next_clean(&self, tick: u64) -> u64 {
        let last = self.timetable.clean_at(0);
        (tick - last).div_ceil(self.timetable.stagger() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tick costs as many seconds as there are blocks in flight.
    fn pace(stagger: usize) -> [f64; 5] {
        let Pace { tick, block, first, affected, conditioned } =
            Pace::of(Timetable::new(4, stagger), 1, |stages, _| stages.len() as f64);
        [tick, block, first, affected, conditioned]
    }

    /// Four steps and a cache pass. One by one, a prompt is heard at worst when the cache pass starts.
    #[test]
    fn ticks_are_counted_by_the_timetable() {
        assert_eq!(pace(5), [1.0, 5.0, 4.0, 5.0, 8.0]);
        // 1 + 2 + 3 + 4 blocks in flight at the start, then 5 a tick.
        assert_eq!(pace(1), [5.0, 5.0, 10.0, 5.0, 20.0]);
        // Three and two in flight by turns; a block is clean every other tick.
        assert_eq!(pace(2), [2.5, 5.0, 6.0, 5.0, 12.0]);
    }
}
