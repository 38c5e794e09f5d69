//! A bounds-checked door to the strided matrix product that candle itself uses.
#![allow(unsafe_code)] // gemm takes raw pointers; `multiply` checks every extent first

use candle_core::{Result, bail};
use gemm::{Parallelism, gemm};

/// A matrix inside a slice; element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows x cols`, rows `row_stride` elements apart; they may overlap. An error where the last
    /// row leaves `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        let needed = reach(rows, cols, row_stride);
        if needed > data.len() {
            bail!("{rows} rows of {cols}, {row_stride} apart, need {needed}, got {}", data.len())
        }
        Ok(Self { data, rows, cols, row_stride, col_stride: 1 })
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// What happens to the destination's old values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// They are overwritten.
    Replace,
    /// The product is added to them.
    Add,
}

/// `dst (+)= a · b` on one thread; `dst` is row-major, rows `dst_stride` elements apart.
pub fn multiply(
    dst: &mut [f32],
    dst_stride: usize,
    into: Into,
    a: Matrix<'_>,
    b: Matrix<'_>,
) -> Result<()> {
    check(dst, dst_stride, a, b)?;
    let (m, k, n) = (a.rows, a.cols, b.cols);
    // SAFETY: `Matrix::new` and `check` keep all that gemm touches inside its slice, for
    // strides are not negative and the last element is the furthest; `dst` is borrowed apart from
    // `a` and `b`. A stride that is followed is shorter than its slice, hence fits an isize.
    unsafe {
        gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            /* dst column stride */ 1,
            /* dst row stride */ dst_stride as isize,
            /* read dst */ into == Into::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            /* alpha, of dst */ 1.0,
            /* beta, of the product */ 1.0,
            /* conjugate dst, a, b */ false,
            false,
            false,
            Parallelism::None,
        )
    }
    Ok(())
}

/// Whether the product's inner sizes agree and its rows lie apart inside `dst`.
fn check(dst: &[f32], dst_stride: usize, a: Matrix<'_>, b: Matrix<'_>) -> Result<()> {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let fits = reach(m, n, dst_stride) <= dst.len() && (n <= dst_stride || m <= 1);
    if b.rows != k || !fits {
        bail!("({m}, {k}) times ({}, {n}) does not fit {} numbers", b.rows, dst.len())
    }
    Ok(())
}

/// One more than the largest index of a matrix of contiguous rows; the most there is where that
/// overflows.
fn reach(rows: usize, cols: usize, row_stride: usize) -> usize {
    match (rows.checked_sub(1), cols) {
        (None, _) | (_, 0) => 0,
        (Some(last), _) => last.saturating_mul(row_stride).saturating_add(cols),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_product_by_hand() -> Result<()> {
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0]; // [[1, 2], [3, 4]], row stride 3
        let b = [5.0, 7.0, 6.0, 8.0]; // [[5, 6], [7, 8]] transposed
        let mut dst = [1.0; 4];
        let b = Matrix::new(&b, 2, 2, 2)?.transposed();
        multiply(&mut dst, 2, Into::Add, Matrix::new(&a, 2, 2, 3)?, b)?;
        assert_eq!(dst, [20.0, 23.0, 44.0, 51.0]);
        multiply(&mut dst, 2, Into::Replace, Matrix::new(&a, 2, 2, 3)?, b)?;
        assert_eq!(dst, [19.0, 22.0, 43.0, 50.0]);
        Ok(())
    }

    #[test]
    fn rows_may_overlap() -> Result<()> {
        let (a, b) = ([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0, 10000.0]);
        let mut dst = [0.0; 4];
        let (a, b) = (Matrix::new(&a, 2, 2, 1)?, Matrix::new(&b, 2, 2, 2)?);
        multiply(&mut dst, 2, Into::Replace, a, b)?;
        assert_eq!(dst, [2010.0, 20100.0, 3020.0, 30200.0]);
        assert!(multiply(&mut dst[1..], 2, Into::Replace, a, b).is_err());
        assert!(multiply(&mut [0.0; 9], 1, Into::Replace, a, b).is_err());
        Ok(())
    }

    #[test]
    fn a_matrix_cannot_reach_beyond_its_slice() {
        assert!(Matrix::new(&[0.0; 5], 2, 3, 3).is_err());
        assert!(Matrix::new(&[0.0; 5], 2, 3, usize::MAX).is_err());
        assert!(Matrix::new(&[0.0; 5], 0, 3, 3).is_ok());
        assert!(Matrix::new(&[0.0; 5], 2, 3, 2).is_ok());
    }
}
