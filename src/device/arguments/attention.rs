//! Attention.

use super::{BARRIER, LANES, NUMBER, Start, THREADS, THREADS_90};

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
    /// The same of other keys, which were there before.
    pub earlier: u64,
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
    /// Those of `earlier`.
    pub earlier_parts: i32,
    /// Of scores, for powers of two.
    pub scale: f32,
    /// Of the last key's score, likewise.
    pub last_bias: f32,
    /// Keys and values, the oldest first.
    pub pieces: [Piece; PIECES],
}

impl Attention {
    /// Widths of a head that `attention.cu` knows, and the one that `attention_90.cu` does.
    pub const WIDTHS: [usize; 3] = [32, 64, 128];
    /// See [`WIDTHS`](Self::WIDTHS).
    pub const WIDTH_90: usize = 128;
    /// Queries of a block of threads.
    const QUERIES: usize = 128;
    /// Keys of a tile, and tiles in shared memory: in `attention_90.cu` the queries are one of them.
    const KEYS: usize = 64;
    const TILES: usize = 4;
    const KEYS_90: usize = 128;
    const TILES_90: usize = 7;
    const BARRIERS_90: usize = 13;
    /// Threads of a block that joins parts, a warp for each row.
    const THREADS_JOINING: usize = 128;
    /// Parts of the keys at most.
    const PARTS: usize = 4;
    /// What it costs to begin a block of threads, in tiles, and how many of them are joined in the time of one:
    /// measured on an H200.
    const BEGINNING: usize = 2;
    const JOINED: usize = 30;

    /// In how many parts of the keys `attention_90.cu` is done first: so many blocks of threads run at once, and where
    /// all of them come out even there are no idle ones at the end.
    pub fn parts(&self, at_once: usize) -> usize {
        let blocks = self.blocks() * self.heads as usize;
        let tiles = (self.keys as usize).div_ceil(Self::KEYS_90);
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
            earlier: 0,
            q_row: 0,
            queries: queries as i32,
            heads: heads as i32,
            keys: 0,
            key_parts: 1,
            earlier_parts: 0,
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

    /// Of queries, for each head.
    fn blocks(&self) -> usize {
        (self.queries as usize).div_ceil(Self::QUERIES)
    }

    /// Of `attention.cu`.
    pub fn start(&self, width: usize) -> Start {
        Start {
            file: "attention",
            function: format!("attention_{width}"),
            grid: [self.blocks(), self.heads as usize, 1],
            threads: THREADS,
            shared_bytes: Self::TILES * Self::KEYS * width * NUMBER,
        }
    }

    /// Of `attention_90.cu`.
    pub fn start_90(&self) -> Start {
        let tiles = Self::TILES_90 * Self::KEYS_90 * Self::WIDTH_90 * NUMBER;
        Start {
            file: "attention_90",
            function: "attention_90".to_owned(),
            grid: [self.blocks(), self.heads as usize, self.key_parts as usize],
            threads: THREADS_90,
            shared_bytes: tiles + Self::BARRIERS_90 * BARRIER,
        }
    }

    /// Of what joins its parts.
    pub fn start_joining(&self) -> Start {
        let rows = self.queries as usize * self.heads as usize;
        Start {
            file: "attention_90",
            function: "attention_90_join".to_owned(),
            grid: [rows.div_ceil(Self::THREADS_JOINING / LANES), 1, 1],
            threads: Self::THREADS_JOINING,
            shared_bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an H200's 132 at once: 37 blocks of queries for each head.
    #[test]
    fn keys_are_split_where_blocks_come_out_even() {
        let parts = |queries, heads, keys| {
            let attention = Attention::new(queries, heads, Attention::WIDTH_90, 1);
            Attention { keys, ..attention }.parts(132)
        };
        assert_eq!(parts(4680, 12, 37_440), 2);
        assert_eq!(parts(4680, 12, 78), 1);
        assert_eq!(parts(4680, 40, 37_440), 2);
        assert_eq!(parts(128, 132, 37_440), 1);
        assert_eq!(parts(128, 66, 37_440), 2);
        assert_eq!(parts(1, 1, 100), 1);
    }
}
