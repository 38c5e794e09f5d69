//! What strategies are compared for, and what its forwards take.

use gstblockcascade::cascade::{
    CacheLimits, HistoryBudget, HistoryPolicy, HistoryRules, SinkPosition, Stage,
};

use super::forward::{Load, Network};
use super::pace::Past;
use super::rates::Rates;

/// A model at a size, and the GPUs that there are for it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The networks, and a block's size.
    pub network: Network,
    /// Clean blocks that are kept.
    pub limits: CacheLimits,
    /// Denoising steps of a block.
    pub steps: usize,
    /// Frames of a block.
    pub frames: f64,
    /// GPUs that there are.
    pub gpus: usize,
    /// How fast each is.
    pub rates: Rates,
    /// Bytes that each has.
    pub memory: f64,
    /// Bytes of the transformer's weights, of which every GPU has a replica.
    pub weights: f64,
    /// Seconds before a prompt's first forward.
    pub prompt: f64,
    /// Seconds in which a block is decoded, and the stream's first.
    pub decode: [f64; 2],
}

impl Case {
    /// Clean blocks that are kept.
    pub fn kept(&self) -> usize {
        self.limits.sink + self.limits.window.unwrap_or_default()
    }

    /// What blocks see of the past.
    pub fn rules(&self, budget: HistoryBudget) -> HistoryRules {
        HistoryRules {
            policy: HistoryPolicy::Clean,
            limits: self.limits,
            budget,
            sink_position: SinkPosition::default(),
        }
    }

    /// Blocks of history that a tick sees.
    fn seen(&self, rules: HistoryRules, past: Past, in_flight: usize) -> usize {
        match past {
            Past::Empty => 0,
            Past::Full => rules.seen(self.kept(), in_flight),
        }
    }

    /// Seconds of a block's forward with no other in flight, shared by some GPUs.
    pub fn alone(&self, gpus: usize, past: Past) -> f64 {
        let seen = self.seen(self.rules(HistoryBudget::History), past, 1) + 1;
        self.rates.forward(&self.network.forward(Load { blocks: 1, seen, gpus }))
    }

    /// Seconds of a tick of the cascade: what the busiest GPU takes. Blocks go round the GPUs, and
    /// the youngest block sees all others, causal or not.
    pub fn tick(&self, stages: &[Stage], gpus: usize, past: Past, rules: HistoryRules) -> f64 {
        let seen = self.seen(rules, past, stages.len()) + stages.len();
        let busy = |gpu: usize| {
            let own = |stage: &&Stage| stage.block % gpus as u64 == gpu as u64;
            let blocks = stages.iter().filter(own).count();
            if blocks == 0 {
                return 0.0; // it takes no part: nothing is sent to it
            }
            self.share(blocks, seen) + self.gather(stages.len() - blocks, gpus)
        };
        (0..gpus).map(busy).fold(0.0, f64::max)
    }

    /// Seconds of one GPU's blocks.
    fn share(&self, blocks: usize, seen: usize) -> f64 {
        self.rates.forward(&self.network.forward(Load { blocks, seen, gpus: 1 }))
    }

    /// Seconds in which keys and values of other GPUs' blocks arrive, a gather a layer.
    fn gather(&self, blocks: usize, gpus: usize) -> f64 {
        let others = if gpus == 1 { 0 } else { blocks };
        let bytes = self.network.kv_bytes() * others as f64;
        self.rates.exchange(bytes, self.network.layers())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::plan::forward::tests::{native, near};
    use crate::plan::rates::tests::{peak, practical};
    use crate::plan::rates::{Format, Gpu};
    use gstblockcascade::cascade::Pass;

    /// Four steps at a model's native size, no sink, nothing to encode or to decode.
    pub fn case(model: &str, window: usize, rates: Rates, gpus: usize) -> Case {
        let network = native(model);
        Case {
            limits: CacheLimits { sink: 0, window: Some(window) },
            steps: 4,
            frames: 12.0,
            gpus,
            rates,
            memory: f64::INFINITY,
            weights: 2.0 * network.parameters,
            prompt: 0.0,
            decode: [0.0; 2],
            network,
        }
    }

    /// A tick with as many blocks in flight as GPUs.
    fn tick(model: &str, window: usize, rates: Rates, gpus: usize) -> f64 {
        let case = case(model, window, rates, gpus);
        let stage = |block| Stage { block, pass: Pass::Cache };
        let stages: Vec<_> = (0..gpus as u64).map(stage).collect();
        case.tick(&stages, gpus, Past::Full, case.rules(HistoryBudget::History))
    }

    #[test]
    fn a_gpu_that_has_no_block_waits_for_no_keys() {
        let slow = Rates { link: 1e9, ..practical(Gpu::H100, Format::Bf16) };
        let case = case("self-forcing-1.3b", 6, slow, 5);
        let stages = [Stage { block: 0, pass: Pass::Cache }];
        let tick = |gpus| case.tick(&stages, gpus, Past::Full, case.rules(HistoryBudget::History));
        near(tick(5), tick(1), 1e-9);
    }

    /// performance.md 2.6: ticks at peak with 1 to 5 blocks in flight over 18 frames of the past, in
    /// ms.
    #[test]
    fn ticks_are_those_of_the_table() {
        let expected = [51.1, 58.4, 65.7, 72.9, 80.2];
        for (gpus, ms) in (1..).zip(expected) {
            near(tick("self-forcing-1.3b", 6, peak(), gpus) * 1e3, ms, 2e-3);
        }
    }

    /// The same table's frames per second, which it has for any number of GPUs: `gpus` fifths of a
    /// block a tick. Speed-ups, and frames per second at practical rates.
    #[test]
    fn speed_ups_are_those_of_the_table() {
        let speed_up = |model, window, rates, gpus| {
            gpus as f64 * tick(model, window, rates, 1) / tick(model, window, rates, gpus)
        };
        for (model, window, expected) in [
            ("self-forcing-1.3b", 6, [1.75, 2.34, 2.80, 3.19]),
            ("krea-realtime-14b", 6, [1.81, 2.47, 3.03, 3.51]),
            ("self-forcing-1.3b", 3, [1.66, 2.13, 2.49, 2.76]),
            ("krea-realtime-14b", 3, [1.76, 2.35, 2.83, 3.23]),
        ] {
            for (gpus, expected) in (2..).zip(expected) {
                near(speed_up(model, window, peak(), gpus), expected, 5e-3);
            }
        }
        let rates = practical(Gpu::H200, Format::Bf16);
        for (gpus, expected) in (1..).zip([32.8, 58.1, 78.2, 94.5, 108.0]) {
            let tick = tick("self-forcing-1.3b", 6, rates, gpus);
            near(12.0 / 5.0 * gpus as f64 / tick, expected, 0.01);
        }
    }
}
