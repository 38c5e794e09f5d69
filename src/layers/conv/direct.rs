//! Convolution that reads its windows in place, without an im2col buffer.
//!
//! Channels are last, so the window of one output pixel along a kernel row, `columns * in` numbers,
//! is contiguous in a zero-padded input row, and the window of the next pixel starts `stride * in`
//! numbers further. For each frame of the kernel, the products of all windows of a tile with its
//! weights are added to the tile's output.
//!
//! A tile is a few output rows of one frame, whose sums stay in the core's cache. With stride 1 all its
//! rows are one run of windows: the few that straddle the end of a row are computed and dropped.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::packed::Packed;
use super::padded::Padded;
use super::panel::Taps;
use super::{Activation, Conv, Extent, Input};
use crate::layers::simd::with_slice;

/// Windows of a tile: many to a first-level cache's worth of weights, few enough for the second level.
const TILE_WINDOWS: usize = 512;

pub(super) fn forward(
    conv: &Conv,
    packed: &Packed,
    input: Input<'_>,
    extent: &Extent,
) -> Result<Tensor> {
    let (_, height, width, channels) = input.xs.dims4()?;
    let enlarge = conv.geometry.enlarge / packed.phases;
    let padded = Padded { height, width, channels, enlarge, padding: conv.geometry.padding };
    let empty = Tensor::zeros(0, input.xs.dtype(), input.xs.device())?;
    let output = with_slice(input.xs, |xs| {
        with_slice(input.past.unwrap_or(&empty), |past| {
            with_slice(input.residual.unwrap_or(&empty), |residual| {
                with_slice(&packed.weight, |weight| {
                    with_slice(&conv.bias, |bias| {
                        let len = height * width * channels;
                        let frames: Vec<_> =
                            past.chunks_exact(len).chain(xs.chunks_exact(len)).collect();
                        padded.with(&frames, |frames| {
                            Tiles { conv, packed, extent, padded, frames, weight, bias }
                                .run(residual)
                        })
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
    packed: &'a Packed,
    extent: &'a Extent,
    padded: Padded,
    /// The stream behind its zero frames, which add nothing.
    frames: &'a [&'a [f32]],
    weight: &'a [f32],
    bias: &'a [f32],
}

/// Where a tile lies: `rows` rows of windows for output frame `frame`, from `first` on.
#[derive(Clone, Copy)]
struct Tile {
    frame: usize,
    first: usize,
    rows: usize,
}

impl Tiles<'_> {
    /// All output frames; `residual` is empty or as long as the output.
    fn run(&self, residual: &[f32]) -> Result<Vec<f32>> {
        let row_len = self.extent.width * self.conv.shape.outputs;
        let frame_len = self.extent.height * row_len;
        let rows = self.tile_rows();
        let tile_len = rows * self.packed.phases * row_len;
        let mut output = vec![0f32; self.extent.frames * frame_len];
        let mut tiles = Vec::new();
        for (frame, output) in output.chunks_exact_mut(frame_len).enumerate() {
            for (i, output) in output.chunks_mut(tile_len).enumerate() {
                let rows = output.len() / row_len / self.packed.phases;
                let tile =
                    Tile { frame, first: i * (tile_len / row_len / self.packed.phases), rows };
                let start = frame * frame_len + i * tile_len;
                tiles.push((tile, output, residual.get(start..).unwrap_or(&[])));
            }
        }
        tiles.into_par_iter().try_for_each_init(Vec::new, |sums, (tile, output, residual)| {
            self.sum(sums, tile)?;
            self.store(sums, residual, output);
            Ok::<_, candle_core::Error>(())
        })?;
        Ok(output)
    }

    /// Rows of windows in a tile: about `TILE_WINDOWS` windows, and as many tiles for each thread.
    fn tile_rows(&self) -> usize {
        let (frames, height) = (self.extent.frames, self.extent.height / self.packed.phases);
        let threads = rayon::current_num_threads();
        let fewest = height.div_ceil((TILE_WINDOWS / self.row_windows()).max(1));
        let balanced =
            |&n: &usize| (n * frames).is_multiple_of(threads) || n * frames > 4 * threads;
        let tiles = (fewest..=height).find(balanced).unwrap_or(height);
        height.div_ceil(tiles)
    }

    /// Windows computed for a row: with stride 1, also those that straddle its end.
    fn row_windows(&self) -> usize {
        match self.conv.geometry.stride {
            1 => self.padded.row_len() / self.conv.shape.inputs,
            _ => self.extent.width,
        }
    }

    /// Computes a tile into `sums`, bias included: for each phase of rows, `(rows, windows, phases of
    /// columns, outputs)`.
    fn sum(&self, sums: &mut Vec<f32>, tile: Tile) -> Result<()> {
        let pixels = self.packed.phases.pow(2) * tile.rows * self.row_windows();
        sums.resize(pixels * self.packed.outputs(), 0.0);
        self.fill_with_bias(sums);
        let tap_len = self.weight.len() / self.conv.shape.frames;
        let first = tile.frame * self.conv.geometry.frame_stride;
        for (at, tap) in (first..).zip(self.weight.chunks_exact(tap_len)) {
            if let Some(at) = at.checked_sub(self.extent.zeros) {
                self.add_tap(sums, self.frames[at], tap, tile)?;
            }
        }
        Ok(())
    }

    fn fill_with_bias(&self, sums: &mut [f32]) {
        let mut filled = self.packed.outputs();
        sums[..self.bias.len()].copy_from_slice(self.bias);
        while filled < sums.len() {
            let more = filled.min(sums.len() - filled);
            sums.copy_within(..more, filled);
            filled += more;
        }
    }

    /// Adds the products of one frame of the kernel.
    fn add_tap(&self, sums: &mut [f32], frame: &[f32], tap: &[f32], tile: Tile) -> Result<()> {
        let phases = self.packed.phases;
        let (of_row, of_kernel) = (sums.len() / phases, tap.len() / phases.pow(2));
        for (kernel, weight) in tap.chunks_exact(of_kernel).enumerate() {
            let (down, right) = (kernel / phases, kernel % phases);
            let first = tile.first * self.conv.geometry.stride + down;
            let start = first * self.padded.row_len() + right * self.conv.shape.inputs;
            let sums = &mut sums[down * of_row..][..of_row][right * self.packed.outputs()..];
            self.add_kernel(sums, &frame[start..], weight, tile.rows * self.row_windows() - right)?;
        }
        Ok(())
    }

    /// Adds the products of one phase's kernel; its first window is at the start of `input`, and
    /// `pixels` begin a row's or a straddling window.
    fn add_kernel(
        &self,
        sums: &mut [f32],
        input: &[f32],
        weight: &[f32],
        pixels: usize,
    ) -> Result<()> {
        let (packed, inputs) = (self.packed, self.conv.shape.inputs);
        let stride = self.conv.geometry.stride;
        // With stride 1 one run spans all rows; its last windows would leave the last row.
        let (runs, windows) = match stride {
            1 => (1, pixels - (packed.cols - 1)),
            _ => (pixels / self.row_windows(), self.row_windows()),
        };
        for run in 0..runs {
            let taps = Taps {
                input: &input[run * stride * self.padded.row_len()..],
                row: self.padded.row_len(),
                rows: packed.rows,
                depth: packed.cols * inputs,
                step: stride * inputs,
                weight,
                width: packed.width,
            };
            let sum_step = packed.phases * packed.outputs();
            taps.add_to(&mut sums[run * windows * sum_step..], sum_step, windows)?;
        }
        Ok(())
    }

    /// Writes a tile's sums to its part of the output: without the straddling windows, with the
    /// residual, activated.
    fn store(&self, sums: &[f32], residual: &[f32], output: &mut [f32]) {
        let (outputs, phases) = (self.conv.shape.outputs, self.packed.phases);
        let row_len = self.extent.width * outputs;
        let sum_len = self.row_windows() * phases * self.packed.outputs();
        for (i, output) in output.chunks_exact_mut(row_len).enumerate() {
            let start = (i % phases) * (sums.len() / phases) + i / phases * sum_len;
            copy_pixels(&sums[start..], self.packed.outputs(), output, outputs);
            if let Some(residual) = residual.get(i * row_len..(i + 1) * row_len) {
                output.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
            }
            if self.conv.activation == Activation::Relu {
                output.iter_mut().for_each(|y| *y = y.max(0.0));
            }
        }
    }
}

/// Copies pixels of `to_len` numbers from `from`, where they are `from_len` apart.
fn copy_pixels(from: &[f32], from_len: usize, to: &mut [f32], to_len: usize) {
    if from_len == to_len {
        return to.copy_from_slice(&from[..to.len()]);
    }
    for (to, from) in to.chunks_exact_mut(to_len).zip(from.chunks_exact(from_len)) {
        to.copy_from_slice(&from[..to_len]);
    }
}
