//! Convolution that reads its windows in place, without an im2col buffer.
//!
//! Channels are last, so the window of one output pixel along a kernel row, `columns * in` numbers,
//! is contiguous in a zero-padded input row, and the window of the next pixel starts `stride * in`
//! numbers further. For each frame of the kernel, the products of all windows of a tile with its
//! weights are added to the tile's output.
//!
//! A tile is a few output rows of one frame, whose sums stay in the core's cache. With stride 1 all its
//! rows are one run of windows: the few that straddle the end of a row are computed and dropped.

use std::ops::Range;

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
    let enlarge = conv.geometry.enlarge / packed.subpixels;
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
                        Tiles { conv, packed, extent, padded, frames, weight, bias }.run(residual)
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
    frames: Vec<&'a [f32]>,
    weight: &'a [f32],
    bias: &'a [f32],
}

/// Where a tile lies: rows of windows, for one output frame.
struct Tile {
    frame: usize,
    rows: Range<usize>,
}

/// What a thread computes its tiles in.
#[derive(Default)]
struct Scratch {
    sums: Vec<f32>,
    input: Vec<f32>,
}

impl Tiles<'_> {
    /// All output frames; `residual` is empty or as long as the output.
    fn run(&self, residual: &[f32]) -> Result<Vec<f32>> {
        // Output numbers for a row of windows, for a frame.
        let row_len = self.packed.subpixels * self.extent.width * self.conv.shape.outputs;
        let frame_len = self.extent.height / self.packed.subpixels * row_len;
        let tile_len = self.tile_rows() * row_len;
        let mut output = vec![0f32; self.extent.frames * frame_len];
        let mut tiles = Vec::new();
        for (frame, output) in output.chunks_exact_mut(frame_len).enumerate() {
            let mut start = 0;
            for output in output.chunks_mut(tile_len) {
                let end = start + output.len();
                let tile = Tile { frame, rows: start / row_len..end / row_len };
                let residual = residual.get(frame * frame_len + start..).unwrap_or(&[]);
                tiles.push((tile, output, residual));
                start = end;
            }
        }
        tiles.into_par_iter().try_for_each_init(
            Scratch::default,
            |scratch, (tile, output, residual)| {
                self.sum(scratch, &tile)?;
                self.store(&scratch.sums, residual, output);
                Ok::<_, candle_core::Error>(())
            },
        )?;
        Ok(output)
    }

    /// Rows of windows in a tile: about `TILE_WINDOWS` windows, and as many tiles for each thread.
    fn tile_rows(&self) -> usize {
        let (frames, height) = (self.extent.frames, self.extent.height / self.packed.subpixels);
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

    /// Computes a tile's sums, bias included: for each subpixel of a row, `(rows, windows, subpixels of
    /// a column, outputs)`.
    fn sum(&self, scratch: &mut Scratch, tile: &Tile) -> Result<()> {
        let Scratch { sums, input } = scratch;
        let pixels = self.packed.subpixels.pow(2) * tile.rows.len() * self.row_windows();
        sums.resize(pixels * self.packed.outputs(), 0.0);
        self.fill_with_bias(sums);
        let tap_len = self.weight.len() / self.conv.shape.frames;
        let first = tile.frame * self.conv.geometry.frame_stride;
        for (at, tap) in (first..).zip(self.weight.chunks_exact(tap_len)) {
            if let Some(at) = at.checked_sub(self.extent.zeros) {
                let rows = self.padded.rows(self.rows_seen(tile), self.frames[at], input);
                self.add_tap(sums, rows, tap, tile.rows.len())?;
            }
        }
        Ok(())
    }

    /// Rows of a padded frame that the windows of a tile lie on.
    fn rows_seen(&self, tile: &Tile) -> Range<usize> {
        let (stride, more) = (self.conv.geometry.stride, self.packed.subpixels - 1);
        tile.rows.start * stride..(tile.rows.end - 1) * stride + self.packed.rows + more
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

    /// Adds the products of one frame of the kernel; `input` are the rows that `rows` rows of windows see.
    fn add_tap(&self, sums: &mut [f32], input: &[f32], tap: &[f32], rows: usize) -> Result<()> {
        let subpixels = self.packed.subpixels;
        let (of_row, of_kernel) = (sums.len() / subpixels, tap.len() / subpixels.pow(2));
        for (kernel, weight) in tap.chunks_exact(of_kernel).enumerate() {
            let (down, right) = (kernel / subpixels, kernel % subpixels);
            let start = down * self.padded.row_len() + right * self.conv.shape.inputs;
            let sums = &mut sums[down * of_row..][..of_row][right * self.packed.outputs()..];
            self.add_kernel(sums, &input[start..], weight, rows * self.row_windows() - right)?;
        }
        Ok(())
    }

    /// Adds the products of one subpixel's kernel; its first window is at the start of `input`, and
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
                stride: stride * inputs,
                weight,
                width: packed.width,
            };
            let sum_stride = packed.subpixels * packed.outputs();
            taps.add_to(&mut sums[run * windows * sum_stride..], sum_stride, windows)?;
        }
        Ok(())
    }

    /// Writes a tile's sums to its part of the output: without the straddling windows, with the
    /// residual, activated.
    fn store(&self, sums: &[f32], residual: &[f32], output: &mut [f32]) {
        let (outputs, subpixels) = (self.conv.shape.outputs, self.packed.subpixels);
        let row_len = self.extent.width * outputs;
        let sum_len = self.row_windows() * subpixels * self.packed.outputs();
        for (i, output) in output.chunks_exact_mut(row_len).enumerate() {
            let start = (i % subpixels) * (sums.len() / subpixels) + i / subpixels * sum_len;
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
