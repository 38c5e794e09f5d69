//! Who makes which pass at which tick: pure arithmetic, the same for every worker.
//!
//! Block `b` makes pass `k` at tick `b * stagger + k` (arXiv 2511.20426, section 3).

/// One forward of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// A denoising step.
    Denoise {
        /// Index into the schedule.
        step: usize,
    },
    /// The forward of the clean block that leaves its keys and values behind.
    Cache,
}

/// A block and the pass that it makes at some tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Block index in the stream.
    pub block: u64,
    /// What it does.
    pub pass: Pass,
}

/// The pure function from a tick to the stages of the blocks in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timetable {
    steps: usize,
    stagger: usize,
}

impl Timetable {
    /// For `steps >= 1` denoising steps and `1 <= stagger <= steps + 1`; values outside are clamped.
    pub fn new(steps: usize, stagger: usize) -> Self {
        let steps = steps.clamp(1, usize::MAX - 1);
        Self { steps, stagger: stagger.clamp(1, steps + 1) }
    }

    /// For at most `width` blocks in flight.
    pub fn with_width(steps: usize, width: usize) -> Self {
        Self::new(steps, steps.max(1).saturating_add(1).div_ceil(width.max(1)))
    }

    /// Forwards that a block makes: its denoising steps and the cache pass.
    pub fn passes(&self) -> usize {
        self.steps + 1
    }

    /// Ticks between two blocks' starts; `passes` means one block at a time.
    pub fn stagger(&self) -> usize {
        self.stagger
    }

    /// Blocks in flight at most.
    pub fn width(&self) -> usize {
        self.passes().div_ceil(self.stagger)
    }

    /// The stages of a tick, oldest block first.
    pub fn at(&self, tick: u64) -> impl Iterator<Item = Stage> {
        let (stagger, last_pass, steps) = (self.stagger as u64, self.steps as u64, self.steps);
        let oldest = tick.saturating_sub(last_pass).div_ceil(stagger);
        (oldest..=tick / stagger).map(move |block| {
            let pass = (tick - block * stagger) as usize;
            let pass = if pass < steps { Pass::Denoise { step: pass } } else { Pass::Cache };
            Stage { block, pass }
        })
    }

    /// The tick at which a block makes its last denoising step.
    pub fn clean_at(&self, block: u64) -> u64 {
        block.saturating_mul(self.stagger as u64).saturating_add(self.steps as u64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stages(steps: usize, stagger: usize, tick: u64) -> Vec<(u64, Pass)> {
        Timetable::new(steps, stagger).at(tick).map(|stage| (stage.block, stage.pass)).collect()
    }

    #[test]
    fn four_steps_at_stagger_two() {
        use Pass::{Cache, Denoise};
        let step = |step| Denoise { step };
        assert_eq!(stages(4, 2, 0), [(0, step(0))]);
        assert_eq!(stages(4, 2, 3), [(0, step(3)), (1, step(1))]);
        assert_eq!(stages(4, 2, 4), [(0, Cache), (1, step(2)), (2, step(0))]);
        assert_eq!(stages(4, 2, 5), [(1, step(3)), (2, step(1))]);
        assert_eq!(Timetable::new(4, 2).width(), 3);
        assert_eq!(Timetable::new(4, 2).clean_at(1), 5);
    }

    #[test]
    fn widths_that_users_ask_for() {
        let staggers = (1..=6).map(|width| Timetable::with_width(4, width).stagger());
        assert_eq!(staggers.collect::<Vec<_>>(), [5, 3, 2, 2, 1, 1]);
    }

    #[test]
    fn any_number_makes_a_timetable() {
        for (steps, stagger) in [(usize::MAX, 1), (usize::MAX, usize::MAX), (0, 0)] {
            for table in [Timetable::new(steps, stagger), Timetable::with_width(steps, stagger)] {
                assert!(table.width() >= 1 && table.passes() >= 2, "{table:?}");
                let first = Stage { block: 0, pass: Pass::Denoise { step: 0 } };
                assert_eq!(table.at(0).next(), Some(first));
                assert!(table.clean_at(u64::MAX) >= table.clean_at(0));
            }
        }
    }

    proptest! {
        #[test]
        fn every_block_makes_every_pass_once_and_in_order(
            steps in 1usize..9, stagger in 1usize..10, block in 0u64..40,
        ) {
            let table = Timetable::new(steps, stagger);
            let last = (block + 1) * table.stagger() as u64 + table.passes() as u64;
            let made: Vec<Pass> = (0..last)
                .flat_map(|tick| table.at(tick).filter(|s| s.block == block).map(|s| s.pass))
                .collect();
            let expected: Vec<Pass> =
                (0..steps).map(|step| Pass::Denoise { step }).chain([Pass::Cache]).collect();
            prop_assert_eq!(made, expected);
        }

        #[test]
        fn blocks_in_flight_are_neighbours_and_only_the_oldest_is_cached(
            steps in 1usize..9, stagger in 1usize..10, tick in 0u64..200,
        ) {
            let table = Timetable::new(steps, stagger);
            let stages: Vec<Stage> = table.at(tick).collect();
            prop_assert!(stages.len() <= table.width());
            prop_assert!(stages.windows(2).all(|pair| pair[0].block + 1 == pair[1].block));
            prop_assert!(stages.iter().skip(1).all(|stage| stage.pass != Pass::Cache));
            // No worker of `block % width` ever has two blocks.
            let mut workers: Vec<u64> =
                stages.iter().map(|stage| stage.block % table.width() as u64).collect();
            workers.sort_unstable();
            workers.dedup();
            prop_assert_eq!(workers.len(), stages.len());
        }
    }
}
