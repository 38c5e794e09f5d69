//! Rotary position embedding on three axes: latent frame, token row, token column.
//!
//! Adjacent pairs of a head form complex numbers that are turned by `position * frequency`; the
//! first pairs follow the frame, the next the row, the last the column. Angles are computed in f64
//! from absolute positions, so there is no table and no last frame. Arithmetic of upstream's
//! `rope_params` and `causal_rope_apply`:
//! <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/causal_model.py>

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rotary_emb::rope_i;

const BASE: f64 = 10_000.0;

/// The frequencies of each axis, a function of the width of a head.
#[derive(Clone, Debug)]
pub struct Rope {
    frame: Vec<f64>,
    row: Vec<f64>,
    col: Vec<f64>,
}

/// Token rows and columns of a latent frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows of tokens.
    pub rows: usize,
    /// Columns of tokens.
    pub cols: usize,
}

impl Grid {
    /// Tokens of a latent frame.
    pub fn tokens(&self) -> usize {
        self.rows * self.cols
    }
}

/// Cosines and sines for a run of tokens, `(tokens, head_dim / 2)` in f32.
#[derive(Clone, Debug)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Splits an even `head_dim` over the axes the way Wan does: 44, 42, 42 of 128.
    pub fn new(head_dim: usize) -> Self {
        let side = 2 * (head_dim / 6);
        let frame = head_dim - 2 * side;
        Self { frame: frequencies(frame), row: frequencies(side), col: frequencies(side) }
    }

    /// The rotation of `frames` latent frames of tokens (frame, row, column; column fastest).
    pub fn rotation(
        &self,
        first_frame: usize,
        frames: usize,
        grid: Grid,
        device: &Device,
    ) -> Result<Rotation> {
        let positions = (0..frames).map(|frame| first_frame.saturating_add(frame) as f64);
        self.at(&positions.collect::<Vec<_>>(), grid, device)
    }

    /// Moves keys that are already rotated by `frames` along the frame axis.
    pub fn shift(&self, keys: &Tensor, frames: i64) -> Result<Tensor> {
        if frames == 0 {
            return Ok(keys.clone());
        }
        let grid = Grid { rows: 1, cols: 1 };
        self.at(&[frames as f64], grid, keys.device())?.repeated(keys.dim(1)?)?.apply(keys)
    }

    /// The rotation of latent frames at any positions.
    fn at(&self, frames: &[f64], grid: Grid, device: &Device) -> Result<Rotation> {
        let width = self.frame.len() + self.row.len() + self.col.len();
        let count = |count: usize| (0..count).map(|position| position as f64).collect::<Vec<_>>();
        let (rows, cols) = (count(grid.rows), count(grid.cols));
        let table = |f: fn(f64) -> f64| {
            // Each axis by itself: there are far fewer positions than tokens.
            let (frames, rows) = (along(&self.frame, frames, f), along(&self.row, &rows, f));
            let cols = along(&self.col, &cols, f);
            let mut values = Vec::with_capacity(frames.len() * grid.tokens() * width);
            for frame in &frames {
                for row in &rows {
                    for col in &cols {
                        [frame, row, col].iter().for_each(|part| values.extend_from_slice(part));
                    }
                }
            }
            Tensor::from_vec(values, (frames.len() * grid.tokens(), width), device)
        };
        Ok(Rotation { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }
}

impl Rotation {
    /// The rotation of a single token, for as many as there are.
    fn repeated(&self, tokens: usize) -> Result<Self> {
        let repeat = |table: &Tensor| table.broadcast_as((tokens, table.dim(1)?))?.contiguous();
        Ok(Self { cos: repeat(&self.cos)?, sin: repeat(&self.sin)? })
    }

    /// The rotations of several runs of tokens, one after the other.
    pub fn concatenate(runs: &[Self]) -> Result<Self> {
        let cat = |table: fn(&Self) -> &Tensor| {
            Tensor::cat(&runs.iter().map(table).collect::<Vec<_>>(), 0)
        };
        Ok(Self { cos: cat(|run| &run.cos)?, sin: cat(|run| &run.sin)? })
    }

    /// Cosines and sines, `(tokens, head_dim / 2)` each.
    pub fn tables(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }

    /// Rotates `(1, tokens, heads, head_dim)`, computed in f32, returned in the dtype of `xs`.
    pub fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        let (_, tokens, heads, d) = xs.dims4()?;
        let per_token = xs.to_dtype(DType::F32)?.contiguous()?.reshape((tokens, heads, 1, d))?;
        let (cos, sin) = (self.cos.unsqueeze(1)?, self.sin.unsqueeze(1)?); // (tokens, 1, d / 2)
        rope_i(&per_token, &cos, &sin)?.reshape((1, tokens, heads, d))?.to_dtype(xs.dtype())
    }
}

/// `BASE^(-2j / width)` for each pair `j` of an axis.
fn frequencies(width: usize) -> Vec<f64> {
    (0..width / 2).map(|j| BASE.powf(-2.0 * j as f64 / width as f64)).collect()
}

/// A function of the angles at each position of an axis.
fn along(frequencies: &[f64], positions: &[f64], f: fn(f64) -> f64) -> Vec<Vec<f32>> {
    let values = |position: &f64| frequencies.iter().map(|w| f(position * w) as f32).collect();
    positions.iter().map(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::layers::numbers::{normal, property};

    const GRID: Grid = Grid { rows: 2, cols: 3 };

    fn random_keys(frames: usize, d: usize) -> Tensor {
        normal(0, &[1, frames * GRID.tokens(), 2, d])
    }

    fn rotated(keys: &Tensor, first_frame: usize, d: usize) -> Tensor {
        let frames = keys.dims()[1] / GRID.tokens();
        let rotation = Rope::new(d).rotation(first_frame, frames, GRID, &Device::Cpu).unwrap();
        rotation.apply(keys).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn the_axes_of_a_128_wide_head() {
        let rope = Rope::new(128);
        assert_eq!([rope.frame.len(), rope.row.len(), rope.col.len()], [22, 21, 21]);
        assert!((rope.frame[1] - 0.657_933_22).abs() < 1e-8);
        assert!((rope.row[2] - 0.415_956_22).abs() < 1e-8);
    }

    #[test]
    fn a_pair_turns_by_its_angle() {
        let x = Tensor::new(&[[[[1f32, 0.0, 1.0, 0.0, 1.0, 0.0]]]], &Device::Cpu).unwrap();
        let grid = Grid { rows: 1, cols: 1 };
        let rotation = Rope::new(6).rotation(2, 1, grid, &Device::Cpu).unwrap();
        let y = rotation.apply(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!((y[0] - 2f32.cos()).abs() < 1e-6 && (y[1] - 2f32.sin()).abs() < 1e-6);
        assert_eq!(&y[2..], [1.0, 0.0, 1.0, 0.0]); // row 0, column 0
    }

    proptest! {
        #![proptest_config(property(32))]
        #[test]
        fn rotation_keeps_norms(first in 0usize..100_000, half in 3usize..20) {
            let keys = random_keys(2, 2 * half);
            let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let (before, after) = (norm(&keys), norm(&rotated(&keys, first, 2 * half)));
            prop_assert!((before - after).abs() < 1e-4 * before);
        }

        #[test]
        fn shifting_is_rotating_elsewhere(first in 0usize..5_000, to in 0usize..5_000) {
            let keys = random_keys(3, 20);
            let moved = Rope::new(20).shift(&rotated(&keys, first, 20), to as i64 - first as i64);
            prop_assert!(difference(&moved.unwrap(), &rotated(&keys, to, 20)) < 1e-5);
        }
    }
}
