//! Frames with zeros around them, as windows are read from.

use std::cell::RefCell;

use rayon::prelude::*;

/// Rows that one task copies.
const ROWS: usize = 16;

/// Sizes of a frame and of what is made of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Padded {
    /// Of the frame itself, in pixels.
    pub(super) height: usize,
    pub(super) width: usize,
    /// Numbers of a pixel.
    pub(super) channels: usize,
    /// How often each pixel is repeated along both sides, before zeros are put around it.
    pub(super) enlarge: usize,
    /// Rows and columns of zeros before the first and after the last.
    pub(super) padding: (usize, usize),
}

impl Padded {
    /// Numbers of a row.
    pub(super) fn row_len(&self) -> usize {
        self.side(self.width) * self.channels
    }

    /// Numbers of a frame.
    pub(super) fn len(&self) -> usize {
        self.side(self.height) * self.row_len()
    }

    fn side(&self, pixels: usize) -> usize {
        pixels * self.enlarge + self.padding.0 + self.padding.1
    }

    /// Lends the frames, padded, to `f`, one after the other: where there is nothing to pad, they are
    /// lent as they are. What they are copied to stays with the thread, for the next call.
    pub(super) fn with<R>(&self, frames: &[&[f32]], f: impl FnOnce(&[&[f32]]) -> R) -> R {
        thread_local! {
            static COPY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        if (self.enlarge, self.padding) == (1, (0, 0)) {
            return f(frames);
        }
        let mut copy = COPY.take();
        copy.resize(frames.len() * self.len(), 0.0);
        self.fill(&mut copy, frames);
        let result = f(&copy.chunks_exact(self.len()).collect::<Vec<_>>());
        COPY.set(copy);
        result
    }

    fn fill(&self, copy: &mut [f32], frames: &[&[f32]]) {
        let run = ROWS * self.row_len();
        let copies = copy.chunks_exact_mut(self.len()).zip(frames);
        let tasks: Vec<_> = copies
            .flat_map(|(copy, frame)| {
                copy.chunks_mut(run).enumerate().map(|(i, rows)| (i * ROWS, rows, *frame))
            })
            .collect();
        tasks.into_par_iter().for_each(|(first, rows, frame)| {
            for (y, row) in (first..).zip(rows.chunks_exact_mut(self.row_len())) {
                self.fill_row(row, y, frame);
            }
        });
    }

    fn fill_row(&self, row: &mut [f32], y: usize, frame: &[f32]) {
        let (before, len) = (self.padding.0, self.width * self.channels);
        match y.checked_sub(before).map(|y| y / self.enlarge).filter(|&y| y < self.height) {
            Some(y) => {
                let (left, row) = row.split_at_mut(before * self.channels);
                let (row, right) = row.split_at_mut(len * self.enlarge);
                left.fill(0.0);
                enlarge(&frame[y * len..][..len], row, self.channels, self.enlarge);
                right.fill(0.0);
            }
            None => row.fill(0.0),
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
