//! TAEHV: a tiny auto-encoder whose layers remember one frame, with 25 times less arithmetic than Wan's own.
//!
//! 2-D convolutions throughout; what a memory layer (upstream `MemBlock`) looks back at is its own
//! input of one frame ago. Each latent stands for four frames, the first one too, of which a stream
//! drops the first three.
//!
//! After `TAEHV` of <https://github.com/madebyollin/taehv>, as Self-Forcing at 33593df uses it.

use std::sync::Arc;

use candle_core::{Context, DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::Deserialize;

use super::vae::{LatentScale, concat};
use crate::device::moved;
use crate::layers::conv::{Activation, Conv, Geometry};
use crate::model::{FrameDecoder, Interrupt};

/// Picture channels.
const RGB: usize = 3;

/// Layers with a memory at each size.
const MEMORIES_PER_SIZE: usize = 3;

/// Pictures times pixels coded at once. Where a single latent stands for more than this, latents are
/// coded one by one.
const PIXELS_AT_ONCE: usize = 1 << 20;

/// Sizes of the tiny auto-encoder.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TinyVaeConfig {
    /// Channels of a latent.
    pub z_dim: usize,
    /// Channels of the decoder at each size, smallest frames first.
    pub widths: Vec<usize>,
    /// Channels of the encoder and of the decoder's last layers.
    pub width: usize,
    /// Frames that the decoder makes of one at each size, smallest first.
    pub growth: Vec<usize>,
    /// Frames dropped at the start of a stream.
    pub frames_to_trim: usize,
    /// Mean and deviation of each latent channel where the network works on the auto-encoder's scale
    /// (LightTAE) instead of the DiT's.
    pub latent_scale: Option<(Vec<f32>, Vec<f32>)>,
}

impl TinyVaeConfig {
    /// `taew2_1`: latents as the DiT leaves them.
    pub fn taew2_1() -> Self {
        Self {
            z_dim: 16,
            widths: vec![256, 128, 64],
            width: 64,
            growth: vec![1, 2, 2],
            frames_to_trim: 3,
            latent_scale: None,
        }
    }

    /// `lighttaew2_1`: the same layers on latents of the auto-encoder's scale.
    pub fn light() -> Self {
        let wan = super::vae::WanVaeConfig::wan21();
        Self { latent_scale: Some((wan.mean, wan.std)), ..Self::taew2_1() }
    }

    /// Pixels along each side that a latent stands for.
    pub fn spatial_stride(&self) -> usize {
        1 << self.widths.len()
    }

    /// What the network is computed in where the rest of a model is computed in `dtype`: upstream runs it in f16, and
    /// bf16 would show (a cosine of 0.984 on its golden pictures; in f16 0.9999).
    pub fn dtype(&self, dtype: DType) -> DType {
        if dtype == DType::BF16 { DType::F16 } else { dtype }
    }

    /// Frames that each latent stands for.
    pub fn frames_per_latent(&self) -> usize {
        self.growth.iter().product()
    }

    fn check(&self) -> Result<()> {
        if self.widths.len() != self.growth.len() || self.growth.contains(&0) {
            bail!(
                "expected a growth above zero for each of {:?}, got {:?}",
                self.widths,
                self.growth
            )
        }
        Ok(())
    }

    fn scale(&self, vb: &VarBuilder<'_>) -> Result<Option<LatentScale>> {
        let Some((mean, std)) = &self.latent_scale else { return Ok(None) };
        if mean.len() != self.z_dim || std.len() != self.z_dim {
            let (mean, std) = (mean.len(), std.len());
            bail!("expected {} means and deviations, got {mean} and {std}", self.z_dim)
        }
        LatentScale::new(mean, std, vb).map(Some)
    }

    /// Latents that are coded at once: a few small ones, or a single large one.
    fn latents_at_once(&self, (height, width): (usize, usize)) -> usize {
        let pixels = height * width * self.spatial_stride().pow(2);
        (PIXELS_AT_ONCE / (pixels * self.frames_per_latent())).max(1)
    }
}

/// What the decoder or the encoder remembers of a stream: the last input of each memory layer.
#[derive(Clone, Debug)]
pub struct TinyState {
    memories: Vec<Option<Tensor>>,
}

/// `relu(conv(relu(conv(relu(conv([x, past]))))) + x)`; upstream `MemBlock`.
#[derive(Debug)]
struct Memory {
    convs: [Conv; 3],
}

impl Memory {
    /// The first kernel's input channels are the frame's and then its predecessor's; as a kernel of
    /// two frames it needs no concatenation.
    fn new(channels: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let vb = vb.pp("conv");
        let both = vb.pp(0).get((channels, 2 * channels, 3, 3), "weight")?;
        let [now, past] = [0, channels].map(|start| both.narrow(1, start, channels));
        let both = Tensor::stack(&[past?, now?], 2)?;
        let bias = vb.pp(0).get(channels, "bias")?;
        let conv = |i| conv2d((channels, channels), Geometry::same(3), Bias::Stored, vb.pp(i));
        Ok(Self {
            convs: [
                Conv::new(&both, Some(&bias), Geometry::same(3).causal(2))?.then(Activation::Relu),
                conv(2)?.then(Activation::Relu),
                conv(4)?.then(Activation::Relu),
            ],
        })
    }

    fn step(&self, past: &mut Option<Tensor>, xs: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.convs;
        let hidden = second.forward(None, &first.forward(past.as_ref(), xs)?)?;
        let ys = third.forward_add(None, &hidden, xs)?;
        *past = Some(xs.narrow(0, xs.dim(0)? - 1, 1)?.force_contiguous()?);
        Ok(ys)
    }
}

/// Whether a convolution has a bias in the checkpoint.
#[derive(Clone, Copy)]
enum Bias {
    Stored,
    Absent,
}

/// Loads a 3x3 kernel, `(out, in, 3, 3)`.
fn conv2d(
    (inputs, outputs): (usize, usize),
    geometry: Geometry,
    bias: Bias,
    vb: VarBuilder<'_>,
) -> Result<Conv> {
    let weight = vb.get((outputs, inputs, 3, 3), "weight")?.unsqueeze(2)?;
    let bias = match bias {
        Bias::Stored => Some(vb.get(outputs, "bias")?),
        Bias::Absent => None,
    };
    Conv::new(&weight, bias.as_ref(), geometry)
}

/// One layer of either network.
#[derive(Debug)]
enum Layer {
    Conv(Conv),
    Memory(Box<Memory>),
    /// One frame to several, each by a kernel of its own; upstream `TGrow` has them as one kernel's channels.
    Grow(Vec<Conv>),
}

impl Layer {
    /// Upstream `TGrow(channels, growth)`. Of a kernel stored for more frames the loader keeps the last ones.
    fn grow(channels: usize, growth: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let weight = vb.pp("conv").get((channels * growth, channels, 1, 1), "weight")?;
        let conv = |frame| {
            let weight = weight.narrow(0, frame * channels, channels)?.unsqueeze(2)?;
            Conv::new(&weight, None, Geometry::POINTWISE)
        };
        (0..growth).map(conv).collect::<Result<_>>().map(Layer::Grow)
    }

    /// Upstream `TPool(channels, count)`: several frames to one, as a strided kernel in time.
    fn pool(channels: usize, count: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let weight = vb.pp("conv").get((channels, count * channels, 1, 1), "weight")?;
        let weight = weight.reshape((channels, count, channels, 1, 1))?.transpose(1, 2)?;
        let geometry = Geometry { frame_stride: count, ..Geometry::POINTWISE };
        Ok(Layer::Conv(Conv::new(&weight.contiguous()?, None, geometry)?))
    }

    fn memory_count(layers: &[Self]) -> usize {
        layers.iter().filter(|layer| matches!(layer, Layer::Memory(_))).count()
    }
}

/// Runs `layers` in order, asking `interrupt` before each.
fn run(
    layers: &[Layer],
    state: &mut TinyState,
    mut xs: Tensor,
    interrupt: &Interrupt,
) -> Result<Tensor> {
    let mut memories = state.memories.iter_mut();
    for (i, layer) in layers.iter().enumerate() {
        interrupt.check()?;
        let ys = match layer {
            Layer::Conv(conv) => conv.forward(None, &xs),
            Layer::Grow(convs) => grow(convs, &xs),
            Layer::Memory(memory) => match memories.next() {
                Some(past) => memory.step(past, &xs),
                None => bail!("expected a state with a memory for layer {i}"),
            },
        };
        xs = ys.with_context(|| format!("tiny vae layer {i}"))?;
    }
    interrupt.check()?;
    Ok(xs)
}

/// The frames of all kernels in turn, for each frame.
fn grow(convs: &[Conv], xs: &Tensor) -> Result<Tensor> {
    if let [conv] = convs {
        return conv.forward(None, xs);
    }
    let frames = convs.iter().map(|conv| conv.forward(None, xs)).collect::<Result<Vec<_>>>()?;
    Tensor::stack(&frames, 1)?.flatten(0, 1)
}

/// Turns latents into pictures; upstream `TAEHV.decode`.
#[derive(Debug)]
pub struct TinyDecoder {
    config: TinyVaeConfig,
    device: Device,
    dtype: DType,
    scale: Option<LatentScale>,
    layers: Vec<Layer>,
}

impl TinyDecoder {
    /// Loads `decoder.*`.
    pub fn new(config: &TinyVaeConfig, vb: VarBuilder<'_>) -> Result<Self> {
        config.check()?;
        let scale = config.scale(&vb)?;
        Ok(Self {
            layers: decoder_layers(config, vb.pp("decoder"))?,
            scale,
            config: config.clone(),
            device: vb.device().clone(),
            dtype: vb.dtype(),
        })
    }

    /// The sizes it was built with.
    pub fn config(&self) -> &TinyVaeConfig {
        &self.config
    }

    /// A stream that has not begun.
    pub fn state(&self) -> TinyState {
        TinyState { memories: vec![None; Layer::memory_count(&self.layers)] }
    }

    /// Decodes the stream's next latents, `(latents, z_dim, h, w)` on the DiT's scale, in any dtype
    /// and on any device, to `(frames, height, width, 3)`, about `[0, 1]`, neither clamped nor trimmed: four frames for
    /// each latent. After an error `state` is as before.
    pub fn step(
        &self,
        state: &mut TinyState,
        latents: &Tensor,
        interrupt: &Interrupt,
    ) -> Result<Tensor> {
        let (count, channels, height, width) = latents.dims4()?;
        if channels != self.config.z_dim || latents.elem_count() == 0 {
            bail!("expected latents of {} channels, got {:?}", self.config.z_dim, latents.shape())
        }
        let latents = moved(latents, &self.device)?.to_dtype(self.dtype)?;
        let zs = latents.permute((0, 2, 3, 1))?.contiguous()?;
        let zs = self.scale.as_ref().map_or(Ok(zs.clone()), |scale| scale.restore(&zs))?;
        let zs = ((zs / 3.0)?.tanh()? * 3.0)?; // upstream `Clamp`
        let mut next = state.clone();
        let mut frames = Vec::new();
        let most = self.config.latents_at_once((height, width));
        for start in (0..count).step_by(most) {
            let zs = zs.narrow(0, start, most.min(count - start))?;
            frames.push(run(&self.layers, &mut next, zs, interrupt)?);
        }
        let frames = concat(&frames)?;
        *state = next;
        Ok(frames)
    }
}

/// The decoder's layers. Upstream enlarges before `TGrow`; a 1x1 kernel does not mind the order, so
/// that here it runs on the small frames and the convolution after it enlarges.
fn decoder_layers(config: &TinyVaeConfig, vb: VarBuilder<'_>) -> Result<Vec<Layer>> {
    let widest = config.widths.first().copied().unwrap_or(config.width);
    let first = conv2d((config.z_dim, widest), Geometry::same(3), Bias::Stored, vb.pp(1))?;
    let mut layers = vec![Layer::Conv(first.then(Activation::Relu))];
    let mut index = 3; // after clamp, convolution, ReLU
    for (i, (&width, &growth)) in config.widths.iter().zip(&config.growth).enumerate() {
        for _ in 0..MEMORIES_PER_SIZE {
            layers.push(Layer::Memory(Box::new(Memory::new(width, vb.pp(index))?)));
            index += 1;
        }
        layers.push(Layer::grow(width, growth, vb.pp(index + 1))?);
        let next = config.widths.get(i + 1).copied();
        let geometry = Geometry { enlarge: 2, ..Geometry::same(3) };
        let widths = (width, next.unwrap_or(config.width));
        let conv = conv2d(widths, geometry, Bias::Absent, vb.pp(index + 2))?;
        // The last size's ReLU stands on its own upstream; elsewhere a memory layer follows.
        let activation = next.map_or(Activation::Relu, |_| Activation::Identity);
        layers.push(Layer::Conv(conv.then(activation)));
        index += 3;
    }
    let last = conv2d((config.width, RGB), Geometry::same(3), Bias::Stored, vb.pp(index + 1))?;
    layers.push(Layer::Conv(last));
    Ok(layers)
}

/// Turns pictures into latents; upstream `TAEHV.encode`.
#[derive(Debug)]
pub struct TinyEncoder {
    config: TinyVaeConfig,
    device: Device,
    dtype: DType,
    scale: Option<LatentScale>,
    layers: Vec<Layer>,
}

impl TinyEncoder {
    /// Loads `encoder.*`.
    pub fn new(config: &TinyVaeConfig, vb: VarBuilder<'_>) -> Result<Self> {
        config.check()?;
        let scale = config.scale(&vb)?;
        Ok(Self {
            device: vb.device().clone(),
            dtype: vb.dtype(),
            layers: encoder_layers(config, vb.pp("encoder"))?,
            scale,
            config: config.clone(),
        })
    }

    /// A stream that has not begun.
    pub fn state(&self) -> TinyState {
        TinyState { memories: vec![None; Layer::memory_count(&self.layers)] }
    }

    /// Encodes the stream's next pictures, `(frames, height, width, 3)` in `[0, 1]`, four for each
    /// latent, to `(latents, z_dim, h, w)` on the DiT's scale. After an error `state` is as before.
    pub fn step(
        &self,
        state: &mut TinyState,
        frames: &Tensor,
        interrupt: &Interrupt,
    ) -> Result<Tensor> {
        let (count, height, width, _) = frames.dims4()?;
        let (stride, per_latent) = (self.config.spatial_stride(), self.config.frames_per_latent());
        if count == 0 || !count.is_multiple_of(per_latent) {
            bail!("expected a multiple of {per_latent} frames, got {count}")
        }
        if !height.is_multiple_of(stride) || !width.is_multiple_of(stride) || height * width == 0 {
            bail!("expected sides that are multiples of {stride}, got {height} x {width}")
        }
        let most = self.config.latents_at_once((height / stride, width / stride)) * per_latent;
        let frames = moved(frames, &self.device)?.to_dtype(self.dtype)?;
        let mut next = state.clone();
        let mut latents = Vec::new();
        for start in (0..count).step_by(most) {
            let frames = frames.narrow(0, start, most.min(count - start))?;
            latents.push(run(&self.layers, &mut next, frames, interrupt)?);
        }
        let mu = concat(&latents)?;
        let mu = self.scale.as_ref().map_or(Ok(mu.clone()), |scale| scale.normalise(&mu))?;
        let latents = mu.permute((0, 3, 1, 2))?.contiguous()?;
        *state = next;
        Ok(latents)
    }
}

/// The encoder's layers: it shrinks time in the order in which the decoder, reversed, grew it.
fn encoder_layers(config: &TinyVaeConfig, vb: VarBuilder<'_>) -> Result<Vec<Layer>> {
    let width = config.width;
    let first = conv2d((RGB, width), Geometry::same(3), Bias::Stored, vb.pp(0))?;
    let mut layers = vec![Layer::Conv(first.then(Activation::Relu))];
    let mut index = 2; // after convolution, ReLU
    for &count in config.growth.iter().rev() {
        layers.push(Layer::pool(width, count, vb.pp(index))?);
        let geometry = Geometry { stride: 2, ..Geometry::same(3) };
        let conv = conv2d((width, width), geometry, Bias::Absent, vb.pp(index + 1))?;
        layers.push(Layer::Conv(conv));
        index += 2;
        for _ in 0..MEMORIES_PER_SIZE {
            layers.push(Layer::Memory(Box::new(Memory::new(width, vb.pp(index))?)));
            index += 1;
        }
    }
    let last = conv2d((width, config.z_dim), Geometry::same(3), Bias::Stored, vb.pp(index))?;
    layers.push(Layer::Conv(last));
    Ok(layers)
}

/// A stream's decoder: shared weights and this stream's state.
#[derive(Clone, Debug)]
pub struct TinyFrameDecoder {
    weights: Arc<TinyDecoder>,
    state: TinyState,
    /// Frames still to be dropped.
    trim: usize,
}

impl TinyFrameDecoder {
    /// At the start of a stream.
    pub fn new(weights: Arc<TinyDecoder>) -> Self {
        Self { state: weights.state(), trim: weights.config.frames_to_trim, weights }
    }
}

impl FrameDecoder for TinyFrameDecoder {
    fn step(&mut self, latents: &Tensor, interrupt: &Interrupt) -> Result<Tensor> {
        let mut next = self.state.clone();
        let frames = self.weights.step(&mut next, latents, interrupt)?;
        let trimmed = self.trim.min(frames.dim(0)?);
        let frames = frames.narrow(0, trimmed, frames.dim(0)? - trimmed)?;
        let frames = frames.to_dtype(DType::F32)?.clamp(0f32, 1f32)?;
        (self.state, self.trim) = (next, self.trim - trimmed);
        Ok(frames)
    }

    fn fresh(&self) -> Box<dyn FrameDecoder> {
        Box::new(Self::new(self.weights.clone()))
    }
}
