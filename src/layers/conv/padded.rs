//! Frames with zeros around them, as windows are read from.

use std::ops::Range;

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
        (self.width * self.enlarge + self.padding.0 + self.padding.1) * self.channels
    }

    /// Rows of a padded frame: lent as they are where there is nothing to pad, else copied to `copy`.
    pub(super) fn rows<'a>(
        &self,
        rows: Range<usize>,
        frame: &'a [f32],
        copy: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let len = self.row_len();
        if (self.enlarge, self.padding) == (1, (0, 0)) {
            return &frame[rows.start * len..rows.end * len];
        }
        copy.resize(rows.len() * len, 0.0);
        for (y, row) in rows.zip(copy.chunks_exact_mut(len)) {
            self.fill_row(row, y, frame);
        }
        copy
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
