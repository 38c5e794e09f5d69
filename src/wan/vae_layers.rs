//! Layers of the causal video auto-encoder, on `(frames, height, width, channels)`.
//!
//! Each temporal layer keeps what it must remember in a [`Past`] that its caller owns, so that a
//! stream decodes to the same pictures however it is cut.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use crate::layers::attention::attend;
use crate::layers::conv::{Conv, Geometry};
use crate::layers::norm::rms_norm_silu;
use crate::model::{Interrupt, Kv};

/// Frames that a kernel of three frames needs of the past (upstream `CACHE_T`).
const REACH: usize = 2;

/// Smallest norm a pixel is divided by, as in `torch.nn.functional.normalize`.
const MIN_NORM: f64 = 1e-12;

/// What a temporal convolution remembers of its input.
#[derive(Clone, Debug, Default)]
pub(super) enum Past {
    /// Its stream has not begun.
    #[default]
    Unseen,
    /// Its stream begins with the next frame, after zeros (upstream's `"Rep"`).
    Zeros,
    /// Its last input frames, `(1..=2, height, width, channels)`.
    Frames(Tensor),
}

impl Past {
    fn frames(&self) -> Option<&Tensor> {
        match self {
            Past::Frames(frames) => Some(frames),
            Past::Unseen | Past::Zeros => None,
        }
    }

    /// The last `count` frames of this past and `xs`, in memory of their own.
    fn after(&self, xs: &Tensor, count: usize) -> Result<Self> {
        let new = xs.dim(0)?.min(count);
        let kept = xs.narrow(0, xs.dim(0)? - new, new)?.force_contiguous()?;
        let Some(old) = self.frames().filter(|_| new < count) else {
            return Ok(Past::Frames(kept));
        };
        let more = (count - new).min(old.dim(0)?);
        let old = old.narrow(0, old.dim(0)? - more, more)?;
        Ok(Past::Frames(Tensor::cat(&[&old, &kept], 0)?))
    }
}

/// What one layer remembers: a residual layer has two convolutions, a resampling one has one.
pub(super) type LayerPast = [Past; 2];

/// Loads `weight`, `(out, in, frames, rows, columns)`, and `bias`.
pub(super) fn conv3d(
    (inputs, outputs): (usize, usize),
    (frames, rows, cols): (usize, usize, usize),
    geometry: Geometry,
    vb: VarBuilder<'_>,
) -> Result<Conv> {
    let weight = vb.get((outputs, inputs, frames, rows, cols), "weight")?;
    Conv::new(&weight, Some(&vb.get(outputs, "bias")?), geometry)
}

/// Loads `weight`, `(out, in, side, side)`, and `bias`: frames are convolved one by one.
fn conv2d(
    (inputs, outputs): (usize, usize),
    side: usize,
    geometry: Geometry,
    vb: VarBuilder<'_>,
) -> Result<Conv> {
    let weight = vb.get((outputs, inputs, side, side), "weight")?.unsqueeze(2)?;
    Conv::new(&weight, Some(&vb.get(outputs, "bias")?), geometry)
}

/// A 3x3x3 convolution that sees its frame and the two before it (upstream `CausalConv3d`).
#[derive(Debug)]
pub(super) struct CausalConv(Conv);

impl CausalConv {
    pub(super) fn new(inputs: usize, outputs: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let geometry = Geometry::same(3).causal(REACH + 1);
        Ok(Self(conv3d((inputs, outputs), (REACH + 1, 3, 3), geometry, vb)?))
    }

    pub(super) fn step(&self, past: &mut Past, xs: &Tensor) -> Result<Tensor> {
        let ys = self.0.forward(past.frames(), xs)?;
        *past = past.after(xs, REACH)?;
        Ok(ys)
    }

    fn step_add(&self, past: &mut Past, xs: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let ys = self.0.forward_add(past.frames(), xs, residual)?;
        *past = past.after(xs, REACH)?;
        Ok(ys)
    }
}

/// `x / max(|x|, 1e-12) * sqrt(channels) * gamma` for each pixel (upstream `RMS_norm`).
#[derive(Debug)]
pub(super) struct RmsNorm {
    gamma: Tensor,
}

impl RmsNorm {
    /// `gamma` is stored as `(channels, 1, …)` with `ones` trailing ones.
    pub(super) fn new(channels: usize, ones: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let shape: Vec<usize> =
            std::iter::once(channels).chain(std::iter::repeat_n(1, ones)).collect();
        Ok(Self { gamma: vb.get(shape, "gamma")?.flatten_all()? })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let dtype = xs.dtype();
        let xs = xs.to_dtype(candle_core::DType::F32)?; // norms are computed in f32
        let norm = xs.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(MIN_NORM)?;
        let root = (self.gamma.elem_count() as f64).sqrt();
        let gamma = (self.gamma.to_dtype(candle_core::DType::F32)? * root)?;
        xs.broadcast_div(&norm)?.broadcast_mul(&gamma)?.to_dtype(dtype)
    }

    /// The norm followed by SiLU; one pass over memory where there is a way.
    pub(super) fn forward_silu(&self, xs: &Tensor) -> Result<Tensor> {
        if let Some(ys) = rms_norm_silu(xs, &self.gamma)? {
            return Ok(ys);
        }
        self.forward(xs)?.silu()
    }
}

/// Two normalised, activated causal convolutions around a shortcut (upstream `ResidualBlock`).
#[derive(Debug)]
pub(super) struct Residual {
    norm1: RmsNorm,
    conv1: CausalConv,
    norm2: RmsNorm,
    conv2: CausalConv,
    shortcut: Option<Conv>,
}

impl Residual {
    pub(super) fn new(inputs: usize, outputs: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let residual = vb.pp("residual");
        let shortcut = (inputs != outputs)
            .then(|| {
                let vb = vb.pp("shortcut");
                conv3d((inputs, outputs), (1, 1, 1), Geometry::POINTWISE, vb)
            })
            .transpose()?;
        Ok(Self {
            norm1: RmsNorm::new(inputs, 3, residual.pp(0))?,
            conv1: CausalConv::new(inputs, outputs, residual.pp(2))?,
            norm2: RmsNorm::new(outputs, 3, residual.pp(3))?,
            conv2: CausalConv::new(outputs, outputs, residual.pp(6))?,
            shortcut,
        })
    }

    pub(super) fn step(&self, past: &mut LayerPast, xs: &Tensor) -> Result<Tensor> {
        let [past1, past2] = past;
        let hidden = self.conv1.step(past1, &self.norm1.forward_silu(xs)?)?;
        let hidden = self.norm2.forward_silu(&hidden)?;
        match &self.shortcut {
            Some(shortcut) => self.conv2.step_add(past2, &hidden, &shortcut.forward(None, xs)?),
            None => self.conv2.step_add(past2, &hidden, xs),
        }
    }
}

/// Attention of one head among the pixels of each frame (upstream `AttentionBlock`).
#[derive(Debug)]
pub(super) struct FrameAttention {
    norm: RmsNorm,
    to_qkv: Conv,
    proj: Conv,
}

impl FrameAttention {
    fn new(channels: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let conv = |outputs, name| conv2d((channels, outputs), 1, Geometry::POINTWISE, vb.pp(name));
        Ok(Self {
            norm: RmsNorm::new(channels, 2, vb.pp("norm"))?,
            to_qkv: conv(3 * channels, "to_qkv")?,
            proj: conv(channels, "proj")?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (frames, height, width, channels) = xs.dims4()?;
        let qkv = self.to_qkv.forward(None, &self.norm.forward(xs)?)?;
        let qkv = qkv.reshape((frames, height * width, 3, channels))?;
        let part = |i| qkv.narrow(2, i, 1)?.contiguous(); // (frames, pixels, heads, head_dim)
        let kv = Kv { k: part(1)?, v: part(2)? };
        let ys = attend(&part(0)?, &[kv], 1)?.reshape((frames, height, width, channels))?;
        self.proj.forward_add(None, &ys, xs)
    }
}

/// Residual, attention, residual: between the encoder's or decoder's ends.
#[derive(Debug)]
pub(super) struct Middle {
    first: Residual,
    attention: FrameAttention,
    second: Residual,
}

impl Middle {
    pub(super) fn new(channels: usize, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            first: Residual::new(channels, channels, vb.pp(0))?,
            attention: FrameAttention::new(channels, vb.pp(1))?,
            second: Residual::new(channels, channels, vb.pp(2))?,
        })
    }

    pub(super) fn step(
        &self,
        past: &mut [LayerPast; 2],
        xs: &Tensor,
        interrupt: &Interrupt,
    ) -> Result<Tensor> {
        let [first, second] = past;
        let xs = self.first.step(first, xs)?;
        interrupt.check()?;
        let xs = self.attention.forward(&xs)?;
        interrupt.check()?;
        self.second.step(second, &xs)
    }
}

/// Norm, SiLU and the convolution that leaves the network.
#[derive(Debug)]
pub(super) struct Head {
    norm: RmsNorm,
    conv: CausalConv,
}

impl Head {
    pub(super) fn new(inputs: usize, outputs: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let norm = RmsNorm::new(inputs, 3, vb.pp(0))?;
        Ok(Self { norm, conv: CausalConv::new(inputs, outputs, vb.pp(2))? })
    }

    pub(super) fn step(&self, past: &mut Past, xs: &Tensor) -> Result<Tensor> {
        self.conv.step(past, &self.norm.forward_silu(xs)?)
    }
}

/// Twice the size at half the channels; in time, twice the frames where it has a `time_conv`
/// (upstream `Resample`, `upsample2d` and `upsample3d`).
#[derive(Debug)]
pub(super) struct Upsample {
    time_conv: Option<Conv>,
    resample: Conv,
}

impl Upsample {
    pub(super) fn new(channels: usize, temporal: bool, vb: VarBuilder<'_>) -> Result<Self> {
        let time_conv = temporal
            .then(|| {
                let geometry = Geometry::POINTWISE.causal(REACH + 1);
                let vb = vb.pp("time_conv");
                conv3d((channels, 2 * channels), (REACH + 1, 1, 1), geometry, vb)
            })
            .transpose()?;
        let geometry = Geometry { enlarge: 2, ..Geometry::same(3) };
        let resample = conv2d((channels, channels / 2), 3, geometry, vb.pp("resample").pp(1))?;
        Ok(Self { time_conv, resample })
    }

    /// The stream's first frame is not doubled, and the time convolution never sees it.
    pub(super) fn step(&self, past: &mut Past, xs: &Tensor) -> Result<Tensor> {
        let Some(time_conv) = &self.time_conv else {
            return self.resample.forward(None, xs);
        };
        if let Past::Unseen = past {
            *past = Past::Zeros;
            return self.resample.forward(None, xs);
        }
        let doubled = split_frames(&time_conv.forward(past.frames(), xs)?)?;
        *past = past.after(xs, REACH)?;
        self.resample.forward(None, &doubled)
    }
}

/// `(frames, h, w, 2 * channels)` to `(frames * 2, h, w, channels)`: each half of the channels is a frame, the
/// earlier one first.
fn split_frames(xs: &Tensor) -> Result<Tensor> {
    let (frames, height, width, channels) = xs.dims4()?;
    let halves = xs.reshape((frames, height, width, 2, channels / 2))?;
    let halves = halves.permute((0, 3, 1, 2, 4))?.contiguous()?;
    halves.reshape((frames * 2, height, width, channels / 2))
}

/// Half the size; in time, half the frames where it has a `time_conv` (upstream `Resample`,
/// `downsample2d` and `downsample3d`).
#[derive(Debug)]
pub(super) struct Downsample {
    resample: Conv,
    time_conv: Option<Conv>,
}

impl Downsample {
    pub(super) fn new(channels: usize, temporal: bool, vb: VarBuilder<'_>) -> Result<Self> {
        let geometry = Geometry { padding: (0, 1), stride: 2, ..Geometry::POINTWISE };
        let resample = conv2d((channels, channels), 3, geometry, vb.pp("resample").pp(1))?;
        let time_conv = temporal
            .then(|| {
                let geometry = Geometry { frame_stride: 2, ..Geometry::POINTWISE };
                let vb = vb.pp("time_conv");
                conv3d((channels, channels), (REACH + 1, 1, 1), geometry, vb)
            })
            .transpose()?;
        Ok(Self { resample, time_conv })
    }

    /// The stream's first frame passes alone; later pairs are joined with the frame before them.
    pub(super) fn step(&self, past: &mut Past, xs: &Tensor) -> Result<Tensor> {
        let xs = self.resample.forward(None, xs)?;
        let Some(time_conv) = &self.time_conv else { return Ok(xs) };
        let ys = match past.frames() {
            Some(last) => time_conv.forward(Some(last), &xs)?,
            None => xs.clone(),
        };
        *past = past.after(&xs, 1)?;
        Ok(ys)
    }
}
