//! Sizes of the family's transformers.

use candle_core::{Result, bail};
use serde::Deserialize;

use super::text::Umt5Config;
use super::vae::WanVaeConfig;
use crate::checkpoint::Architecture;
use crate::model::VideoSpec;

/// Latent rows and columns of a patch; patches never span frames.
pub(super) const PATCH: usize = 2;
/// Pixels of a latent row or column.
const SPATIAL_STRIDE: usize = 8;

/// Sizes of one DiT. Names are upstream's.
///
/// <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/configs/wan_t2v_1_3B.py>
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct WanConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Width inside the feed-forward.
    pub ffn_dim: usize,
    /// Attention heads; a head is `dim / num_heads` wide.
    pub num_heads: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Width of the timestep's sinusoid.
    pub freq_dim: usize,
    /// Width of the text embedding.
    pub text_dim: usize,
    /// Rows of text that are attended to, padding included.
    pub text_len: usize,
    /// Channels of a latent frame.
    #[serde(default = "latent_channels")]
    pub in_dim: usize,
    /// Added under the root of every norm.
    #[serde(default = "eps")]
    pub eps: f64,
}

fn latent_channels() -> usize {
    16
}

fn eps() -> f64 {
    1e-6
}

impl WanConfig {
    /// Wan 2.1 T2V 1.3B: Self-Forcing, LongLive.
    pub fn t2v_1_3b() -> Self {
        Self {
            dim: 1536,
            ffn_dim: 8960,
            num_heads: 12,
            num_layers: 30,
            freq_dim: 256,
            text_dim: 4096,
            text_len: 512,
            in_dim: latent_channels(),
            eps: eps(),
        }
    }

    /// Wan 2.1 T2V 14B: Krea Realtime.
    pub fn t2v_14b() -> Self {
        Self { dim: 5120, ffn_dim: 13824, num_heads: 40, num_layers: 40, ..Self::t2v_1_3b() }
    }

    /// The embedded model's sizes: small enough for two CPU cores.
    pub fn pocket() -> Self {
        Self {
            dim: 128,
            ffn_dim: 1024,
            num_heads: 4,
            num_layers: 6,
            freq_dim: 64,
            text_dim: 128,
            text_len: 64,
            ..Self::t2v_1_3b()
        }
    }

    /// What the rest of the program needs to know; an error when the sizes do not fit together.
    pub fn spec(&self) -> Result<VideoSpec> {
        let Self { dim, num_heads, freq_dim, .. } = *self;
        if num_heads == 0 || dim % (2 * num_heads) != 0 || dim / num_heads < 6 {
            bail!("dim {dim} must be num_heads {num_heads} times an even head width of 6 or more");
        }
        if freq_dim == 0 || freq_dim % 2 != 0 {
            bail!("freq_dim must be even and positive, got {freq_dim}");
        }
        Ok(VideoSpec {
            latent_channels: self.in_dim,
            spatial_stride: SPATIAL_STRIDE,
            patch: PATCH,
            layers: self.num_layers,
            heads: num_heads,
            head_dim: dim / num_heads,
        })
    }
}

/// The transformer of an architecture.
pub fn dit_config(architecture: Architecture) -> WanConfig {
    match architecture {
        Architecture::Pocket => WanConfig::pocket(),
        Architecture::T2v1_3b => WanConfig::t2v_1_3b(),
        Architecture::T2v14b => WanConfig::t2v_14b(),
    }
}

/// The auto-encoder of an architecture.
pub fn vae_config(architecture: Architecture) -> WanVaeConfig {
    match architecture {
        Architecture::Pocket => WanVaeConfig::pocket(),
        Architecture::T2v1_3b | Architecture::T2v14b => WanVaeConfig::wan21(),
    }
}

/// The text encoder of an architecture.
pub fn text_config(architecture: Architecture) -> Umt5Config {
    match architecture {
        Architecture::Pocket => Umt5Config::pocket(),
        Architecture::T2v1_3b | Architecture::T2v14b => Umt5Config::xxl(),
    }
}
