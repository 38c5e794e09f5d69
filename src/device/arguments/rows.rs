//! Rows.

use super::{CHUNK, LANES, Start, THREADS};

/// Of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows {
    /// `(rows, width)`.
    pub x: u64,
    /// As `x`, or `(width,)`.
    pub y: u64,
    /// In f32, a row for each frame, or for each row where pairs are turned.
    pub a: u64,
    /// Likewise.
    pub b: u64,
    /// As `x`.
    pub out: u64,
    /// Numbers from one row of `a` to the next one's.
    pub a_row: i64,
    /// Numbers from one row of `b` to the next one's.
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
    /// Chunks a lane at most, in each kernel that has whole rows.
    const MOST: [usize; 3] = [1, 6, 20];

    /// Of a kernel that has whole rows: a narrow one takes a part of a warp; no kernel takes the widest ones.
    pub fn start(&self, function: &str) -> Option<Start> {
        let (rows, chunks) = (self.rows as usize, (self.width as usize).div_ceil(CHUNK));
        let most = Self::MOST.into_iter().find(|most| most * LANES >= chunks)?;
        let lanes = chunks.next_power_of_two().min(LANES);
        Some(Start {
            file: "rows",
            function: format!("{function}_{most}"),
            grid: [(rows * lanes).div_ceil(THREADS), 1, 1],
            threads: THREADS,
            shared_bytes: 0,
        })
    }

    /// Of one of which each thread has a chunk.
    pub fn start_by_chunk(&self, function: &str) -> Start {
        let chunks = self.rows as usize * (self.width as usize).div_ceil(CHUNK);
        Start {
            file: "rows",
            function: function.to_owned(),
            grid: [chunks.div_ceil(THREADS), 1, 1],
            threads: THREADS,
            shared_bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_kernel_unless_it_is_too_wide() {
        let start = |rows, width| Rows { rows, width, ..Rows::default() }.start("norm");
        let of = |rows, width| start(rows, width).map(|start| (start.function, start.grid[0]));
        assert_eq!(of(100, 96), Some(("norm_1".to_owned(), 7)));
        assert_eq!(of(100, 1536), Some(("norm_6".to_owned(), 13)));
        assert_eq!(of(100, 5120), Some(("norm_20".to_owned(), 13)));
        assert_eq!(of(100, 5128), None);
    }
}
