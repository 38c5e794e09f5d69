//! A model and how it wants to be run.

use std::fmt;
use std::str::FromStr;

use super::error::Error;
use crate::wan::Architecture;

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

    fn from_str(text: &str) -> Result<Self, Error> {
        let sides = text.split_once(['x', 'X']).and_then(|(width, height)| {
            Some(Self { width: width.trim().parse().ok()?, height: height.trim().parse().ok()? })
        });
        sides.ok_or_else(|| Error::config("size", format!("got {text:?}, expected WIDTHxHEIGHT")))
    }
}

/// A named configuration of a family, as its checkpoint was trained to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// What users call it.
    pub name: String,
    /// The networks.
    pub architecture: Architecture,
    /// Falling steps of `0..=1000`, before the shift.
    pub denoising_steps: Vec<u32>,
    /// `s` in `s u / (1 + (s - 1) u)`.
    pub timestep_shift: f64,
    /// Latent frames of a block.
    pub frames_per_block: usize,
    /// Clean blocks kept besides the sink; `None` keeps all.
    pub window: Option<usize>,
    /// First blocks, never evicted.
    pub sink: usize,
    /// Native size.
    pub size: FrameSize,
    /// Native rate.
    pub frames_per_second: u32,
}

impl Preset {
    /// The embedded model.
    pub fn pocket() -> Self {
        Self {
            name: "pocket".into(),
            architecture: Architecture::Pocket,
            denoising_steps: vec![1000, 750, 500, 250],
            timestep_shift: 5.0,
            frames_per_block: 3,
            window: Some(5),
            sink: 1,
            size: FrameSize { width: 256, height: 144 },
            frames_per_second: 16,
        }
    }
}
