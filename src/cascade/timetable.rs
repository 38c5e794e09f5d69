//! Who makes which pass at which tick: pure arithmetic, the same for every worker.
//!
//! Block `b` makes pass `k` at tick `b * stagger + k` (arXiv 2511.20426, section 3).

use super::history::HistoryPolicy;

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

impl Pass {
    /// Its place among the passes of a block of so many denoising steps.
    pub fn index(self, steps: usize) -> usize {
        match self {
            Self::Denoise { step } => step,
            Self::Cache => steps,
        }
    }
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
    passes: usize,
    stagger: usize,
}

impl Timetable {
    /// For `steps >= 1` denoising steps, a cache pass and `1 <= stagger <= steps + 1`; values outside
    /// are clamped.
    pub fn new(steps: usize, stagger: usize) -> Self {
        Self::under(HistoryPolicy::Clean, steps, stagger)
    }

    /// The same with the passes that a policy asks for.
    pub fn under(policy: HistoryPolicy, steps: usize, stagger: usize) -> Self {
        let steps = steps.clamp(1, usize::MAX - 1);
        let passes = policy.passes(steps);
        Self { steps, passes, stagger: stagger.clamp(1, passes) }
    }

    /// For at most `width` blocks in flight.
    pub fn with_width(policy: HistoryPolicy, steps: usize, width: usize) -> Self {
        let longest = Self::under(policy, steps, usize::MAX);
        Self::under(policy, steps, longest.passes.div_ceil(width.max(1)))
    }

    /// Forwards that a block makes: its denoising steps and, where there is one, the cache pass.
    pub fn passes(&self) -> usize {
        self.passes
    }

    /// Ticks between two blocks' starts; `passes` means one block at a time.
    pub fn stagger(&self) -> usize {
        self.stagger
    }

    /// Blocks in flight at most.
    pub fn width(&self) -> usize {
        self.passes.div_ceil(self.stagger)
    }

    /// The worker, of so many, that makes a step of every block where steps stay and blocks move: those of
    /// one tick are a stagger apart, and each is another worker's.
    pub fn worker_of(&self, step: usize, workers: usize) -> usize {
        step / self.stagger % workers.max(1)
    }

    /// The stages of a tick, oldest block first.
    pub fn at(&self, tick: u64) -> impl Iterator<Item = Stage> {
        let (stagger, last_pass, steps) = (self.stagger as u64, self.passes as u64 - 1, self.steps);
        let oldest = tick.saturating_sub(last_pass).div_ceil(stagger);
        (oldest..=tick / stagger).map(move |block| {
            let pass = (tick - block * stagger) as usize;
            let pass = if pass < steps { Pass::Denoise { step: pass } } else { Pass::Cache };
            Stage { block, pass }
        })
    }

    /// The first block that is not clean before a tick.
    pub fn next_clean(&self, tick: u64) -> u64 {
        tick.saturating_sub(self.steps as u64 - 1).div_ceil(self.stagger as u64)
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
        let staggers =
            (1..=6).map(|width| Timetable::with_width(HistoryPolicy::Clean, 4, width).stagger());
        assert_eq!(staggers.collect::<Vec<_>>(), [5, 3, 2, 2, 1, 1]);
        let staggers = (1..=5)
            .map(|width| Timetable::with_width(HistoryPolicy::StageMatched, 4, width).stagger());
        assert_eq!(staggers.collect::<Vec<_>>(), [4, 2, 2, 1, 1]);
    }

    #[test]
    fn any_number_makes_a_timetable() {
        for (steps, stagger) in [(usize::MAX, 1), (usize::MAX, usize::MAX), (0, 0)] {
            let clean = HistoryPolicy::Clean;
            for table in
                [Timetable::new(steps, stagger), Timetable::with_width(clean, steps, stagger)]
            {
                assert!(table.width() >= 1 && table.passes() >= 2, "{table:?}");
                let first = Stage { block: 0, pass: Pass::Denoise { step: 0 } };
                assert_eq!(table.at(0).next(), Some(first));
                assert!(table.clean_at(u64::MAX) >= table.clean_at(0));
            }
        }
    }

    const POLICIES: [HistoryPolicy; 2] = [HistoryPolicy::Clean, HistoryPolicy::StageMatched];

    proptest! {
        #[test]
        fn the_next_clean_block_is_the_first_that_is_not(
            steps in 1usize..9, stagger in 1usize..10, tick in 0u64..200, matched in 0usize..2,
        ) {
            let table = Timetable::under(POLICIES[matched], steps, stagger);
            let expected = (0..).find(|&block| table.clean_at(block) >= tick).unwrap();
            prop_assert_eq!(table.next_clean(tick), expected);
        }

        #[test]
        fn every_block_makes_every_pass_once_and_in_order(
            steps in 1usize..9, stagger in 1usize..10, block in 0u64..40, matched in 0usize..2,
        ) {
            let table = Timetable::under(POLICIES[matched], steps, stagger);
            let last = (block + 1) * table.stagger() as u64 + table.passes() as u64;
            let made: Vec<Pass> = (0..last)
                .flat_map(|tick| table.at(tick).filter(|s| s.block == block).map(|s| s.pass))
                .collect();
            let cached = (matched == 0).then_some(Pass::Cache);
            let expected: Vec<Pass> =
                (0..steps).map(|step| Pass::Denoise { step }).chain(cached).collect();
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
            // No worker of `block % width` ever has two blocks, and none is idle while a block is
            // cached: all have its keys.
            let mut workers: Vec<u64> =
                stages.iter().map(|stage| stage.block % table.width() as u64).collect();
            workers.sort_unstable();
            workers.dedup();
            prop_assert_eq!(workers.len(), stages.len());
            if stages.first().is_some_and(|stage| stage.pass == Pass::Cache) {
                prop_assert_eq!(stages.len(), table.width());
            }
        }
    }
}
