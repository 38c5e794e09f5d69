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
    /// Reads the tensor, converts it once to `dtype` and moves it to `device`.
    pub(super) fn load(&self, source: &Source, dtype: DType, device: &Device) -> Result<Tensor> {
        let region = source.region(self.region.clone()).map_err(candle_core::Error::wrap)?;
        let bytes = match &self.strides {
            None => Cow::Borrowed(&*region),
            Some(strides) => Cow::Owned(self.gather(&region, strides)?),
        };
        convert(&bytes, self.dtype, &self.shape, dtype)?.to_device(device)
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
    fn a_transposed_view_is_put_in_order() {
        let stored =
            Stored { dtype: Dtype::U8, shape: vec![3, 2], strides: Some(vec![1, 3]), region: 0..6 };
        assert_eq!(stored.gather(&[0, 1, 2, 3, 4, 5], &[1, 3]).unwrap(), [0, 3, 1, 4, 2, 5]);
        assert!(stored.gather(&[0, 1, 2, 3, 4], &[1, 3]).is_err());
    }
}
