//! Convolutions over `(frames, height, width, channels)`, causal in time.
//!
//! A convolution never sees the future: output frame `t` looks at input frames up to `t`, and what it
//! needs of the frames before this call is handed in as `past`. Three paths compute the same: `plain`
//! is made of candle's operators, runs anywhere and is the specification; `direct` serves f32
//! on the CPU, `on_gpu` bf16 and f16 on a GPU. Which of them is settled at load.

mod direct;
mod on_gpu;
mod packed;
mod padded;
mod panel;
mod plain;

use candle_core::{Result, Tensor, bail};

use self::packed::Packed;

use super::simd::is_host_f32;
use crate::device::kernels::{self, ConvWeight};

/// How the kernel moves over its input; the same in both spatial directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Frames of zeros before the first frame of a stream.
    pub front: usize,
    /// Step from one output frame to the next, in input frames.
    pub frame_stride: usize,
    /// How often each input pixel is repeated along both sides before anything else (nearest).
    pub enlarge: usize,
    /// Zero rows before the first and after the last, columns likewise.
    pub padding: (usize, usize),
    /// Step from one output pixel to the next, in pixels after enlargement.
    pub stride: usize,
}

impl Geometry {
    /// One output for each input, for kernels of one pixel and one frame.
    pub const POINTWISE: Self =
        Self { front: 0, frame_stride: 1, enlarge: 1, padding: (0, 0), stride: 1 };

    /// Keeps the size of the frame under a kernel of `side` pixels.
    pub const fn same(side: usize) -> Self {
        Self { padding: (side / 2, side / 2), ..Self::POINTWISE }
    }

    /// Keeps the number of frames under a kernel of `frames` frames: zeros come first.
    pub const fn causal(self, frames: usize) -> Self {
        Self { front: frames - 1, ..self }
    }
}

/// What is done to each output, last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    Identity,
    /// `max(x, 0)`.
    Relu,
}

/// Weights of one convolution, laid out for the path that will run it.
#[derive(Debug)]
pub struct Conv {
    kernel: Kernel,
    shape: Shape,
    bias: Tensor,
    geometry: Geometry,
    activation: Activation,
}

#[derive(Debug)]
enum Kernel {
    /// `(out, in, rows, columns)` for each frame of the kernel.
    Plain(Vec<Tensor>),
    /// Laid out for the path that reads windows in place.
    Direct(Packed),
    /// Laid out for a kernel that does so.
    OnGpu(ConvWeight),
}

/// Sizes of a kernel.
#[derive(Clone, Copy, Debug)]
struct Shape {
    inputs: usize,
    outputs: usize,
    frames: usize,
    rows: usize,
    cols: usize,
}

/// What one call computes on; the frames of `past` come directly before those of `xs`.
#[derive(Clone, Copy, Debug)]
struct Input<'a> {
    past: Option<&'a Tensor>,
    xs: &'a Tensor,
    residual: Option<&'a Tensor>,
}

impl Conv {
    /// From a PyTorch kernel, `(out, in, frames, rows, columns)`, and its bias, `(out,)`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, geometry: Geometry) -> Result<Self> {
        Self::with_kernel(weight, bias, geometry, fastest)
    }

    fn with_kernel(
        weight: &Tensor,
        bias: Option<&Tensor>,
        geometry: Geometry,
        kernel: fn(&Tensor, &Geometry) -> Result<Kernel>,
    ) -> Result<Self> {
        let (outputs, inputs, frames, rows, cols) = weight.dims5()?;
        if weight.elem_count() == 0
            || geometry.stride * geometry.frame_stride * geometry.enlarge == 0
        {
            bail!("expected sizes and strides above zero, got {:?}, {geometry:?}", weight.shape())
        }
        let bias = match bias {
            Some(bias) => bias.reshape(outputs)?.to_dtype(weight.dtype())?,
            None => Tensor::zeros(outputs, weight.dtype(), weight.device())?,
        };
        let shape = Shape { inputs, outputs, frames, rows, cols };
        let activation = Activation::default();
        Ok(Self { kernel: kernel(weight, &geometry)?, shape, bias, geometry, activation })
    }

    /// The same convolution, followed by `activation`.
    pub fn then(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Convolves `xs`, `(frames, height, width, in)`, to `(frames out, height out, width out, out)`.
    ///
    /// `past` holds the frames before `xs`, in order; where it is shorter than `Geometry::front`,
    /// zeros stand before it.
    pub fn forward(&self, past: Option<&Tensor>, xs: &Tensor) -> Result<Tensor> {
        self.run(Input { past, xs, residual: None })
    }

    /// As `forward`, with `residual`, shaped like the output, added before the activation.
    pub fn forward_add(
        &self,
        past: Option<&Tensor>,
        xs: &Tensor,
        residual: &Tensor,
    ) -> Result<Tensor> {
        self.run(Input { past, xs, residual: Some(residual) })
    }

    fn run(&self, input: Input<'_>) -> Result<Tensor> {
        let extent = self.extent(&input)?;
        match &self.kernel {
            Kernel::Plain(taps) => plain::forward(self, taps, input, &extent),
            Kernel::Direct(packed) => direct::forward(self, packed, input, &extent),
            Kernel::OnGpu(weight) => on_gpu::forward(self, weight, input, &extent),
        }
    }

    /// Checks the shapes of a call and derives the rest.
    fn extent(&self, input: &Input<'_>) -> Result<Extent> {
        let (frames, height, width, channels) = input.xs.dims4()?;
        if channels != self.shape.inputs || frames * height * width == 0 {
            bail!("expected frames of {} channels, got {:?}", self.shape.inputs, input.xs.shape())
        }
        let past = match input.past {
            Some(past) if past.dims().get(1..) != input.xs.dims().get(1..) => {
                bail!("expected past frames {:?}, got {:?}", input.xs.shape(), past.shape())
            }
            Some(past) => past.dim(0)?,
            None => 0,
        };
        let Geometry { front, frame_stride, enlarge, padding, stride } = self.geometry;
        let zeros = front.saturating_sub(past);
        let padded = |side: usize| side * enlarge + padding.0 + padding.1;
        let extent = Extent {
            zeros,
            frames: steps(zeros + past + frames, self.shape.frames, frame_stride)?,
            height: steps(padded(height), self.shape.rows, stride)?,
            width: steps(padded(width), self.shape.cols, stride)?,
        };
        match input.residual {
            Some(residual) if residual.dims() != self.output_shape(&extent) => {
                let expected = self.output_shape(&extent);
                bail!("expected a residual of {expected:?}, got {:?}", residual.shape())
            }
            _ => Ok(extent),
        }
    }

    fn output_shape(&self, extent: &Extent) -> [usize; 4] {
        [extent.frames, extent.height, extent.width, self.shape.outputs]
    }
}

/// Sizes that follow from the input of one call.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Zero frames before the past.
    zeros: usize,
    /// Output frames, rows and columns.
    frames: usize,
    height: usize,
    width: usize,
}

/// How many windows of `kernel` fit into `len`, `stride` apart.
fn steps(len: usize, kernel: usize, stride: usize) -> Result<usize> {
    match len.checked_sub(kernel) {
        Some(rest) => Ok(rest / stride + 1),
        None => bail!("a kernel of {kernel} does not fit into {len}"),
    }
}

fn direct(weight: &Tensor, geometry: &Geometry) -> Result<Kernel> {
    Packed::new(weight, geometry).map(Kernel::Direct)
}

fn fastest(weight: &Tensor, geometry: &Geometry) -> Result<Kernel> {
    if is_host_f32(weight) {
        return direct(weight, geometry);
    }
    let is_dense = (geometry.stride, geometry.frame_stride) == (1, 1);
    match kernels::lay_out(weight, geometry.enlarge, is_dense)? {
        Some(weight) => Ok(Kernel::OnGpu(weight)),
        None => plain(weight, geometry),
    }
}

fn plain(weight: &Tensor, _: &Geometry) -> Result<Kernel> {
    plain::taps(weight).map(Kernel::Plain)
}

#[cfg(test)]
mod tests;
