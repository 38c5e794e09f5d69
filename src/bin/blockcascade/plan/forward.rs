//! What a forward costs: FLOP and bytes, counted from a network's sizes (performance.md 2.2, 2.3).

use anyhow::Result;
use gstblockcascade::checkpoint::{Architecture, Manifest};
use gstblockcascade::generator::FrameSize;
use gstblockcascade::wan::text::Umt5Config;
use gstblockcascade::wan::{WanConfig, dit_config, text_config};

use crate::networks;

/// FLOP of a multiply-add.
const FLOP: f64 = 2.0;
/// Bytes of an activation, a key or a value: bf16.
const BF16: f64 = 2.0;
/// Matrices of `dim` times `dim` that a layer multiplies tokens by: q, k, v, o of self-attention, q
/// and o of cross-attention.
const SQUARE: f64 = 6.0;
/// The same with cross-attention's k and v, which are applied to the text once a prompt.
const SQUARE_WEIGHTS: f64 = 8.0;
/// Times that a layer moves its activations where every chain of elementwise kernels is fused, those
/// inside the feed-forward aside (performance.md 2.3).
const FUSED_MOVES: f64 = 33.0;
/// Times that it moves them in kernels that are no product and do not hide behind one
/// (performance.md 2.5).
const BARE_MOVES: f64 = 14.0;
/// Kernels of a layer: 4,800 in the 200 layers of a block of a fused 14B model (performance.md 3).
const LAUNCHES: f64 = 24.0;
/// Rows and columns of a product that one processor of a GPU computes at a time
/// (performance.md 2.7).
const TILE: (f64, f64) = (128.0, 256.0);
/// Processors of an H100 and an H200.
const PROCESSORS: f64 = 132.0;
/// What the last, partly filled wave of tiles costs on average, in waves.
const TAIL: f64 = 0.5;
/// Tokens of a block at which the GEMM rates hold: three latent frames of 832x480.
const RATED_ROWS: f64 = 4680.0;

/// A transformer, its text encoder, and the tokens of a block at some size.
#[derive(Clone, Debug)]
pub struct Network {
    dit: WanConfig,
    text: Umt5Config,
    /// Numbers that it computes with.
    pub parameters: f64,
    /// Rows times columns of all latent frames of a block.
    pub positions: f64,
    /// Tokens of a block.
    pub tokens: f64,
    /// Numbers that an input or output token has.
    patch: f64,
}

/// Which part of a forward one GPU makes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Blocks that are computed at once.
    pub blocks: usize,
    /// Blocks that each of them sees, itself among them.
    pub seen: usize,
    /// GPUs that share the work equally.
    pub gpus: usize,
}

/// What a forward asks of one GPU.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Products with weights, in FLOP.
    pub linear: f64,
    /// Which part of a GEMM rate products of so few rows reach, at most 1.
    pub efficiency: f64,
    /// Self- and cross-attention, in FLOP.
    pub attention: f64,
    /// Bytes that bare elementwise kernels move.
    pub bare: f64,
    /// Bytes that no fusion saves: activations between kernels, history, weights.
    pub bytes: f64,
    /// Kernels that the host launches.
    pub launches: f64,
}

impl Network {
    /// The networks of a model at a size that fits them.
    pub fn new(model: &Manifest, size: FrameSize) -> Result<Self> {
        let Manifest { architecture, preset, .. } = model;
        let spec = dit_config(*architecture).spec()?;
        let side = |pixels: u32| pixels as usize / spec.size_multiple();
        let tokens = side(size.width) * side(size.height) * preset.frames_per_block;
        let patch = spec.latent_channels * spec.patch.pow(2);
        Ok(Self {
            dit: dit_config(*architecture),
            text: text_config(*architecture),
            parameters: networks::transformer(*architecture)?.parameters() as f64,
            positions: (tokens * spec.patch.pow(2)) as f64,
            tokens: tokens as f64,
            patch: patch as f64,
        })
    }

    /// One GPU's part of a forward.
    pub fn forward(&self, load: Load) -> Work {
        let rows = self.tokens * load.blocks as f64 / load.gpus as f64;
        let keys = self.tokens * load.seen as f64;
        let activation = rows * self.dim() * BF16;
        let hidden = rows * self.dit.ffn_dim as f64 * BF16;
        let history = self.kv_bytes() * load.seen as f64 / load.gpus as f64;
        let moved = FUSED_MOVES * activation + 2.0 * hidden + self.layer_weights() * BF16;
        Work {
            linear: FLOP
                * rows
                * (self.layers() * self.per_token() + 2.0 * self.patch * self.dim()),
            efficiency: self.efficiency(rows),
            attention: self.layers() * self.attend(rows, keys + self.dit.text_len as f64),
            bare: self.layers() * BARE_MOVES * activation,
            bytes: self.layers() * moved + history,
            launches: self.layers() * LAUNCHES,
        }
    }

    /// FLOP that a new prompt costs before any forward: the text encoder, and keys and values of
    /// cross-attention.
    pub fn prompt(&self) -> f64 {
        let Umt5Config { dim, dim_attn, dim_ffn, num_layers, .. } = self.text;
        let encoder = num_layers * dim * (4 * dim_attn + 3 * dim_ffn);
        let context = self.layers() * 2.0 * self.dim().powi(2);
        FLOP * self.dit.text_len as f64 * (encoder as f64 + context)
    }

    /// Bytes of a block's keys and values, all layers.
    pub fn kv_bytes(&self) -> f64 {
        2.0 * self.tokens * self.dim() * self.layers() * BF16
    }

    /// Bytes of the activations that are alive at once inside a layer: the residual stream in f32,
    /// eight more of its width (normed, q, k, v, attended, rotated twice, projected), and the
    /// feed-forward before and after its GELU. Rough.
    pub fn activation_bytes(&self) -> f64 {
        self.tokens * BF16 * (10.0 * self.dim() + 2.0 * self.dit.ffn_dim as f64)
    }

    /// Bytes of a block's latent as it goes from GPU to GPU.
    pub fn latent_bytes(&self) -> f64 {
        self.positions * self.dit.in_dim as f64 * BF16
    }

    /// Transformer layers.
    pub fn layers(&self) -> f64 {
        self.dit.num_layers as f64
    }

    /// Attention heads.
    pub fn heads(&self) -> usize {
        self.dit.num_heads
    }

    fn dim(&self) -> f64 {
        self.dit.dim as f64
    }

    /// Multiply-adds of a layer's products for a token.
    fn per_token(&self) -> f64 {
        SQUARE * self.dim().powi(2) + 2.0 * self.dim() * self.dit.ffn_dim as f64
    }

    fn layer_weights(&self) -> f64 {
        SQUARE_WEIGHTS * self.dim().powi(2) + 2.0 * self.dim() * self.dit.ffn_dim as f64
    }

    /// FLOP of scores and weighted sum in one layer.
    fn attend(&self, queries: f64, keys: f64) -> f64 {
        2.0 * FLOP * queries * keys * self.dim()
    }

    /// A product of fewer rows has fewer waves of tiles, and as long a tail: at 1170 rows of the
    /// 1.3B model 0.65 is left (performance.md 2.7).
    fn efficiency(&self, rows: f64) -> f64 {
        let per_row = |rows: f64| self.waves(rows) / rows;
        (per_row(RATED_ROWS) / per_row(rows)).min(1.0)
    }

    /// Waves of tiles of a layer's products, tails included, each as long as its sum.
    fn waves(&self, rows: f64) -> f64 {
        let (dim, ffn) = (self.dim(), self.dit.ffn_dim as f64);
        let wave = |columns: f64| rows / TILE.0 * columns / TILE.1 / PROCESSORS + TAIL;
        SQUARE * dim * wave(dim) + dim * wave(ffn) + ffn * wave(dim)
    }
}

/// Bytes of a text encoder in bf16.
pub fn text_encoder_bytes(architecture: Architecture) -> Result<f64> {
    Ok(networks::text_encoder(architecture)?.parameters() as f64 * BF16)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A model's networks at its native size.
    pub fn native(model: &str) -> Network {
        let model = Manifest::named(model).unwrap();
        let size = FrameSize { width: model.preset.width, height: model.preset.height };
        Network::new(&model, size).unwrap()
    }

    /// Whether two numbers agree to a part of the second.
    #[track_caller]
    pub fn near(got: f64, expected: f64, part: f64) {
        assert!((got / expected - 1.0).abs() <= part, "got {got}, expected {expected}");
    }

    fn alone(network: &Network, frames: usize) -> Work {
        network.forward(Load { blocks: 1, seen: frames / 3, gpus: 1 })
    }

    /// performance.md 2.2, by frames seen: 1.3B, 14B.
    const TFLOP: [(usize, f64, f64); 7] = [
        (3, 16.18, 131.8),
        (6, 20.22, 149.7),
        (12, 28.29, 185.6),
        (18, 36.37, 221.5),
        (21, 40.41, 239.4),
        (24, 44.44, 257.4),
        (33, 56.55, 311.2),
    ];

    /// The table is rounded to four digits.
    #[test]
    fn a_forward_has_the_flop_of_the_table() {
        let networks = ["self-forcing-1.3b", "krea-realtime-14b"].map(native);
        for (frames, small, large) in TFLOP {
            for (network, expected) in networks.iter().zip([small, large]) {
                let work = alone(network, frames);
                near(work.linear + work.attention, expected * 1e12, 5e-4);
            }
        }
    }

    /// performance.md 2.3, which counts what the 512 tokens of text ask for nowhere.
    #[test]
    fn a_forward_moves_the_bytes_of_the_table() {
        for (model, frames, gigabytes) in [
            ("self-forcing-1.3b", 12, 25.5),
            ("self-forcing-1.3b", 21, 28.1),
            ("krea-realtime-14b", 12, 117.0),
            ("krea-realtime-14b", 21, 128.5),
        ] {
            near(alone(&native(model), frames).bytes, gigabytes * 1e9, 3e-3);
        }
    }

    /// performance.md 2.1, 2.4 and 2.6: the prompt, keys and values of a block, its latent.
    #[test]
    fn prompts_and_blocks_have_the_sizes_of_the_tables() {
        let [small, large] = ["self-forcing-1.3b", "krea-realtime-14b"].map(native);
        near(small.prompt(), (4.84 + 0.145) * 1e12, 0.03);
        near(large.prompt(), (4.84 + 2.15) * 1e12, 0.03);
        near(small.kv_bytes() / small.layers(), 28.75e6, 1e-3);
        near(large.kv_bytes() / large.layers(), 95.85e6, 1e-3);
        near(small.latent_bytes(), 599e3, 1e-3);
        assert_eq!((small.tokens, small.layers(), small.heads()), (4680.0, 30.0, 12));
    }

    /// performance.md 2.7: 0.65 at a quarter of the rows, and nothing is gained above the whole.
    #[test]
    fn short_products_are_less_efficient() {
        let network = native("self-forcing-1.3b");
        near(network.efficiency(1170.0), 0.65, 0.01);
        assert_eq!((network.efficiency(4680.0), network.efficiency(9360.0)), (1.0, 1.0));
        assert!(network.efficiency(10.0) < 0.02);
    }
}
