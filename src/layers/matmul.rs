//! A bounds-checked door to the strided matrix product that candle itself uses.
#![allow(unsafe_code)] // gemm takes raw pointers; `multiply` checks every extent first

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
    /// `rows x cols`, rows `row_stride` elements apart.
    ///
    /// # Panics
    /// When the matrix reaches beyond `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(reach(rows, cols, row_stride, 1) <= data.len(), "matrix reaches beyond its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
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
///
/// # Panics
/// When inner sizes differ or the result does not fit `dst`.
pub fn multiply(dst: &mut [f32], dst_stride: usize, into: Into, a: Matrix<'_>, b: Matrix<'_>) {
    assert_eq!(a.cols, b.rows, "inner sizes differ");
    assert!(b.cols <= dst_stride || a.rows <= 1, "rows of the result overlap");
    assert!(reach(a.rows, b.cols, dst_stride, 1) <= dst.len(), "result reaches beyond its slice");
    // SAFETY: `Matrix::new` and the assertions above keep every element that gemm reads or writes
    // inside its slice, and the borrow checker keeps `dst` apart from `a` and `b`. The number of
    // elements of a slice fits an isize, so the strides do.
    unsafe {
        gemm(
            a.rows,
            b.cols,
            a.cols,
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
}

/// One more than the largest index of a strided matrix; the most there is where that overflows.
fn reach(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    (rows - 1)
        .saturating_mul(row_stride)
        .saturating_add((cols - 1).saturating_mul(col_stride))
        .saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_product_by_hand() {
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0]; // [[1, 2], [3, 4]], row stride 3
        let b = [5.0, 7.0, 6.0, 8.0]; // [[5, 6], [7, 8]] transposed
        let mut dst = [1.0; 4];
        let b = Matrix::new(&b, 2, 2, 2).transposed();
        multiply(&mut dst, 2, Into::Add, Matrix::new(&a, 2, 2, 3), b);
        assert_eq!(dst, [20.0, 23.0, 44.0, 51.0]);
    }

    #[test]
    #[should_panic(expected = "beyond its slice")]
    fn a_matrix_cannot_reach_beyond_its_slice() {
        Matrix::new(&[0.0; 5], 2, 3, 3);
    }
}
