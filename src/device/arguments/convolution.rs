//! Convolutions.

use candle_core::{Result, Tensor};

use super::{BARRIER, CHUNK, NUMBER, Start, THREADS, THREADS_90};

/// Of `convolution.cu` and `convolution_90.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Convolution {
    /// The frames before, `(frames, height, width, inputs)`.
    pub past: u64,
    /// The frames behind those.
    pub xs: u64,
    /// As [`by_windows`](Self::by_windows) or [`by_patches`](Self::by_patches) have it.
    pub weight: u64,
    /// `(outputs,)`.
    pub bias: u64,
    /// What is added, shaped like the output; or nothing.
    pub residual: u64,
    /// `(frames, height, width, outputs)`.
    pub out: u64,
    /// Frames of zeros before the past.
    pub zeros: i32,
    /// Frames of the past.
    pub past_frames: i32,
    /// Of a frame that comes in.
    pub height: i32,
    /// Of a frame that comes in.
    pub width: i32,
    /// Channels that come in.
    pub inputs: i32,
    /// Of the output.
    pub out_frames: i32,
    /// Of the output.
    pub out_height: i32,
    /// Of the output.
    pub out_width: i32,
    /// Channels of the output.
    pub outputs: i32,
    /// Frames, rows and columns of a window.
    pub taps: [i32; 3],
    /// Frames from one window to the next.
    pub frame_stride: i32,
    /// Pixels from one window to the next, after enlargement.
    pub stride: i32,
    /// Rows and columns of zeros before the first.
    pub padding: i32,
    /// 1 where each pixel is doubled along both sides before anything else, else 0.
    pub is_doubled: i32,
    /// 1 where outputs below zero become zero, else 0.
    pub is_relu: i32,
}

impl Convolution {
    /// Channels of a slice.
    const DEPTH: usize = 32;
    /// Pixels of a block of threads, slices on their way at once, and outputs of a block of threads that there are, of
    /// `convolution.cu`.
    const PIXELS: usize = 128;
    const SLICES: usize = 4;
    const OUTPUTS: [usize; 4] = [96, 128, 64, 32];
    /// Rows, and columns, of a block of threads, pixels with those around them, taps of a frame at most, buffers,
    /// barriers, and outputs of a block of threads that there are, of `convolution_90.cu`.
    const SIDE_90: usize = 16;
    const PATCH_90: usize = (Self::SIDE_90 + 2) * (Self::SIDE_90 + 2);
    const TAPS_90: usize = 9;
    const BUFFERS_90: usize = 2;
    const BARRIERS_90: usize = 4;
    const OUTPUTS_90: [usize; 4] = [96, 128, 64, 8];
    /// A block of threads for fewer outputs takes no less time.
    const FEWEST: usize = 32;

    /// Outputs of a block of threads, of `convolution_90.cu`.
    pub fn of_block_90(outputs: usize) -> usize {
        Self::of_block(Self::OUTPUTS_90, outputs)
    }

    /// Of these, those that take least time, the first of them.
    fn of_block(sizes: [usize; 4], outputs: usize) -> usize {
        let time = |size: &usize| outputs.div_ceil(*size) * size.max(&Self::FEWEST);
        sizes.into_iter().min_by_key(time).unwrap_or(sizes[0])
    }

    /// A weight `(out, in, frames, rows, columns)` for `convolution.cu`: `(frames, rows, columns, out, in)`.
    pub fn by_windows(weight: &Tensor) -> Result<Tensor> {
        weight.permute((2, 3, 4, 0, 1))?.contiguous()
    }

    /// The same for `convolution_90.cu`, of which a block of threads has so many outputs: `(blocks, frames, slices,
    /// taps, chunks, of_block, CHUNK)`, with zeros for what there is not.
    pub fn by_patches(weight: &Tensor, of_block: usize) -> Result<Tensor> {
        let (outputs, inputs, frames, rows, columns) = weight.dims5()?;
        let [blocks, slices] = [outputs.div_ceil(of_block), inputs.div_ceil(Self::DEPTH)];
        let weight = weight.pad_with_zeros(0, 0, blocks * of_block - outputs)?;
        let weight = weight.pad_with_zeros(1, 0, slices * Self::DEPTH - inputs)?;
        let chunks = Self::DEPTH / CHUNK;
        let sides = [blocks, of_block, slices, chunks, CHUNK, frames, rows * columns];
        weight.reshape(&sides[..])?.permute(&[0, 5, 2, 6, 3, 1, 4][..])?.contiguous()
    }

    /// Of `convolution.cu`; `numbers` are bf16 or f16.
    pub fn start(&self, numbers: &str) -> Start {
        let [frames, height, width, outputs] = self.shape();
        let of_block = Self::of_block(Self::OUTPUTS, outputs);
        let pixels = (frames * height * width).div_ceil(Self::PIXELS);
        Start {
            file: "convolution",
            function: format!("convolution_{numbers}_{of_block}"),
            grid: [pixels, outputs.div_ceil(of_block), 1],
            threads: THREADS,
            shared_bytes: Self::SLICES * (Self::PIXELS + of_block) * Self::DEPTH * NUMBER,
        }
    }

    /// Of `convolution_90.cu`, where a weight is [`by_patches`](Self::by_patches) of so many outputs.
    pub fn start_90(&self, numbers: &str, of_block: usize) -> Start {
        let [frames, height, width, outputs] = self.shape();
        let [rows, columns] = [height, width].map(|side| side.div_ceil(Self::SIDE_90));
        let slice = (Self::PATCH_90 + Self::TAPS_90 * of_block) * Self::DEPTH * NUMBER;
        let places = Self::PATCH_90 * size_of::<i32>();
        Start {
            file: "convolution_90",
            function: format!("convolution_90_{numbers}_{of_block}"),
            grid: [frames * rows * columns, outputs.div_ceil(of_block), 1],
            threads: THREADS_90,
            shared_bytes: Self::BUFFERS_90 * slice + places + Self::BARRIERS_90 * BARRIER,
        }
    }

    /// Of the output.
    pub fn shape(&self) -> [usize; 4] {
        [self.out_frames, self.out_height, self.out_width, self.outputs].map(|side| side as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_as_many_outputs_as_take_least_time() {
        for (outputs, of_block) in
            [(3, 8), (24, 64), (48, 64), (64, 64), (96, 96), (128, 128), (256, 128), (384, 96)]
        {
            assert_eq!(Convolution::of_block_90(outputs), of_block, "{outputs}");
        }
    }
}
