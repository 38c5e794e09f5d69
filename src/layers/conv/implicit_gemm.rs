//! Convolution as matrix products that read their windows in place, without an im2col buffer.
//!
//! Channels are last, so the window of one output pixel along a kernel row, `columns * in` numbers,
//! is contiguous in a zero-padded input row, and the window of the next pixel starts `stride * in`
//! numbers further. For each frame and row of the kernel, one product of all windows of a tile
//! (rows of a matrix that overlap) with `(columns * in, out)` weights is added to the tile's output.
//!
//! A tile is a few output rows of one frame. Its padded input is gathered into scratch memory that
//! stays in the core's cache; nothing larger than a tile is ever padded, enlarged or copied. With
//! stride 1 all rows of a tile share one product: the few windows that straddle the end of a row
//! are computed and dropped.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{Activation, Conv, Extent, Input};
use crate::layers::matmul::{Into, Matrix, multiply};
use crate::layers::simd::with_slice;

/// Windows in one product: enough to pay for gemm's packing of the weights, few enough for L2.
const TILE_WINDOWS: usize = 512;

pub(super) fn forward(
    conv: &Conv,
    weight: &Tensor,
    input: Input<'_>,
    extent: &Extent,
) -> Result<Tensor> {
    let (_, height, width, _) = input.xs.dims4()?;
    let empty = Tensor::zeros(0, input.xs.dtype(), input.xs.device())?;
    let output = with_slice(input.xs, |xs| {
        with_slice(input.past.unwrap_or(&empty), |past| {
            with_slice(input.residual.unwrap_or(&empty), |residual| {
                with_slice(weight, |weight| {
                    with_slice(&conv.bias, |bias| {
                        let frame_len = height * width * conv.shape.inputs;
                        let frames = std::iter::repeat_n(None, extent.zeros)
                            .chain(past.chunks_exact(frame_len).map(Some))
                            .chain(xs.chunks_exact(frame_len).map(Some))
                            .collect();
                        Tiles { conv, extent, height, width, frames, weight, bias }.run(residual)
                    })
                })
            })
        })
    })?;
    Tensor::from_vec(output, &conv.output_shape(extent), input.xs.device())
}

/// One call, as all its tiles see it.
struct Tiles<'a> {
    conv: &'a Conv,
    extent: &'a Extent,
    /// Of an input frame.
    height: usize,
    width: usize,
    /// The stream; `None` is a frame of zeros, which adds nothing.
    frames: Vec<Option<&'a [f32]>>,
    weight: &'a [f32],
    bias: &'a [f32],
}

/// Where a tile lies: `rows` output rows of output frame `frame`, from `first` on.
#[derive(Clone, Copy)]
struct Tile {
    frame: usize,
    first: usize,
    rows: usize,
}

/// Memory of one thread, reused from tile to tile.
#[derive(Default)]
struct Scratch {
    /// Padded input rows of the tile.
    window: Vec<f32>,
    /// Output rows of the tile, `row_windows` pixels each.
    sum: Vec<f32>,
}

impl Tiles<'_> {
    /// All output frames; `residual` is empty or as long as the output.
    fn run(&self, residual: &[f32]) -> Result<Vec<f32>> {
        let row_len = self.extent.width * self.conv.shape.outputs;
        let frame_len = self.extent.height * row_len;
        let rows = self.tile_rows();
        let mut output = vec![0f32; self.extent.frames * frame_len];
        let mut tiles = Vec::new();
        for (frame, output) in output.chunks_exact_mut(frame_len).enumerate() {
            for (i, output) in output.chunks_mut(rows * row_len).enumerate() {
                let tile = Tile { frame, first: i * rows, rows: output.len() / row_len };
                let start = frame * frame_len + i * rows * row_len;
                tiles.push((tile, output, residual.get(start..).unwrap_or(&[])));
            }
        }
        tiles.into_par_iter().try_for_each_init(Scratch::default, |scratch, item| {
            let (tile, output, residual) = item;
            self.sum(scratch, tile)?;
            self.store(&scratch.sum, residual, output);
            Ok::<_, candle_core::Error>(())
        })?;
        Ok(output)
    }

    /// Rows of a tile: about `TILE_WINDOWS` windows, and as many tiles for each thread.
    fn tile_rows(&self) -> usize {
        let Extent { frames, height, .. } = *self.extent;
        let threads = rayon::current_num_threads();
        let fewest = height.div_ceil((TILE_WINDOWS / self.row_windows()).max(1));
        let balanced =
            |&n: &usize| (n * frames).is_multiple_of(threads) || n * frames > 4 * threads;
        let tiles = (fewest..=height).find(balanced).unwrap_or(height);
        height.div_ceil(tiles)
    }

    /// Windows computed for an output row: with stride 1, also those that straddle its end.
    fn row_windows(&self) -> usize {
        match self.conv.geometry.stride {
            1 => self.extent.padded_width,
            _ => self.extent.width,
        }
    }

    /// Computes a tile into `scratch.sum`, bias included.
    fn sum(&self, scratch: &mut Scratch, tile: Tile) -> Result<()> {
        let shape = self.conv.shape;
        let windows = tile.rows * self.row_windows();
        scratch.sum.resize(windows * shape.outputs, 0.0);
        for pixel in scratch.sum.chunks_exact_mut(shape.outputs) {
            pixel.copy_from_slice(self.bias);
        }
        let tap_len = shape.rows * shape.cols * shape.inputs * shape.outputs;
        let first = tile.frame * self.conv.geometry.frame_stride;
        for (frame, tap) in self.frames[first..].iter().zip(self.weight.chunks_exact(tap_len)) {
            if let Some(frame) = frame {
                self.gather(&mut scratch.window, frame, tile);
                self.add_tap(scratch, tap, tile.rows)?;
            }
        }
        Ok(())
    }

    /// Adds the products of one frame of the kernel, `(rows, columns * in, out)`.
    fn add_tap(&self, scratch: &mut Scratch, tap: &[f32], rows: usize) -> Result<()> {
        let shape = self.conv.shape;
        let stride = self.conv.geometry.stride;
        let depth = shape.cols * shape.inputs;
        let row_len = self.extent.padded_width * shape.inputs;
        // With stride 1 one product spans all rows; its last windows would leave the last row.
        let (products, windows) = match stride {
            1 => (1, rows * self.row_windows() - (shape.cols - 1)),
            _ => (rows, self.row_windows()),
        };
        for (k, weight) in tap.chunks_exact(depth * shape.outputs).enumerate() {
            let weight = Matrix::new(weight, depth, shape.outputs, shape.outputs)?;
            for row in 0..products {
                let window = &scratch.window[(row * stride + k) * row_len..];
                let window = Matrix::new(window, windows, depth, stride * shape.inputs)?;
                let start = row * windows * shape.outputs;
                let sum = &mut scratch.sum[start..start + windows * shape.outputs];
                multiply(sum, shape.outputs, Into::Add, window, weight)?;
            }
        }
        Ok(())
    }

    /// Copies the input rows of a tile, enlarged and padded.
    fn gather(&self, window: &mut Vec<f32>, frame: &[f32], tile: Tile) {
        let (shape, geometry) = (self.conv.shape, self.conv.geometry);
        let row_len = self.extent.padded_width * shape.inputs;
        let rows = (tile.rows - 1) * geometry.stride + shape.rows;
        window.resize(rows * row_len, 0.0);
        let before = geometry.padding.0;
        for (i, dst) in window.chunks_exact_mut(row_len).enumerate() {
            let y = (tile.first * geometry.stride + i).checked_sub(before);
            match y.map(|y| y / geometry.enlarge).filter(|&y| y < self.height) {
                Some(y) => {
                    let src = &frame[y * self.width * shape.inputs..][..self.width * shape.inputs];
                    let (left, dst) = dst.split_at_mut(before * shape.inputs);
                    left.fill(0.0);
                    let (dst, right) = dst.split_at_mut(src.len() * geometry.enlarge);
                    right.fill(0.0);
                    enlarge(src, dst, shape.inputs, geometry.enlarge);
                }
                None => dst.fill(0.0),
            }
        }
    }

    /// Writes a tile's sums to its part of the output: without the straddling windows, with the
    /// residual, activated.
    fn store(&self, sum: &[f32], residual: &[f32], output: &mut [f32]) {
        let outputs = self.conv.shape.outputs;
        let row_len = self.extent.width * outputs;
        let rows =
            sum.chunks_exact(self.row_windows() * outputs).zip(output.chunks_exact_mut(row_len));
        for (i, (sum, output)) in rows.enumerate() {
            output.copy_from_slice(&sum[..row_len]);
            if let Some(residual) = residual.get(i * row_len..(i + 1) * row_len) {
                output.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
            }
            if self.conv.activation == Activation::Relu {
                output.iter_mut().for_each(|y| *y = y.max(0.0));
            }
        }
    }
}

/// Repeats each pixel of a row `factor` times.
fn enlarge(src: &[f32], dst: &mut [f32], channels: usize, factor: usize) {
    if factor == 1 {
        return dst.copy_from_slice(src);
    }
    for (src, dst) in src.chunks_exact(channels).zip(dst.chunks_exact_mut(factor * channels)) {
        dst.chunks_exact_mut(channels).for_each(|dst| dst.copy_from_slice(src));
    }
}
