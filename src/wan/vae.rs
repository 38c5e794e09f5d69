//! The causal video auto-encoder of Wan 2.1: latents to pictures and back, as a stream.
//!
//! The first latent stands for one frame, each later one for four; sides shrink by eight. Every
//! convolution looks back only, so that latents decode as they come. Weights are shared
//! ([`WanDecoder`], [`WanEncoder`]); what a stream remembers is a [`WanState`].
//!
//! After <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/vae.py>.

use std::sync::Arc;

use candle_core::{Context, DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::Deserialize;

use super::vae_layers::{
    CausalConv, Downsample, Head, LayerPast, Middle, Past, Residual, Upsample, conv3d,
};
use crate::device::moved;
use crate::layers::conv::{Conv, Geometry};
use crate::model::{FrameDecoder, Interrupt};

/// Frames that each latent but the first stands for.
const FRAMES_PER_LATENT: usize = 4;

/// Picture channels.
const RGB: usize = 3;

/// Pictures times pixels coded at once: 400 MiB for an activation of 96 channels in f32. Where a
/// single latent stands for more than this, latents are coded one by one.
const PIXELS_AT_ONCE: usize = 1 << 20;

/// Sizes of the auto-encoder and the statistics of its latents.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct WanVaeConfig {
    /// Channels of the layers at full size.
    pub dim: usize,
    /// Channels of a latent.
    pub z_dim: usize,
    /// Channels at each size, in multiples of `dim`, full size first.
    pub dim_mult: Vec<usize>,
    /// Residual layers at each size of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Whether the encoder halves the frames after each size but the last; the decoder mirrors it.
    pub temporal_downsample: Vec<bool>,
    /// Mean of each latent channel.
    #[serde(default = "latent_mean")]
    pub mean: Vec<f32>,
    /// Standard deviation of each latent channel.
    #[serde(default = "latent_std")]
    pub std: Vec<f32>,
}

/// Channels that a kernel for GPUs takes at once.
const CHANNELS: usize = 8;

/// Wan 2.1's, upstream `WanVAEWrapper.mean`.
fn latent_mean() -> Vec<f32> {
    vec![
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715,
        0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ]
}

/// Wan 2.1's, upstream `WanVAEWrapper.std`.
fn latent_std() -> Vec<f32> {
    vec![
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652,
        1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ]
}

/// The embedded model's mean of each latent channel, measured on what it was trained on.
const POCKET_MEAN: [f32; 16] = [
    0.2403, -0.0315, 0.0175, -0.2184, -0.1276, -0.0453, -0.1117, 0.1107, -0.0716, -0.1142, -0.1758,
    -0.0448, -0.0441, -0.034, -0.1271, 0.1721,
];

/// The embedded model's standard deviation of each latent channel, measured likewise.
const POCKET_STD: [f32; 16] = [
    0.9099, 1.1009, 0.9155, 0.9338, 0.9226, 1.0875, 0.8753, 0.9738, 1.0127, 0.9897, 0.9648, 0.8961,
    0.9602, 0.9602, 0.9948, 0.9147,
];

impl WanVaeConfig {
    /// Wan 2.1's own auto-encoder.
    pub fn wan21() -> Self {
        Self {
            dim: 96,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            temporal_downsample: vec![false, true, true],
            mean: latent_mean(),
            std: latent_std(),
        }
    }

    /// LightVAE (`lightvaew2_1`): the same network, a quarter as wide.
    pub fn light() -> Self {
        Self { dim: 24, ..Self::wan21() }
    }

    /// What the network is computed in where the rest of a model is computed in `dtype`: kernels take channels by
    /// eights, and without them sums over a convolution's taps would be rounded at each tap.
    pub fn dtype(&self, dtype: DType) -> DType {
        if self.dim.is_multiple_of(CHANNELS) { dtype } else { DType::F32 }
    }

    /// The embedded model's: narrow enough for two CPU cores, and half as wide at each larger size.
    pub fn pocket() -> Self {
        Self {
            dim: 8,
            dim_mult: vec![1, 2, 4, 8],
            num_res_blocks: 1,
            mean: POCKET_MEAN.to_vec(),
            std: POCKET_STD.to_vec(),
            ..Self::wan21()
        }
    }

    /// Pixels along each side that a latent stands for.
    pub fn spatial_stride(&self) -> usize {
        1 << self.temporal_downsample.len()
    }

    fn check(&self) -> Result<()> {
        let sizes = self.dim_mult.len();
        if sizes == 0 || self.temporal_downsample.len() + 1 != sizes {
            bail!(
                "expected one flag fewer than the {sizes} sizes, got {:?}",
                self.temporal_downsample
            )
        }
        if self.temporal_downsample.iter().filter(|&&t| t).count() != 2 {
            bail!("expected two halvings in time, got {:?}", self.temporal_downsample)
        }
        if self.mean.len() != self.z_dim || self.std.len() != self.z_dim {
            let (mean, std) = (self.mean.len(), self.std.len());
            bail!("expected {} means and deviations, got {mean} and {std}", self.z_dim)
        }
        Ok(())
    }

    /// Channels at each size, full size first.
    fn widths(&self) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator {
        self.dim_mult.iter().map(|mult| self.dim * mult)
    }

    fn widest(&self) -> usize {
        self.widths().next_back().unwrap_or(self.dim)
    }

    /// Latents that are decoded at once: a few small ones, or a single large one.
    fn latents_at_once(&self, (height, width): (usize, usize)) -> usize {
        let pixels = height * width * self.spatial_stride().pow(2);
        (PIXELS_AT_ONCE / (pixels * FRAMES_PER_LATENT)).max(1)
    }
}

/// Mean and deviation of the latents, `(channels,)`: between the DiT's scale and the network's.
#[derive(Debug)]
pub(super) struct LatentScale {
    mean: Tensor,
    std: Tensor,
}

impl LatentScale {
    pub(super) fn new(mean: &[f32], std: &[f32], vb: &VarBuilder<'_>) -> Result<Self> {
        let tensor = |xs| Tensor::new(xs, vb.device())?.to_dtype(vb.dtype());
        Ok(Self { mean: tensor(mean)?, std: tensor(std)? })
    }

    /// `z * std + mean`, channels last.
    pub(super) fn restore(&self, latents: &Tensor) -> Result<Tensor> {
        latents.broadcast_mul(&self.std)?.broadcast_add(&self.mean)
    }

    /// `(mu - mean) / std`, channels last.
    pub(super) fn normalise(&self, mu: &Tensor) -> Result<Tensor> {
        mu.broadcast_sub(&self.mean)?.broadcast_div(&self.std)
    }
}

/// What the decoder or the encoder remembers of a stream; clones share memory.
#[derive(Clone, Debug)]
pub struct WanState {
    conv1: Past,
    middle: [LayerPast; 2],
    layers: Vec<LayerPast>,
    head: Past,
    begun: bool,
}

impl WanState {
    fn new(layers: usize) -> Self {
        Self {
            conv1: Past::default(),
            middle: Default::default(),
            layers: vec![LayerPast::default(); layers],
            head: Past::default(),
            begun: false,
        }
    }
}

/// A layer between the middle and an end.
#[derive(Debug)]
enum Layer {
    Residual(Residual),
    Upsample(Upsample),
    Downsample(Downsample),
}

impl Layer {
    fn step(&self, past: &mut LayerPast, xs: &Tensor) -> Result<Tensor> {
        match self {
            Layer::Residual(layer) => layer.step(past, xs),
            Layer::Upsample(layer) => layer.step(&mut past[0], xs),
            Layer::Downsample(layer) => layer.step(&mut past[0], xs),
        }
    }
}

/// Runs `layers` in order, asking `interrupt` before each.
fn run(
    layers: &[Layer],
    pasts: &mut [LayerPast],
    mut xs: Tensor,
    interrupt: &Interrupt,
) -> Result<Tensor> {
    if layers.len() != pasts.len() {
        bail!("expected the state of {} layers, got one of {}", layers.len(), pasts.len())
    }
    for (i, (layer, past)) in layers.iter().zip(pasts).enumerate() {
        interrupt.check()?;
        xs = layer.step(past, &xs).with_context(|| format!("vae layer {i}"))?;
    }
    interrupt.check()?;
    Ok(xs)
}

/// Turns latents into pictures; upstream `WanVAE_.cached_decode`.
#[derive(Debug)]
pub struct WanDecoder {
    config: WanVaeConfig,
    device: Device,
    dtype: DType,
    scale: LatentScale,
    conv2: Conv,
    conv1: CausalConv,
    middle: Middle,
    upsamples: Vec<Layer>,
    head: Head,
}

impl WanDecoder {
    /// Loads `conv2.*` and `decoder.*`.
    pub fn new(config: &WanVaeConfig, vb: VarBuilder<'_>) -> Result<Self> {
        config.check()?;
        let (z, widest) = (config.z_dim, config.widest());
        let decoder = vb.pp("decoder");
        Ok(Self {
            scale: LatentScale::new(&config.mean, &config.std, &vb)?,
            conv2: conv3d((z, z), (1, 1, 1), Geometry::POINTWISE, vb.pp("conv2"))?,
            conv1: CausalConv::new(z, widest, decoder.pp("conv1"))?,
            middle: Middle::new(widest, decoder.pp("middle"))?,
            upsamples: upsamples(config, decoder.pp("upsamples"))?,
            head: Head::new(config.dim * config.dim_mult[0], RGB, decoder.pp("head"))?,
            config: config.clone(),
            device: vb.device().clone(),
            dtype: vb.dtype(),
        })
    }

    /// The sizes it was built with.
    pub fn config(&self) -> &WanVaeConfig {
        &self.config
    }

    /// A stream that has not begun.
    pub fn state(&self) -> WanState {
        WanState::new(self.upsamples.len())
    }

    /// Decodes the stream's next latents, `(latents, z_dim, h, w)` on the DiT's scale, in any dtype
    /// and on any device, to `(frames, height, width, 3)`, about `[-1, 1]` and not clamped: one frame for the stream's
    /// first latent, four for each other. After an error `state` is as before.
    pub fn step(
        &self,
        state: &mut WanState,
        latents: &Tensor,
        interrupt: &Interrupt,
    ) -> Result<Tensor> {
        let (count, channels, height, width) = latents.dims4()?;
        if channels != self.config.z_dim || latents.elem_count() == 0 {
            bail!("expected latents of {} channels, got {:?}", self.config.z_dim, latents.shape())
        }
        let latents = moved(latents, &self.device)?.to_dtype(self.dtype)?;
        let zs = self.scale.restore(&latents.permute((0, 2, 3, 1))?)?;
        let zs = self.conv2.forward(None, &zs)?;
        let mut next = state.clone();
        let mut frames = Vec::new();
        let mut start = 0;
        while start < count {
            let most = if next.begun { self.config.latents_at_once((height, width)) } else { 1 };
            let len = most.min(count - start);
            frames.push(self.decode(&mut next, &zs.narrow(0, start, len)?, interrupt)?);
            next.begun = true;
            start += len;
        }
        let frames = concat(&frames)?;
        *state = next;
        Ok(frames)
    }

    /// Latents, channels last, to frames, in one go.
    fn decode(&self, state: &mut WanState, zs: &Tensor, interrupt: &Interrupt) -> Result<Tensor> {
        interrupt.check()?;
        let xs = self.conv1.step(&mut state.conv1, zs)?;
        let xs = self.middle.step(&mut state.middle, &xs, interrupt)?;
        let xs = run(&self.upsamples, &mut state.layers, xs, interrupt)?;
        self.head.step(&mut state.head, &xs)
    }
}

/// The decoder's layers, smallest frames first, numbered as upstream.
fn upsamples(config: &WanVaeConfig, vb: VarBuilder<'_>) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let mut inputs = config.widest();
    let mut doubled = config.temporal_downsample.iter().rev();
    for width in config.widths().rev() {
        for _ in 0..=config.num_res_blocks {
            let residual = Residual::new(inputs, width, vb.pp(layers.len()))?;
            layers.push(Layer::Residual(residual));
            inputs = width;
        }
        if let Some(&temporal) = doubled.next() {
            let upsample = Upsample::new(width, temporal, vb.pp(layers.len()))?;
            layers.push(Layer::Upsample(upsample));
            inputs = width / 2;
        }
    }
    Ok(layers)
}

/// Turns pictures into latents; upstream `WanVAE_.encode`.
#[derive(Debug)]
pub struct WanEncoder {
    config: WanVaeConfig,
    device: Device,
    dtype: DType,
    scale: LatentScale,
    conv1: CausalConv,
    downsamples: Vec<Layer>,
    middle: Middle,
    head: Head,
    moments: Conv,
}

impl WanEncoder {
    /// Loads `encoder.*` and `conv1.*`.
    pub fn new(config: &WanVaeConfig, vb: VarBuilder<'_>) -> Result<Self> {
        config.check()?;
        let (moments, widest) = (2 * config.z_dim, config.widest());
        let encoder = vb.pp("encoder");
        Ok(Self {
            device: vb.device().clone(),
            dtype: vb.dtype(),
            scale: LatentScale::new(&config.mean, &config.std, &vb)?,
            conv1: CausalConv::new(RGB, config.dim, encoder.pp("conv1"))?,
            downsamples: downsamples(config, encoder.pp("downsamples"))?,
            middle: Middle::new(widest, encoder.pp("middle"))?,
            head: Head::new(widest, moments, encoder.pp("head"))?,
            moments: conv3d((moments, moments), (1, 1, 1), Geometry::POINTWISE, vb.pp("conv1"))?,
            config: config.clone(),
        })
    }

    /// A stream that has not begun.
    pub fn state(&self) -> WanState {
        WanState::new(self.downsamples.len())
    }

    /// Encodes the stream's next pictures, `(frames, height, width, 3)` in `[-1, 1]`, to means,
    /// `(latents, z_dim, h, w)` on the DiT's scale. A stream's first call takes one frame and any
    /// multiple of four more, each other call a multiple of four. After an error `state` is as before.
    pub fn step(
        &self,
        state: &mut WanState,
        frames: &Tensor,
        interrupt: &Interrupt,
    ) -> Result<Tensor> {
        let (count, height, width, _) = frames.dims4()?;
        let stride = self.config.spatial_stride();
        let first = usize::from(!state.begun);
        if count < first || !(count - first).is_multiple_of(FRAMES_PER_LATENT) || count == 0 {
            bail!("expected {first} + a multiple of {FRAMES_PER_LATENT} frames, got {count}")
        }
        if !height.is_multiple_of(stride) || !width.is_multiple_of(stride) || height * width == 0 {
            bail!("expected sides that are multiples of {stride}, got {height} x {width}")
        }
        let most = self.config.latents_at_once((height / stride, width / stride));
        let frames = moved(frames, &self.device)?.to_dtype(self.dtype)?;
        let mut next = state.clone();
        let mut latents = Vec::new();
        let mut start = 0;
        while start < count {
            let most = if next.begun { most * FRAMES_PER_LATENT } else { 1 };
            let len = most.min(count - start);
            latents.push(self.encode(&mut next, &frames.narrow(0, start, len)?, interrupt)?);
            next.begun = true;
            start += len;
        }
        let latents = concat(&latents)?.permute((0, 3, 1, 2))?.contiguous()?;
        *state = next;
        Ok(latents)
    }

    /// Frames to normalised means, channels last, in one go.
    fn encode(&self, state: &mut WanState, xs: &Tensor, interrupt: &Interrupt) -> Result<Tensor> {
        interrupt.check()?;
        let xs = self.conv1.step(&mut state.conv1, xs)?;
        let xs = run(&self.downsamples, &mut state.layers, xs, interrupt)?;
        let xs = self.middle.step(&mut state.middle, &xs, interrupt)?;
        let xs = self.head.step(&mut state.head, &xs)?;
        let moments = self.moments.forward(None, &xs)?; // mean, then log variance
        self.scale.normalise(&moments.narrow(3, 0, self.config.z_dim)?)
    }
}

/// The encoder's layers, largest frames first, numbered as upstream.
fn downsamples(config: &WanVaeConfig, vb: VarBuilder<'_>) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let mut inputs = config.dim;
    let mut halved = config.temporal_downsample.iter();
    for width in config.widths() {
        for _ in 0..config.num_res_blocks {
            let residual = Residual::new(inputs, width, vb.pp(layers.len()))?;
            layers.push(Layer::Residual(residual));
            inputs = width;
        }
        if let Some(&temporal) = halved.next() {
            let downsample = Downsample::new(width, temporal, vb.pp(layers.len()))?;
            layers.push(Layer::Downsample(downsample));
        }
    }
    Ok(layers)
}

/// One tensor of all parts' frames; a single part is not copied.
pub(super) fn concat(parts: &[Tensor]) -> Result<Tensor> {
    match parts {
        [part] => Ok(part.clone()),
        parts => Tensor::cat(parts, 0),
    }
}

/// A stream's decoder: shared weights and this stream's state.
#[derive(Clone, Debug)]
pub struct WanFrameDecoder {
    weights: Arc<WanDecoder>,
    state: WanState,
}

impl WanFrameDecoder {
    /// At the start of a stream.
    pub fn new(weights: Arc<WanDecoder>) -> Self {
        Self { state: weights.state(), weights }
    }
}

impl FrameDecoder for WanFrameDecoder {
    fn step(&mut self, latents: &Tensor, interrupt: &Interrupt) -> Result<Tensor> {
        let mut next = self.state.clone();
        let frames = self.weights.step(&mut next, latents, interrupt)?;
        let frames = frames.to_dtype(DType::F32)?.clamp(-1f32, 1f32)?.affine(0.5, 0.5)?;
        self.state = next;
        Ok(frames)
    }

    fn fresh(&self) -> Box<dyn FrameDecoder> {
        Box::new(Self::new(self.weights.clone()))
    }
}
