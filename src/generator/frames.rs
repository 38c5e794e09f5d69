//! Pixels to frames.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::error::Error;
use super::prompt::AppliedPrompt;
use crate::layers::simd::with_slice;

/// Width and height of frames, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSize {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl fmt::Display for FrameSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for FrameSize {
    type Err = Error;

    fn from_str(text: &str) -> std::result::Result<Self, Error> {
        let sides = text.split_once(['x', 'X']).and_then(|(width, height)| {
            Some(Self { width: width.trim().parse().ok()?, height: height.trim().parse().ok()? })
        });
        sides.ok_or_else(|| Error::config("size", format!("got {text:?}, expected WIDTHxHEIGHT")))
    }
}

/// A decoded picture.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Place in the stream, from 0; its time is `index / frames per second`.
    pub index: u64,
    /// The block that it is a part of.
    pub block: u64,
    /// The prompt that its block heard last.
    pub prompt: Arc<AppliedPrompt>,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height` rows of `width` pixels of red, green, blue, without padding.
    pub rgb: Vec<u8>,
}

/// Where frames come from.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) frame: u64,
    pub(super) block: u64,
    pub(super) prompt: Arc<AppliedPrompt>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, width, height, .. } = self;
        write!(f, "Frame {{ index: {index}, {width}x{height} }}")
    }
}

impl Frame {
    /// `(frames, height, width, 3)` in `[0, 1]` to frames of `size`, the first at `place`.
    pub(super) fn from_pixels(pixels: &Tensor, size: FrameSize, place: Place) -> Result<Vec<Self>> {
        let FrameSize { width, height } = size;
        let shape = [height as usize, width as usize, 3];
        if pixels.rank() != 4 || pixels.dims()[1..] != shape || shape.contains(&0) {
            bail!("expected frames of {shape:?}, got {:?}", pixels.dims())
        }
        let frame = |(rgb, index): (&[u8], u64)| Self {
            index,
            block: place.block,
            prompt: place.prompt.clone(),
            width,
            height,
            rgb: rgb.to_vec(),
        };
        let levels = levels(pixels)?;
        let frames = levels.chunks_exact(shape.iter().product()).zip(place.frame..);
        Ok(frames.map(frame).collect())
    }
}

/// Nearest of 256 levels; values outside `[0, 1]` saturate.
fn levels(pixels: &Tensor) -> Result<Vec<u8>> {
    if !pixels.device().is_cpu() {
        return levels_there(pixels)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1();
    }
    with_slice(&pixels.to_dtype(DType::F32)?, |values| {
        Ok(values.iter().map(|value: &f32| (value * 255.0 + 0.5) as u8).collect())
    })
}

/// The same by operators that a device has, for a quarter as much leaves it so.
fn levels_there(pixels: &Tensor) -> Result<Tensor> {
    pixels.to_dtype(DType::F32)?.affine(255.0, 0.5)?.clamp(0f32, 255.0)?.to_dtype(DType::U8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_rounded_and_saturate() -> Result<()> {
        let values = [-1.0f32, 0.0, 0.5, 1.0, 2.0, 0.001];
        let pixels = Tensor::new(&values, &Device::Cpu)?.reshape((2, 1, 1, 3))?;
        let place = Place { frame: 7, block: 2, ..Place::default() };
        let frames = Frame::from_pixels(&pixels, FrameSize { width: 1, height: 1 }, place)?;
        assert_eq!(frames[0].rgb, [0, 0, 128]);
        assert_eq!(frames[1].rgb, [255, 255, 0]);
        assert_eq!((frames[1].index, frames[1].block), (8, 2));
        Ok(())
    }

    #[test]
    fn a_device_computes_the_same_levels() -> Result<()> {
        let pixels = Tensor::arange(-64f32, 320.0, &Device::Cpu)?.affine(1.0 / 255.0, 0.0)?;
        let pixels = (pixels.repeat(3)? + Tensor::arange(0f32, 1152.0, &Device::Cpu)? * 1e-6)?;
        assert_eq!(levels_there(&pixels)?.to_vec1::<u8>()?, levels(&pixels)?);
        Ok(())
    }

    #[test]
    fn pictures_of_another_size_are_refused() {
        let refused = |shape: (usize, usize, usize, usize), width, height| {
            let pixels = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            let error = Frame::from_pixels(&pixels, FrameSize { width, height }, Place::default())
                .unwrap_err();
            assert!(error.to_string().contains("expected frames of"), "{error}");
        };
        refused((1, 2, 3, 3), 2, 3);
        refused((1, 2, 3, 4), 3, 2);
        refused((4, 0, 3, 3), 3, 0);
    }
}
