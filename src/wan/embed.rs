//! What surrounds the layers: patches, timesteps, text, head.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{PATCH, WanConfig};
use crate::layers::linear::Linear;
use crate::layers::norm::LayerNorm;
use crate::layers::rope::Grid;

const MAX_PERIOD: f64 = 10_000.0;

/// Latent frames to tokens: a convolution whose kernel is its stride, hence a linear.
#[derive(Debug)]
pub(super) struct PatchEmbedding {
    linear: Linear,
}

impl PatchEmbedding {
    pub(super) fn new(config: &WanConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get((config.dim, config.in_dim, 1, PATCH, PATCH), "weight")?;
        let weight = weight.reshape((config.dim, config.in_dim * PATCH * PATCH))?;
        Ok(Self { linear: Linear::new(weight, vb.get(config.dim, "bias")?)? })
    }

    /// `(frames, channels, h, w)` to `(frames * tokens, dim)`.
    pub(super) fn forward(&self, latent: &Tensor) -> Result<Tensor> {
        self.linear.forward(&patchify(&latent.to_dtype(self.linear.dtype())?)?)
    }
}

/// `(frames, channels, h, w)` to `(frames * tokens, channels * ph * pw)`, channel slowest.
fn patchify(latent: &Tensor) -> Result<Tensor> {
    let (frames, channels, h, w) = latent.dims4()?;
    let (rows, cols) = (h / PATCH, w / PATCH);
    latent
        .reshape((frames, channels, rows, PATCH, cols, PATCH))?
        .permute([0, 2, 4, 1, 3, 5])? // (frames, rows, cols, channels, ph, pw)
        .reshape((frames * rows * cols, channels * PATCH * PATCH))
}

/// Timesteps to what modulates the layers, in f32.
#[derive(Debug)]
pub(super) struct TimeEmbedding {
    freq_dim: usize,
    first: Linear,
    second: Linear,
    projection: Linear,
}

/// The timesteps of all frames of a forward.
pub(super) struct TimeModulation {
    /// `(frames, 1, dim)`, for the head.
    pub(super) head: Tensor,
    /// `(frames, 6, dim)`, for the layers.
    pub(super) layers: Tensor,
}

impl TimeEmbedding {
    pub(super) fn new(config: &WanConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.clone().set_dtype(DType::F32); // modulation stays in f32
        let (dim, embedding) = (config.dim, vb.pp("time_embedding"));
        Ok(Self {
            freq_dim: config.freq_dim,
            first: Linear::load(config.freq_dim, dim, embedding.pp("0"))?,
            second: Linear::load(dim, dim, embedding.pp("2"))?,
            projection: Linear::load(dim, 6 * dim, vb.pp("time_projection").pp("1"))?,
        })
    }

    pub(super) fn forward(&self, timesteps: &[f64]) -> Result<TimeModulation> {
        let sinusoid = sinusoid(timesteps, self.freq_dim, self.first.device())?;
        let e = self.second.forward(&self.first.forward(&sinusoid)?.silu()?)?; // (frames, dim)
        let (frames, dim) = e.dims2()?;
        let layers = self.projection.forward(&e.silu()?)?.reshape((frames, 6, dim))?;
        Ok(TimeModulation { head: e.unsqueeze(1)?, layers })
    }
}

/// `[cos(t w_0) .. cos(t w_n), sin(t w_0) .. sin(t w_n)]`, angles in f64: `(timesteps, width)`.
fn sinusoid(timesteps: &[f64], width: usize, device: &Device) -> Result<Tensor> {
    let half = width / 2;
    let angle = |t: f64, i: usize| t * MAX_PERIOD.powf(-(i as f64) / half as f64);
    let values: Vec<f32> = timesteps
        .iter()
        .flat_map(|&t| {
            let cos = (0..half).map(move |i| angle(t, i).cos() as f32);
            cos.chain((0..half).map(move |i| angle(t, i).sin() as f32))
        })
        .collect();
    Tensor::from_vec(values, (timesteps.len(), width), device)
}

/// Text embedding to the width of the layers.
#[derive(Debug)]
pub(super) struct TextProjection {
    first: Linear,
    second: Linear,
}

impl TextProjection {
    pub(super) fn new(config: &WanConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            first: Linear::load(config.text_dim, config.dim, vb.pp("0"))?,
            second: Linear::load(config.dim, config.dim, vb.pp("2"))?,
        })
    }

    /// `(tokens, text_dim)` to `(tokens, dim)`.
    pub(super) fn forward(&self, text: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward_gelu(text)?)
    }
}

/// Tokens to flow.
#[derive(Debug)]
pub(super) struct Head {
    modulation: Tensor, // (1, 2, dim), f32
    norm: LayerNorm,
    head: Linear,
}

impl Head {
    pub(super) fn new(config: &WanConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let out = config.in_dim * PATCH * PATCH;
        Ok(Self {
            modulation: vb.clone().set_dtype(DType::F32).get((1, 2, config.dim), "modulation")?,
            norm: LayerNorm::plain(config.dim, config.eps, &vb)?,
            head: Linear::load(config.dim, out, vb.pp("head"))?,
        })
    }

    /// `(frames, tokens, dim)` to `(frames, channels, h, w)`.
    pub(super) fn forward(&self, xs: &Tensor, time: &Tensor, grid: Grid) -> Result<Tensor> {
        let m = self.modulation.broadcast_add(time)?; // (frames, 2, dim)
        let (shift, scale) = (m.narrow(1, 0, 1)?, (m.narrow(1, 1, 1)? + 1.0)?);
        let xs = self.head.forward(&self.norm.modulated(xs, &scale, &shift)?)?;
        unpatchify(&xs, grid)
    }
}

/// `(frames, tokens, ph * pw * channels)`, channel fastest, to `(frames, channels, h, w)`.
fn unpatchify(patches: &Tensor, grid: Grid) -> Result<Tensor> {
    let (frames, _, width) = patches.dims3()?;
    let channels = width / (PATCH * PATCH);
    patches
        .reshape((frames, grid.rows, grid.cols, PATCH, PATCH, channels))?
        .permute([0, 5, 1, 3, 2, 4])? // (frames, channels, rows, ph, cols, pw)
        .reshape((frames, channels, grid.rows * PATCH, grid.cols * PATCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::layers::numbers::normal;

    /// Values of an independent computation.
    #[test]
    fn sinusoid_of_a_shifted_timestep() -> Result<()> {
        let s = sinusoid(&[937.5], 256, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let (cos, sin) = s.split_at(128);
        for (i, c, s) in [
            (0, 0.262302, 0.964986),
            (1, 0.580487, -0.814269),
            (2, 0.257223, 0.966352),
            (64, -0.998761, 0.049757),
            (127, 0.994930, 0.100574),
        ] {
            assert!((cos[i] - c).abs() < 1e-6 && (sin[i] - s).abs() < 1e-6, "frequency {i}");
        }
        Ok(())
    }

    proptest! {
        /// The head's order has the channel fastest, the patches' has it slowest.
        #[test]
        fn unpatchify_undoes_patchify(
            frames in 1usize..4, channels in 1usize..5, rows in 1usize..5, cols in 1usize..5,
        ) {
            let latent = normal(0, &[frames, channels, rows * PATCH, cols * PATCH]);
            let patches = patchify(&latent).unwrap();
            let patches = patches.reshape((frames, rows * cols, channels, PATCH * PATCH)).unwrap();
            let patches = patches.transpose(2, 3).unwrap().flatten_from(2).unwrap();
            let back = unpatchify(&patches, Grid { rows, cols }).unwrap();
            let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            prop_assert_eq!(values(&back), values(&latent));
        }
    }

    #[test]
    fn unpatchify_puts_channels_apart() -> Result<()> {
        let grid = Grid { rows: 1, cols: 2 };
        let patches = Tensor::arange(0f32, 16.0, &Device::Cpu)?.reshape((1, 2, 8))?; // 2 channels
        let latent = unpatchify(&patches, grid)?.flatten_all()?.to_vec1::<f32>()?;
        let channel_0 = [0.0, 2.0, 8.0, 10.0, 4.0, 6.0, 12.0, 14.0];
        assert_eq!(latent[..8], channel_0);
        assert_eq!(latent[8..], channel_0.map(|x| x + 1.0));
        Ok(())
    }
}
