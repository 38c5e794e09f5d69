//! Whether what is loaded fits the memory of the devices that it goes to.

use std::thread;
use std::time::Duration;

use candle_core::{DType, Device, Error as Cause};

use super::config::GeneratorConfig;
use super::error::{Error, Result};
use crate::cascade::{HistoryPolicy, PromptPolicy, SinkPosition, Timetable};
use crate::checkpoint::Preset;
use crate::device::{self, DeviceSpec};
use crate::model::VideoSpec;

/// How often memory is looked at before it is too little, and how long after the last look: what a stream
/// held that was just left is still being freed.
const LOOKS: usize = 60;
const PAUSE: Duration = Duration::from_millis(50);

/// Numbers that a layer has at once for each number of a block that it computes, at most: eight of what comes in and
/// goes out, is normed, queries, keys, values, and attended; and four parts of the keys in f32, as kernels for bf16
/// have them. Wan's feed-forwards have no more.
const COMPUTED: usize = 8 + 4 * 2;
/// The same besides where keys come from other devices: parts of those that are there before.
const BEGUN: usize = 4 * 2;
/// The same for each block in flight, whose keys and values come, or go: of the layer and of the next.
const ARRIVING: usize = 2 * 2;

/// What goes to one device.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub(super) device: Device,
    pub(super) numbers: usize,
    pub(super) dtype: DType,
}

/// What a stream takes on each device of `config` once, when sink and window are full: keys and values, and what a
/// forward has besides.
pub(super) fn history(
    config: &GeneratorConfig,
    spec: &VideoSpec,
    devices: &[Device],
) -> Vec<Share> {
    let size = config.frame_size();
    let tokens = |side: u32| side as usize / spec.size_multiple();
    let tokens = config.model.preset.frames_per_block * tokens(size.width) * tokens(size.height);
    let of_block = tokens * spec.heads * spec.head_dim;
    let share = |(device, name): (&Device, DeviceSpec)| {
        let stored = 2 * blocks(config, name) + moved_sinks(config, name); // keys and values, keys
        let numbers = (spec.layers * stored + passing(config, name)) * of_block;
        Share { device: device.clone(), numbers, dtype: config.dtype_on(device) }
    };
    devices.iter().zip(config.devices.distinct()).map(share).collect()
}

/// Blocks of which a device has the keys and values of all layers: those that are kept, and those that a tick leaves
/// before others go. A block in flight has its own only while a layer runs.
fn blocks(config: &GeneratorConfig, device: DeviceSpec) -> usize {
    let histories = histories_of(config, device);
    let kept = kept(config) * histories;
    let left = match config.history_policy {
        HistoryPolicy::Clean => histories,
        HistoryPolicy::StageMatched => computed_on(config, device),
    };
    match config.change.policy {
        // All of it is there before what it replaces goes.
        PromptPolicy::Recache => kept + kept.max(left),
        _ => kept + left,
    }
}

/// Numbers that a forward has at once besides, for each number of a block: as many as the network is wide for a token.
fn passing(config: &GeneratorConfig, device: DeviceSpec) -> usize {
    let (workers, computed) = (workers_on(config, device), computed_on(config, device));
    let recomputed = match config.change.policy {
        PromptPolicy::Recache => kept(config), // in one forward
        _ => 0,
    };
    let is_alone =
        config.history_policy == HistoryPolicy::StageMatched || workers == config.devices.len();
    let arriving = workers * timetable(config).width() * ARRIVING + computed * BEGUN;
    computed.max(recomputed) * COMPUTED + if is_alone { 0 } else { arriving }
}

/// Blocks of a history.
fn kept(config: &GeneratorConfig) -> usize {
    let Preset { window, sink, .. } = config.model.preset;
    sink + window
}

/// Histories that the workers of a device keep.
fn histories_of(config: &GeneratorConfig, device: DeviceSpec) -> usize {
    let GeneratorConfig { model, history_policy, devices, .. } = config;
    let workers = workers_on(config, device);
    let steps = model.preset.denoising_steps.len();
    match history_policy {
        HistoryPolicy::Clean if workers == devices.len() => 1, // they share keys and values
        HistoryPolicy::Clean => workers, // each has its own copy of what comes from elsewhere
        HistoryPolicy::StageMatched => {
            let worker = |&step: &usize| timetable(config).worker_of(step, devices.len());
            (0..steps).filter(|step| devices.get(worker(step)) == Some(&device)).count()
        }
    }
}

/// Blocks of a sink whose keys, not their values, a device has again, where they are seen from the window: each history
/// moves its own, also where workers share what is in them.
fn moved_sinks(config: &GeneratorConfig, device: DeviceSpec) -> usize {
    let movers = match config.history_policy {
        HistoryPolicy::Clean => workers_on(config, device),
        HistoryPolicy::StageMatched => histories_of(config, device),
    };
    match config.sink_position {
        SinkPosition::Absolute => 0,
        SinkPosition::Rebased => config.model.preset.sink * movers,
    }
}

/// Blocks in flight that the workers of a device compute, at most.
fn computed_on(config: &GeneratorConfig, device: DeviceSpec) -> usize {
    let width = timetable(config).width();
    let of_worker = width.div_ceil(config.devices.len());
    (workers_on(config, device) * of_worker).min(width)
}

fn timetable(config: &GeneratorConfig) -> Timetable {
    let GeneratorConfig { model, history_policy, cascade_width, .. } = config;
    Timetable::with_width(*history_policy, model.preset.denoising_steps.len(), *cascade_width)
}

fn workers_on(config: &GeneratorConfig, device: DeviceSpec) -> usize {
    config.devices.iter().filter(|&&other| other == device).count()
}

/// Refuses what would run out of memory later; only GPUs tell how much they have. Ends where it
/// `is_cancelled`.
pub(super) fn check(shares: &[Share], is_cancelled: &dyn Fn() -> bool) -> Result<()> {
    for (i, share) in shares.iter().enumerate() {
        // Streams of one device share its memory.
        let place = |share: &Share| DeviceSpec::from(&share.device);
        let is_here = |other: &&Share| place(other) == place(share);
        if shares[..i].iter().any(|other| is_here(&other)) {
            continue;
        }
        let needed = shares.iter().filter(is_here).map(Share::bytes).sum();
        let memory = || device::memory(&share.device);
        await_room(needed, memory, PAUSE, is_cancelled).map_err(|cause| {
            if is_cancelled() { Error::Cancelled } else { failed(&share.device, cause) }
        })?;
    }
    Ok(())
}

/// Looks again while `memory`, free and in all, is too little.
fn await_room(
    needed: u64,
    memory: impl Fn() -> Result<Option<(u64, u64)>, Cause>,
    pause: Duration,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<(), Cause> {
    let mut more_looks = 1..LOOKS;
    while let Some((free, total)) = memory()? {
        let outcome = fits(needed, free, total);
        if outcome.is_ok() || needed > total || more_looks.next().is_none() {
            return outcome;
        }
        if is_cancelled() {
            return outcome;
        }
        thread::sleep(pause);
    }
    Ok(())
}

impl Share {
    fn bytes(&self) -> u64 {
        self.numbers as u64 * self.dtype.size_in_bytes() as u64
    }
}

fn fits(needed: u64, free: u64, total: u64) -> Result<(), Cause> {
    if needed <= free {
        return Ok(());
    }
    let [needed, free, total] =
        [needed, free, total].map(|bytes| format!("{:.1}", bytes as f64 / 1e9));
    Err(Cause::Msg(format!(
        "out of memory: weights, history or a forward take {needed} GB, of {total} GB {free} are free; a smaller \
         size, window or cascade width, or a 16-bit dtype, needs less, and the decoder can be tiny or on \
         another device"
    )))
}

fn failed(device: &Device, source: Cause) -> Error {
    Error::Device { device: DeviceSpec::from(device).to_string(), source }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::checkpoint::Manifest;
    use crate::generator::FrameSize;
    use crate::wan::dit_config;

    #[test]
    fn what_does_not_fit_is_told_with_what_would_help() {
        assert!(fits(10, 10, 20).is_ok());
        let error = fits(28_600_000_000, 20_000_000_000, 24_000_000_000).unwrap_err().to_string();
        assert!(error.contains("take 28.6 GB, of 24.0 GB 20.0 are free"), "{error}");
        assert!(error.contains("decoder can be tiny"), "{error}");
    }

    #[test]
    fn numbers_take_what_their_kind_takes() {
        let share = |dtype| Share { device: Device::Cpu, numbers: 3, dtype };
        assert_eq!([DType::F32, DType::BF16].map(|dtype| share(dtype).bytes()), [12, 6]);
        assert!(check(&[share(DType::F32)], &|| false).is_ok()); // the host pages
    }

    /// Asks for so many bytes of memory of 10, of which 4 are free and, from some look on, 5; also says
    /// how many looks were made.
    fn wait(needed: u64, free_from: usize, is_cancelled: bool) -> (Result<(), Cause>, usize) {
        let looks = Cell::new(0);
        let memory = || {
            looks.set(looks.get() + 1);
            Ok(Some((if looks.get() < free_from { 4 } else { 5 }, 10)))
        };
        let outcome = await_room(needed, memory, Duration::ZERO, &|| is_cancelled);
        (outcome, looks.get())
    }

    #[test]
    fn what_is_still_being_freed_is_waited_for() {
        for (free_from, is_ok, looks) in
            [(1, true, 1), (3, true, 3), (60, true, 60), (61, false, 60)]
        {
            let (outcome, looked) = wait(5, free_from, false);
            assert_eq!((outcome.is_ok(), looked), (is_ok, looks), "free from look {free_from}");
        }
        assert_eq!(wait(11, 1, false).1, 1, "it will never be enough");
        let (outcome, looks) = wait(5, 3, true);
        assert!(looks == 1 && outcome.is_err());
        assert!(wait(5, 1, true).0.is_ok());
    }

    fn pocket(policy: HistoryPolicy, cascade_width: usize, devices: &str) -> GeneratorConfig {
        let mut config = GeneratorConfig::new(Manifest::named("pocket").unwrap());
        config.history_policy = policy;
        config.cascade_width = cascade_width;
        config.devices = devices.parse().unwrap();
        config
    }

    /// On each device.
    fn on_each(
        config: &GeneratorConfig,
        count: fn(&GeneratorConfig, DeviceSpec) -> usize,
    ) -> Vec<usize> {
        config.devices.distinct().into_iter().map(|device| count(config, device)).collect()
    }

    /// Two blocks are kept, of four steps.
    #[test]
    fn histories_by_step_are_all_counted() {
        use HistoryPolicy::{Clean, StageMatched};
        for (policy, cascade_width, devices, expected) in [
            (Clean, 1, "cpu", vec![2 + 1]),
            (Clean, 5, "cuda:0,cuda:0", vec![2 + 1]),
            (Clean, 5, "cpu,cuda:0,cuda:0", vec![2 + 1, 2 * (2 + 1)]),
            (StageMatched, 4, "cpu", vec![4 * 2 + 4]),
            (StageMatched, 3, "cpu", vec![4 * 2 + 2]),
            (StageMatched, 4, "cpu,cuda:0", vec![2 * 2 + 2; 2]),
            (StageMatched, 4, "cpu,cuda:0,cuda:0,cuda:0", vec![2 + 1, 3 * 2 + 3]),
        ] {
            let config = pocket(policy, cascade_width, devices);
            assert_eq!(on_each(&config, blocks), expected, "{policy:?}, {devices}");
        }
    }

    #[test]
    fn what_a_forward_has_besides_is_of_the_blocks_that_are_computed() {
        use HistoryPolicy::{Clean, StageMatched};
        let arriving = |computed: usize, workers: usize| computed * BEGUN + workers * 5 * ARRIVING;
        for (policy, cascade_width, devices, expected) in [
            (Clean, 1, "cpu", vec![COMPUTED]),
            (Clean, 4, "cpu", vec![3 * COMPUTED]), // as wide as the timetable comes out
            (Clean, 5, "cuda:0,cuda:0", vec![5 * COMPUTED]),
            (Clean, 5, "cuda:0,cuda:1", vec![3 * COMPUTED + arriving(3, 1); 2]),
            (
                Clean,
                5,
                "cpu,cuda:0,cuda:0",
                vec![2 * COMPUTED + arriving(2, 1), 4 * COMPUTED + arriving(4, 2)],
            ),
            (StageMatched, 4, "cuda:0,cuda:1", vec![2 * COMPUTED; 2]),
        ] {
            let config = pocket(policy, cascade_width, devices);
            assert_eq!(on_each(&config, passing), expected, "{policy:?}, {devices}");
        }
    }

    #[test]
    fn what_a_recache_and_a_sink_take_besides_is_counted() {
        let counts = |config: &GeneratorConfig| {
            [blocks, passing, moved_sinks].map(|count| on_each(config, count)[0])
        };
        let mut config = pocket(HistoryPolicy::Clean, 1, "cpu");
        assert_eq!(counts(&config), [2 + 1, COMPUTED, 0]);
        config.change.policy = PromptPolicy::Recache;
        assert_eq!(counts(&config), [2 + 2, 2 * COMPUTED, 0]);
        config.model.preset.sink = 1;
        assert_eq!(counts(&config), [3 + 3, 3 * COMPUTED, 1]);
        config.sink_position = SinkPosition::Absolute;
        assert_eq!(counts(&config), [3 + 3, 3 * COMPUTED, 0]);
        config = pocket(HistoryPolicy::StageMatched, 4, "cpu,cuda:0");
        config.model.preset.sink = 1;
        assert_eq!(on_each(&config, moved_sinks), [2, 2]);
    }

    #[test]
    fn a_history_has_keys_and_values_of_all_layers() {
        let config = pocket(HistoryPolicy::Clean, 1, "cpu");
        let spec = dit_config(config.model.architecture).spec().unwrap();
        let of_block = 3 * 84 * 128; // frames, tokens, width
        let numbers = history(&config, &spec, &[Device::Cpu])[0].numbers;
        assert_eq!(numbers, (6 * 2 * 3 + COMPUTED) * of_block);
    }

    #[test]
    fn a_history_is_as_large_as_the_frames() {
        let mut config = GeneratorConfig::new(Manifest::named("pocket").unwrap());
        let spec = dit_config(config.model.architecture).spec().unwrap();
        let mut numbers = |size| {
            config.size = size;
            history(&config, &spec, &[Device::Cpu])[0].numbers
        };
        let size = |width, height| Some(FrameSize { width, height });
        assert_eq!(numbers(None), numbers(size(192, 112)));
        assert_eq!(numbers(size(384, 224)), 4 * numbers(None));
    }
}
