//! Numbers that the fast paths read and write; all of them compute in f32.

use candle_core::WithDType;
use half::bf16;
use pulp::{Simd, WithSimd};

use super::simd::dispatch;

/// f32, or what is widened to it and rounded from it.
pub trait Real: WithDType {
    /// The same number.
    fn wide(self) -> f32;
    /// The number nearest to `x`, the even one of two.
    fn nearest(x: f32) -> Self;
    /// The numbers themselves, where they are f32.
    fn as_f32(xs: &[Self]) -> Option<&[f32]>;
}

impl Real for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn nearest(x: f32) -> Self {
        x
    }

    fn as_f32(xs: &[Self]) -> Option<&[f32]> {
        Some(xs)
    }
}

impl Real for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Without a branch, unlike the one of `half`: loops of it are vectorised.
    #[inline(always)]
    fn nearest(x: f32) -> Self {
        const QUIET: u32 = 0x40;
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        bf16::from_bits(if x.is_nan() { bits >> 16 | QUIET } else { nearest } as u16)
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

/// Some numbers as f32.
pub fn widen<T: Real>(from: &[T], to: &mut [f32]) {
    dispatch(Each { from, to, f: itself });
}

/// Some f32 as the numbers nearest to them.
pub fn round<T: Real>(from: &[f32], to: &mut [T]) {
    dispatch(Each { from, to, f: itself });
}

#[inline(always)]
fn itself(x: f32) -> f32 {
    x
}

/// `to[i] = f(from[i])`, computed in f32; a type and not a closure, so that it is sure to be inlined into the code for
/// each instruction set.
pub struct Each<'a, T, U, F> {
    pub from: &'a [T],
    pub to: &'a mut [U],
    pub f: F,
}

impl<T: Real, U: Real, F: Fn(f32) -> f32> WithSimd for Each<'_, T, U, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let pairs = self.to.iter_mut().zip(self.from);
        pairs.for_each(|(to, from)| *to = U::nearest((self.f)(from.wide())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        let ends = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        for bits in (0..=u16::MAX).flat_map(|high| ends.map(|low| u32::from(high) << 16 | low)) {
            let x = f32::from_bits(bits);
            assert_eq!(bf16::nearest(x).to_bits(), bf16::from_f32(x).to_bits(), "{x} {bits:x}");
            assert_eq!(bf16::nearest(x).wide().to_bits(), bf16::from_f32(x).to_f32().to_bits());
        }
    }
}
