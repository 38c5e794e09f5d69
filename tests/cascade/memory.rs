//! What a long stream keeps: evicted blocks are freed.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use gstblockcascade::cascade::{HistoryRules, SinkPosition};
use gstblockcascade::model::{
    DenoiseInput, Kv, KvExchange, TextContext, TextEmbedding, VideoModel, VideoSpec,
};

use super::case::{Case, STEPS, Subject};
use super::run;

const MIB: usize = 1 << 20;
/// Of the K/V of one block.
const BLOCK_BYTES: usize = 4 * MIB;

/// A model of large keys that computes nothing.
#[derive(Debug)]
struct Heavy(VideoSpec);

impl VideoModel for Heavy {
    fn spec(&self) -> &VideoSpec {
        &self.0
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn text_context(&self, _: &TextEmbedding) -> Result<TextContext> {
        Ok(TextContext { layers: Vec::new(), last_count: 1 })
    }

    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        kv: &mut dyn KvExchange,
    ) -> Result<Vec<Tensor>> {
        let width = BLOCK_BYTES / 2 / DType::F32.size_in_bytes();
        let own = blocks.iter().map(|_| {
            let k = Tensor::ones((1, 1, 1, width), DType::F32, &Device::Cpu)?; // not zeros: touched
            Ok(Kv { v: k.copy()?, k })
        });
        kv.exchange(0, own.collect::<Result<_>>()?)?;
        Ok(blocks.iter().map(|block| block.latent.clone()).collect())
    }
}

fn heavy() -> Subject {
    let spec = VideoSpec {
        latent_channels: 1,
        spatial_stride: 1,
        patch: 1,
        layers: 1,
        heads: 1,
        head_dim: 6,
    };
    let text = Arc::new(TextContext { layers: Vec::new(), last_count: 1 });
    Subject { model: Arc::new(Heavy(spec)), latent_size: (1, 1), texts: [text.clone(), text] }
}

/// Most memory that this process has had at once, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn evicted_blocks_are_freed() {
    let case = Case { steps: STEPS[0], blocks: 150, ..Case::default() }.limited(1, 2);
    let rules = HistoryRules { sink_position: SinkPosition::Absolute, ..case.rules };
    let before = peak();
    let beats = run(&heavy(), &Case { rules, ..case }).unwrap();
    assert_eq!(beats.len(), 150);
    let grown = peak() - before;
    assert!(grown < 40 * BLOCK_BYTES, "{} MiB for 5 blocks of 4", grown / MIB);
}
