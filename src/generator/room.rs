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

/// What goes to one device.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub(super) device: Device,
    pub(super) numbers: usize,
    pub(super) dtype: DType,
}

/// Keys and values of sink, window and blocks in flight, once they are full, on each device of `config` once.
pub(super) fn history(
    config: &GeneratorConfig,
    spec: &VideoSpec,
    devices: &[Device],
) -> Vec<Share> {
    let Preset { window, sink, frames_per_block, .. } = config.model.preset;
    let size = config.frame_size();
    let tokens = |side: u32| side as usize / spec.size_multiple();
    let of_frame =
        2 * spec.layers * spec.heads * spec.head_dim * tokens(size.width) * tokens(size.height);
    let share = |(device, name): (&Device, DeviceSpec)| {
        let kept = (sink + window) * histories_of(config, name);
        // All of a recache is there before what it replaces goes.
        let is_recached = config.change.policy == PromptPolicy::Recache;
        let blocks = if is_recached { 2 * kept } else { kept } + config.cascade_width;
        let numbers =
            (blocks * of_frame + moved_sinks(config, name) * of_frame / 2) * frames_per_block;
        Share { device: device.clone(), numbers, dtype: config.dtype_on(device) }
    };
    devices.iter().zip(config.devices.distinct()).map(share).collect()
}

/// Histories that the workers of a device keep.
fn histories_of(config: &GeneratorConfig, device: DeviceSpec) -> usize {
    let GeneratorConfig { model, history_policy, devices, cascade_width, .. } = config;
    let workers = workers_on(config, device);
    let steps = model.preset.denoising_steps.len();
    let timetable = Timetable::with_width(*history_policy, steps, *cascade_width);
    match history_policy {
        HistoryPolicy::Clean if workers == devices.len() => 1, // they share keys and values
        HistoryPolicy::Clean => workers, // each has its own copy of what comes from elsewhere
        HistoryPolicy::StageMatched => {
            let worker = |&step: &usize| timetable.worker_of(step, devices.len());
            (0..steps).filter(|step| devices.get(worker(step)) == Some(&device)).count()
        }
    }
}

/// Blocks of a sink whose keys, not their values, workers of a device have again, where they are seen from the window.
fn moved_sinks(config: &GeneratorConfig, device: DeviceSpec) -> usize {
    match config.sink_position {
        SinkPosition::Absolute => 0,
        SinkPosition::Rebased => config.model.preset.sink * workers_on(config, device),
    }
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
        "out of memory: weights or history take {needed} GB, of {total} GB {free} are free; a smaller \
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

    /// Blocks of keys and values on each device.
    fn blocks(policy: HistoryPolicy, cascade_width: usize, devices: &str) -> Vec<usize> {
        let mut config = GeneratorConfig::new(Manifest::named("pocket").unwrap());
        config.history_policy = policy;
        config.cascade_width = cascade_width;
        config.devices = devices.parse().unwrap();
        let devices = vec![Device::Cpu; config.devices.distinct().len()];
        let of_block = 2 * 6 * 128 * 3 * 84; // keys and values, layers, width, frames, tokens
        let spec = dit_config(config.model.architecture).spec().unwrap();
        let shares = history(&config, &spec, &devices);
        shares.iter().map(|share| share.numbers / of_block).collect()
    }

    #[test]
    fn histories_by_step_are_all_counted() {
        use HistoryPolicy::{Clean, StageMatched};
        assert_eq!(blocks(Clean, 1, "cpu"), [3]);
        assert_eq!(blocks(Clean, 5, "cuda:0,cuda:0"), [7]);
        assert_eq!(blocks(Clean, 5, "cpu,cuda:0,cuda:0"), [7, 2 * 2 + 5]);
        assert_eq!(blocks(StageMatched, 4, "cpu"), [4 * 2 + 4]);
        assert_eq!(blocks(StageMatched, 4, "cpu,cuda:0"), [2 * 2 + 4; 2]);
        assert_eq!(blocks(StageMatched, 4, "cpu,cuda:0,cuda:0,cuda:0"), [2 + 4, 3 * 2 + 4]);
    }

    #[test]
    fn what_a_recache_and_a_sink_take_besides_is_counted() {
        let mut config = GeneratorConfig::new(Manifest::named("pocket").unwrap());
        let spec = dit_config(config.model.architecture).spec().unwrap();
        let half_blocks = |config: &GeneratorConfig| {
            history(config, &spec, &[Device::Cpu])[0].numbers / (6 * 128 * 3 * 84)
        };
        assert_eq!(half_blocks(&config), 2 * (2 + 1));
        config.change.policy = PromptPolicy::Recache;
        assert_eq!(half_blocks(&config), 2 * (2 + 2 + 1));
        config.model.preset.sink = 1;
        assert_eq!(half_blocks(&config), 2 * (3 + 3 + 1) + 1);
        config.sink_position = SinkPosition::Absolute;
        assert_eq!(half_blocks(&config), 2 * (3 + 3 + 1));
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
