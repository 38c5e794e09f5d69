//! Two workers on one GPU, each with a stream of its own: keys and values go from one to the other as between two
//! GPUs, but for the copy itself, which the driver makes another way there. Nor does it show here whether what is sent
//! is kept long enough: on one GPU cudarc sees to that, too.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use gstblockcascade::cascade::{
    AttentionMode, CacheLimits, Cascade, CascadeConfig, HistoryBudget, HistoryPolicy, HistoryRules,
    SinkPosition, TextContexts, Workers,
};
use gstblockcascade::checkpoint;
use gstblockcascade::device::{self, DeviceSpec};
use gstblockcascade::generator::flow::FlowSchedule;
use gstblockcascade::generator::noise::SeededNoise;
use gstblockcascade::model::{Interrupt, TextEmbedding, VideoModel};
use gstblockcascade::wan::{WanConfig, WanDit};

/// Latent rows and columns.
const SIZE: (usize, usize) = (30, 52);
const BLOCKS: u64 = 5;
/// What bf16 leaves of two orders of sums: on a CPU at least 0.99999.
const COSINE: f64 = 0.9999;

#[test]
#[ignore = "needs a GPU"]
fn two_workers_on_two_streams_make_what_one_makes() {
    let gpu = DeviceSpec::Cuda(0).open().unwrap();
    let beside = device::beside(&gpu).unwrap();
    for attention in [AttentionMode::Bidirectional, AttentionMode::Causal] {
        let alone = latents(std::slice::from_ref(&gpu), attention);
        let together = latents(&[gpu.clone(), beside.clone()], attention);
        assert_eq!([alone.len(), together.len()], [BLOCKS as usize; 2]);
        for (block, (got, expected)) in together.iter().zip(&alone).enumerate() {
            let cosine = cosine(got, expected);
            eprintln!("{attention:?}, block {block}: cosine {cosine:.6}");
            assert!(cosine >= COSINE);
        }
    }
}

/// A short stream with three blocks in flight, on a worker for each device.
fn latents(devices: &[Device], attention: AttentionMode) -> Vec<Tensor> {
    let workers = workers(devices);
    let schedule = FlowSchedule::new(&[1000, 750, 500, 250], 5.0).unwrap();
    let text = Tensor::ones((7, 128), DType::F32, &Device::Cpu).unwrap();
    let text = TextContexts::new(&workers.models, &TextEmbedding(text)).unwrap();
    let noise = Arc::new(SeededNoise { seed: 3 });
    let mut cascade =
        Cascade::new(workers, schedule, noise, Arc::new(text), config(attention)).unwrap();
    let mut latents = Vec::new();
    while !cascade.is_finished() {
        latents.extend(cascade.tick(&Interrupt::default()).unwrap().map(|block| block.latent));
    }
    latents
}

/// Heads as wide as those of the real models, for which there are kernels.
fn workers(devices: &[Device]) -> Workers {
    let config = WanConfig { dim: 256, num_heads: 2, num_layers: 3, ..WanConfig::pocket() };
    let model = |device: &Device| -> Arc<dyn VideoModel> {
        let weights = checkpoint::random(5, DType::BF16, device);
        Arc::new(WanDit::new(&config, weights).unwrap())
    };
    Workers { models: devices.iter().map(model).collect(), threads: Some(1) }
}

fn config(attention: AttentionMode) -> CascadeConfig {
    CascadeConfig {
        stagger: 2,
        attention,
        history: HistoryRules {
            policy: HistoryPolicy::Clean,
            limits: CacheLimits { sink: 1, window: Some(1) },
            budget: HistoryBudget::History,
            sink_position: SinkPosition::Rebased,
        },
        frames_per_block: 3,
        latent_size: SIZE,
        context_timestep: 0.0,
        blocks: Some(BLOCKS),
    }
}

fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let [a, b] = [a, b].map(|x| {
        let x = x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        x.flatten_all().unwrap().to_vec1::<f64>().unwrap()
    });
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}
