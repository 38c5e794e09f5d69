//! Sums of products of bf16, in f32 registers: an instruction takes two numbers of a row and those of
//! sixteen outputs (AVX512_BF16).
#![allow(unsafe_code)] // asks for the instruction once, and reads without a check for each number

use std::ops::Range;

use candle_core::{Result, bail};
use half::bf16;

/// Outputs that are summed at once.
pub const WIDTH: usize = 64;

/// Of one row.
pub type Sums = [f32; WIDTH];

/// Two numbers of each output, the first one in the lower half; lines of the cache.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Pairs(pub [u32; WIDTH]);

/// Rows of one group: as many as keep all their sums in registers.
const ROWS: usize = 6;

/// Rows of numbers, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// From the first one's first number on.
    pub data: &'a [bf16],
    /// From one row's first number to the next one's.
    pub stride: usize,
    /// How many rows.
    pub count: usize,
}

/// Whether this machine has the instruction.
pub fn are_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Adds the products of the first numbers of each row with all `pairs` to the row's sums, which are
/// `stride` apart. An error where this machine has no such instruction.
pub fn add(sums: &mut [Sums], stride: usize, xs: Rows<'_>, pairs: &[Pairs]) -> Result<()> {
    let before = |stride: usize| xs.count.saturating_sub(1).saturating_mul(stride);
    let written = before(stride).saturating_add(1);
    let read = before(xs.stride).saturating_add(2 * pairs.len());
    if !are_fast() || xs.count == 0 || written > sums.len() || read > xs.data.len() {
        let (xs_len, sums) = (xs.data.len(), sums.len());
        bail!("{} rows of {read} of {xs_len} numbers, {written} of {sums} sums", xs.count);
    }
    let whole = xs.count / ROWS * ROWS;
    groups::<ROWS>(sums, stride, xs, 0..whole, pairs);
    groups::<1>(sums, stride, xs, whole..xs.count, pairs);
    Ok(())
}

/// Rows `R` at a time.
fn groups<const R: usize>(
    sums: &mut [Sums],
    stride: usize,
    xs: Rows<'_>,
    rows: Range<usize>,
    pairs: &[Pairs],
) {
    for row in rows.step_by(R) {
        let xs = Rows { data: &xs.data[row * xs.stride..], ..xs };
        group::<R>(&mut sums[row * stride..], stride, xs, pairs);
    }
}

#[cfg(target_arch = "x86_64")]
fn group<const R: usize>(sums: &mut [Sums], stride: usize, xs: Rows<'_>, pairs: &[Pairs]) {
    // SAFETY: `add` has asked whether the machine has the instructions.
    unsafe { x86::group::<R>(sums, stride, xs, pairs) }
}

#[cfg(not(target_arch = "x86_64"))]
fn group<const R: usize>(_: &mut [Sums], _: usize, _: Rows<'_>, _: &[Pairs]) {}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::{Pairs, Rows, Sums, WIDTH};

    /// Vectors of the sums of a row.
    const VECTORS: usize = WIDTH / 16;

    /// Adds the products of the first `R` rows, their sums in registers.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn group<const R: usize>(
        sums: &mut [Sums],
        stride: usize,
        rows: Rows<'_>,
        pairs: &[Pairs],
    ) {
        let xs = &rows.data[..(R - 1) * rows.stride + 2 * pairs.len()];
        let mut totals = [[_mm512_setzero_ps(); VECTORS]; R];
        for (row, totals) in totals.iter_mut().enumerate() {
            *totals = load(&sums[row * stride]);
        }
        for (at, pairs) in pairs.iter().enumerate() {
            let weights = weights(pairs);
            for (row, totals) in totals.iter_mut().enumerate() {
                // SAFETY: `at < pairs.len()` and `row < R`: `xs` ends with the last of these.
                let pair = unsafe { xs.as_ptr().add(row * rows.stride + 2 * at) };
                // SAFETY: as above; pairs need not be aligned.
                let pair = _mm512_set1_epi32(unsafe { pair.cast::<i32>().read_unaligned() });
                for (total, weights) in totals.iter_mut().zip(weights) {
                    *total = _mm512_dpbf16_ps(*total, numbers(pair), weights);
                }
            }
        }
        for (row, totals) in totals.into_iter().enumerate() {
            // SAFETY: as many bits, and any are numbers.
            sums[row * stride] = unsafe { transmute::<[__m512; VECTORS], Sums>(totals) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(sums: &Sums) -> [__m512; VECTORS] {
        // SAFETY: as many bits, and any are numbers.
        unsafe { transmute::<Sums, [__m512; VECTORS]>(*sums) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn weights(pairs: &Pairs) -> [__m512bh; VECTORS] {
        // SAFETY: as many bits, and any are numbers.
        unsafe { transmute::<Pairs, [__m512bh; VECTORS]>(*pairs) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn numbers(pair: __m512i) -> __m512bh {
        // SAFETY: as many bits, and any are numbers.
        unsafe { transmute::<__m512i, __m512bh>(pair) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<bf16> {
        (0..count).map(|i| bf16::from_f32(i as f32)).collect()
    }

    #[test]
    fn two_numbers_of_two_rows_by_hand() {
        let (xs, mut sums) = (numbers(5), [[10.0; WIDTH]; 3]);
        let weight = |lower, upper| {
            Pairs(
                [u32::from(bf16::from_f32(upper).to_bits()) << 16
                    | u32::from(bf16::from_f32(lower).to_bits()); WIDTH],
            )
        };
        let rows = Rows { data: &xs, stride: 3, count: 2 };
        let added = add(&mut sums, 2, rows, &[weight(2.0, 100.0)]);
        assert_eq!(added.is_ok(), are_fast());
        if are_fast() {
            assert_eq!(sums, [[110.0; WIDTH], [10.0; WIDTH], [416.0; WIDTH]]);
        }
    }

    #[test]
    fn nothing_is_read_or_written_beyond_a_slice() {
        let (xs, pairs) = (numbers(5), [Pairs([0; WIDTH]); 1]);
        let mut sums = [[0.0; WIDTH]; 3];
        let rows = Rows { data: &xs, stride: 3, count: 2 };
        assert!(add(&mut sums, 2, Rows { data: &xs[..4], ..rows }, &pairs).is_err());
        assert!(add(&mut sums, 3, rows, &pairs).is_err());
        assert!(add(&mut sums, usize::MAX, rows, &pairs).is_err());
        assert!(add(&mut sums, 1, Rows { stride: usize::MAX, ..rows }, &pairs).is_err());
        assert!(add(&mut sums, 1, Rows { count: 0, ..rows }, &pairs).is_err());
    }
}
