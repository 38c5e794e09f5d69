//! One tensor as it lies in a file, and its way into memory in another element type.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::source::Source;

/// Elements that one thread converts at a time: large enough to pay for the hand-over.
const CHUNK: usize = 1 << 16;

/// Place, element type and shape of one tensor; `region` is checked against its file on reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Steps between elements along each axis, in elements; `None` when they lie in order.
    pub(super) strides: Option<Vec<usize>>,
    /// From the first to past the last byte that the tensor touches.
    pub(super) region: Range<u64>,
}

impl Stored {
    /// Whether the tensor can be read as weights.
    pub(super) fn is_float(&self) -> bool {
        use Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32, F64};
        matches!(self.dtype, F64 | F32 | F16 | BF16 | F8_E4M3 | F8_E5M2)
    }

    /// Reads the tensor, converts it once to `dtype` and moves it to `device`.
    pub(super) fn load(&self, source: &Source, dtype: DType, device: &Device) -> Result<Tensor> {
        let region = source.region(self.region.clone()).map_err(candle_core::Error::wrap)?;
        let bytes = match &self.strides {
            None => Cow::Borrowed(&*region),
            Some(strides) => Cow::Owned(self.gather(&region, strides)?),
        };
        convert(&bytes, self.dtype, &self.shape, dtype)?.to_device(device)
    }

    /// The one element of a tensor, which may be a whole number.
    pub(super) fn number(&self, source: &Source) -> Result<f64> {
        if self.shape.iter().any(|n| *n != 1) {
            bail!("expected a single number, got {:?}", self.shape)
        }
        let region = source.region(self.region.clone()).map_err(candle_core::Error::wrap)?;
        match (self.dtype, region.first_chunk(), region.first_chunk()) {
            (Dtype::I64, Some(number), _) => Ok(i64::from_le_bytes(*number) as f64),
            (Dtype::I32, _, Some(number)) => Ok(i32::from_le_bytes(*number).into()),
            _ => {
                let number = self.load(source, DType::F32, &Device::Cpu)?.reshape(())?;
                number.to_scalar::<f32>().map(f64::from)
            }
        }
    }

    /// Leaves out the first rows of a tensor that has more than `wanted`, and its shape otherwise.
    pub(super) fn keep_last_rows(&mut self, wanted: &[usize]) {
        let ([rows, row @ ..], [last, wanted @ ..]) = (&mut *self.shape, wanted) else { return };
        if row == wanted && *rows > *last {
            let in_order = || row.iter().product();
            let stride = self.strides.as_ref().map_or_else(in_order, |strides| strides[0]);
            let skipped = (*rows - last).saturating_mul(stride * (self.dtype.bitsize() / 8));
            // An empty tensor's rows may be anywhere.
            let start = self.region.start.saturating_add(skipped as u64);
            self.region.start = start.min(self.region.end);
            *rows = *last;
        }
    }

    /// The elements of a strided view, in order.
    fn gather(&self, bytes: &[u8], strides: &[usize]) -> Result<Vec<u8>> {
        let size = self.dtype.bitsize() / 8;
        let mut gathered = Vec::with_capacity(self.shape.iter().product::<usize>() * size);
        let mut at = vec![0; self.shape.len()];
        while gathered.len() < gathered.capacity() {
            let element: usize = at.iter().zip(strides).map(|(i, stride)| i * stride).sum();
            match bytes.get(element * size..(element + 1) * size) {
                Some(element) => gathered.extend_from_slice(element),
                None => bail!("a view reaches past its storage"),
            }
            advance(&mut at, &self.shape);
        }
        Ok(gathered)
    }
}

/// The next index in row-major order; wraps to zero after the last.
fn advance(at: &mut [usize], shape: &[usize]) {
    for (i, n) in at.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < *n {
            return;
        }
        *i = 0;
    }
}

/// Bytes of one element type to a tensor of another on the CPU, without a copy in between.
fn convert(bytes: &[u8], from: Dtype, shape: &[usize], to: DType) -> Result<Tensor> {
    match (from, to) {
        (Dtype::F32, DType::F32) => build(bytes, shape, f32::from_le_bytes),
        (Dtype::F16, DType::F16) => build(bytes, shape, f16::from_le_bytes),
        (Dtype::BF16, DType::BF16) => build(bytes, shape, bf16::from_le_bytes),
        (_, DType::F32) => through_f32(bytes, from, shape, |x| x),
        (_, DType::F16) => through_f32(bytes, from, shape, f16::from_f32),
        (_, DType::BF16) => through_f32(bytes, from, shape, bf16::from_f32),
        _ => bail!("tensors load as f32, f16 or bf16, got {to:?}"),
    }
}

fn through_f32<T: WithDType>(
    bytes: &[u8],
    from: Dtype,
    shape: &[usize],
    narrow: impl Fn(f32) -> T + Sync,
) -> Result<Tensor> {
    match from {
        Dtype::F64 => build(bytes, shape, |b| narrow(f64::from_le_bytes(b) as f32)),
        Dtype::F32 => build(bytes, shape, |b| narrow(f32::from_le_bytes(b))),
        Dtype::F16 => build(bytes, shape, |b| narrow(f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => build(bytes, shape, |b| narrow(bf16::from_le_bytes(b).to_f32())),
        Dtype::F8_E4M3 => build(bytes, shape, |[b]: [u8; 1]| narrow(e4m3(b))),
        Dtype::F8_E5M2 => build(bytes, shape, |[b]: [u8; 1]| narrow(e5m2(b))),
        _ => bail!("expected floating point of 8, 16, 32 or 64 bits, got {from:?}"),
    }
}

/// Fills a tensor of `shape`, one element for every `N` bytes, on all cores.
fn build<const N: usize, T: WithDType>(
    bytes: &[u8],
    shape: &[usize],
    element: impl Fn([u8; N]) -> T + Sync,
) -> Result<Tensor> {
    let mut values = vec![T::zero(); bytes.len() / N];
    values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N)).for_each(|(values, bytes)| {
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *value = element(*bytes);
        }
    });
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// An 8-bit float with 4 exponent bits of bias 7 and 3 of mantissa; no infinities.
fn e4m3(bits: u8) -> f32 {
    let mantissa = f32::from(bits & 7);
    let magnitude = match (bits >> 3) & 15 {
        15 if bits & 7 == 7 => f32::NAN,
        0 => mantissa / 512.0,
        exponent => (1.0 + mantissa / 8.0) * f32::from(exponent).exp2() / 128.0,
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// An 8-bit float with 5 exponent bits and 2 of mantissa: the upper half of an `f16`.
fn e5m2(bits: u8) -> f32 {
    f16::from_bits(u16::from(bits) << 8).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_agree_with_candle() {
        let bits: Vec<u8> = (0..=255).collect();
        let candle = Tensor::from_raw_buffer(&bits, DType::F8E4M3, &[256], &Device::Cpu).unwrap();
        let candle = candle.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        for (bits, want) in bits.into_iter().zip(candle) {
            let got = e4m3(bits);
            assert!(got == want || got.is_nan() && want.is_nan(), "{bits}: {want} got {got}");
        }
    }

    #[test]
    fn eight_bit_floats_of_five_exponent_bits_are_exact() {
        // Smallest and largest, above and below one, the largest subnormal.
        for (bits, want) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-16)),
            (0x03, 3.0 * 2f32.powi(-16)),
            (0x04, 2f32.powi(-14)),
            (0x3b, 0.875),
            (0x3c, 1.0),
            (0x7b, 57344.0),
            (0x7c, f32::INFINITY),
            (0xfb, -57344.0),
            (0xc1, -2.5),
        ] {
            assert_eq!(e5m2(bits), want, "{bits:#x}");
        }
        assert!([0x7d, 0x7e, 0x7f, 0xff].into_iter().all(|bits| e5m2(bits).is_nan()));
        let tensor = convert(&[0x3c, 0xc1], Dtype::F8_E5M2, &[2], DType::F32).unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [1.0, -2.5]);
    }

    #[test]
    fn the_last_rows_are_where_they_were() {
        let rows = |shape: &[usize], strides: Option<&[usize]>, wanted: &[usize]| {
            let (shape, strides) = (shape.to_vec(), strides.map(<[usize]>::to_vec));
            let mut stored = Stored { dtype: Dtype::F16, shape, strides, region: 10..34 };
            stored.keep_last_rows(wanted);
            (stored.shape, stored.region)
        };
        assert_eq!(rows(&[4, 3], None, &[1, 3]), (vec![1, 3], 28..34));
        assert_eq!(rows(&[4, 3], Some(&[1, 4]), &[2, 3]), (vec![2, 3], 14..34));
        for wanted in [&[4, 3][..], &[5, 3], &[2, 2], &[2], &[]] {
            assert_eq!(rows(&[4, 3], None, wanted), (vec![4, 3], 10..34), "{wanted:?}");
        }
        assert_eq!(rows(&[900, 0], Some(&[7, 1]), &[2, 0]), (vec![2, 0], 34..34));
    }

    #[test]
    fn a_transposed_view_is_put_in_order() {
        let stored =
            Stored { dtype: Dtype::U8, shape: vec![3, 2], strides: Some(vec![1, 3]), region: 0..6 };
        assert_eq!(stored.gather(&[0, 1, 2, 3, 4, 5], &[1, 3]).unwrap(), [0, 3, 1, 4, 2, 5]);
        assert!(stored.gather(&[0, 1, 2, 3, 4], &[1, 3]).is_err());
    }
}
