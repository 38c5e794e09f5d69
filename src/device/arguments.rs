//! What kernels for GPUs are told, laid out as their sources have it; the same for those that stand in for them in
//! tests. Addresses are those of a device, 0 where there is nothing.

use candle_core::{Result, Tensor};

/// What follows a linear in the same pass over memory.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a> {
    /// Nothing.
    Nothing,
    /// GELU, in its tanh form.
    Gelu,
    /// A residual is added.
    Add(&'a Tensor),
}

/// Pieces of keys at most.
pub const PIECES: usize = 64;

/// Keys and values of some tokens, `(tokens, heads, width)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Piece {
    /// Keys.
    pub k: u64,
    /// Values.
    pub v: u64,
    /// Tokens up to here, of all pieces.
    pub end: i64,
}

/// Of `attention.cu` and `attention_90.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// `(queries, heads, width)`.
    pub q: u64,
    /// `(queries, heads, width)`, contiguous.
    pub out: u64,
    /// In f32, `(parts, queries, heads, width)` and behind them `(parts, queries, heads)`: where keys are in parts.
    pub parts: u64,
    /// Numbers from one token of `q` to the next.
    pub q_row: i64,
    /// Tokens of `q`.
    pub queries: i32,
    /// Of each token.
    pub heads: i32,
    /// Tokens of all pieces.
    pub keys: i32,
    /// Parts of the keys that are done first.
    pub key_parts: i32,
    /// Of scores, for powers of two.
    pub scale: f32,
    /// Of the last key's score, likewise.
    pub last_bias: f32,
    /// Keys and values, the oldest first.
    pub pieces: [Piece; PIECES],
}

impl Attention {
    /// Queries of a block of threads.
    pub const QUERIES: usize = 128;
    /// Keys of a tile of `attention_90.cu`.
    pub const KEYS_90: usize = 128;
    /// Parts of the keys at most.
    const PARTS: usize = 4;
    /// What it costs to begin a block of threads, in tiles, and how many of them are joined in the time of one:
    /// measured on an H200.
    const BEGINNING: usize = 2;
    const JOINED: usize = 30;

    /// In how many parts of the keys `attention_90.cu` is done first: so many blocks of threads run at once, and where
    /// all of them come out even there are no idle ones at the end.
    pub fn parts(blocks: usize, keys: usize, at_once: usize) -> usize {
        let tiles = keys.div_ceil(Self::KEYS_90);
        let cost = |parts: &usize| {
            let rounds = (blocks * parts).div_ceil(at_once.max(1));
            let joining = if *parts > 1 { blocks * parts / Self::JOINED } else { 0 };
            rounds * (tiles.div_ceil(*parts) + Self::BEGINNING) + joining
        };
        (1..=Self::PARTS.min(tiles)).min_by_key(cost).unwrap_or(1)
    }

    /// All but what is in memory: the last key stands for `last_count` equal ones.
    pub fn new(queries: usize, heads: usize, width: usize, last_count: usize) -> Self {
        Self {
            q: 0,
            out: 0,
            parts: 0,
            q_row: 0,
            queries: queries as i32,
            heads: heads as i32,
            keys: 0,
            key_parts: 1,
            scale: std::f32::consts::LOG2_E / (width as f32).sqrt(),
            last_bias: (last_count as f32).log2(),
            pieces: [Piece::default(); PIECES],
        }
    }

    /// Adds a piece of `tokens` as the next one, where there is still room.
    pub fn push(&mut self, index: usize, tokens: usize, [k, v]: [u64; 2]) {
        self.keys += tokens as i32;
        let end = self.keys.into();
        self.pieces.iter_mut().skip(index).take(1).for_each(|piece| *piece = Piece { k, v, end });
    }
}

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
    /// Pixels of a block of threads, of `convolution.cu`.
    pub const PIXELS: usize = 128;
    /// Rows, and columns, of a block of threads, of `convolution_90.cu`.
    pub const SIDE: usize = 16;
    /// Channels of a slice, and of 16 bytes, of `convolution_90.cu`.
    const DEPTH: usize = 32;
    const CHUNK: usize = 8;

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
        let chunks = Self::DEPTH / Self::CHUNK;
        let sides = [blocks, of_block, slices, chunks, Self::CHUNK, frames, rows * columns];
        weight.reshape(&sides[..])?.permute(&[0, 5, 2, 6, 3, 1, 4][..])?.contiguous()
    }
}

/// Of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows {
    /// `(rows, width)`.
    pub x: u64,
    /// As `x`, or `(width,)`.
    pub y: u64,
    /// In f32, a row for each frame.
    pub a: u64,
    /// In f32, a row for each frame.
    pub b: u64,
    /// As `x`.
    pub out: u64,
    /// Numbers from one frame's row of `a` to the next one's.
    pub a_row: i64,
    /// Numbers from one frame's row of `b` to the next one's.
    pub b_row: i64,
    /// Rows of `x`.
    pub rows: i32,
    /// Numbers of a row.
    pub width: i32,
    /// Rows of a frame.
    pub of_frame: i32,
    /// Pairs of a head that are turned.
    pub turned: i32,
    /// What is added to a variance.
    pub eps: f32,
}

impl Rows {
    /// Threads of a block.
    const THREADS: usize = 256;
    /// Lanes of a warp.
    const LANES: usize = 32;
    /// Numbers of 16 bytes, which a lane reads at once.
    pub const CHUNK: usize = 8;
    /// Chunks a lane at most, in each kernel that has whole rows.
    const MOST: [usize; 3] = [1, 6, 20];

    /// Chunks a lane of the kernel that a row needs which it has as a whole; no kernel takes the widest ones.
    pub fn most(width: usize) -> Option<usize> {
        let chunks = width.div_ceil(Self::CHUNK * Self::LANES);
        Self::MOST.into_iter().find(|most| *most >= chunks)
    }

    /// Blocks of threads where each lane has a part of a row: a narrow one takes a part of a warp.
    pub fn blocks(rows: usize, width: usize) -> usize {
        let lanes = width.div_ceil(Self::CHUNK).next_power_of_two().min(Self::LANES);
        (rows * lanes).div_ceil(Self::THREADS)
    }

    /// Blocks of threads where each has a chunk.
    pub fn blocks_by_chunk(rows: usize, width: usize) -> usize {
        (rows * width.div_ceil(Self::CHUNK)).div_ceil(Self::THREADS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an H200's 132 at once: 37 blocks of queries for each head.
    #[test]
    fn keys_are_split_where_blocks_come_out_even() {
        let parts = |heads: usize, keys| Attention::parts(37 * heads, keys, 132);
        assert_eq!(parts(12, 37_440), 2);
        assert_eq!(parts(12, 78), 1);
        assert_eq!(parts(40, 37_440), 2);
        assert_eq!(Attention::parts(132, 37_440, 132), 1);
        assert_eq!(Attention::parts(66, 37_440, 132), 2);
        assert_eq!(Attention::parts(1, 100, 132), 1);
    }
}
