//! How long a stream is: seconds, frames, blocks.

use anyhow::{Result, bail};
use gstblockcascade::checkpoint::Preset;

/// Frames that a latent frame becomes; the stream's first becomes one.
const FRAMES_PER_LATENT: u64 = 4;
/// A stream's length when none is asked for.
const SECONDS: f64 = 5.0;

/// The length of a stream as it is asked for; at most one of the three.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[group(multiple = false)]
pub struct LengthArgs {
    /// Length of the video in seconds [default: 5]
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Length of the video in frames
    #[arg(long, value_name = "N")]
    frames: Option<u64>,
    /// Length of the video in blocks
    #[arg(long, value_name = "N")]
    blocks: Option<u64>,
}

/// The length of a stream; its last block may be longer than what is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Blocks to generate.
    pub blocks: u64,
    /// Frames to keep.
    pub frames: u64,
}

impl LengthArgs {
    /// The length under a preset's frame rate and block size.
    pub fn resolve(&self, preset: &Preset) -> Result<Length> {
        let per_block = preset.frames_per_block as u64;
        if let Some(blocks) = self.blocks {
            // Zero blocks are refused with the other settings.
            let latents = blocks.saturating_mul(per_block);
            return Ok(Length { blocks, frames: frames_of(latents) });
        }
        let frames = match self.frames {
            Some(0) => bail!("frames: got 0, expected at least 1"),
            Some(frames) => frames,
            None => frames_in(self.seconds.unwrap_or(SECONDS), preset.fps)?,
        };
        Ok(Length { blocks: latents_of(frames).div_ceil(per_block.max(1)), frames })
    }
}

fn frames_in(seconds: f64, fps: u32) -> Result<u64> {
    let frames = (seconds * f64::from(fps)).round();
    if (1.0..1e15).contains(&frames) {
        return Ok(frames as u64);
    }
    bail!("seconds: got {seconds}, expected at least one frame, 1/{fps} of a second")
}

fn frames_of(latents: u64) -> u64 {
    latents.saturating_sub(1).saturating_mul(FRAMES_PER_LATENT).saturating_add(1)
}

fn latents_of(frames: u64) -> u64 {
    (frames - 1).div_ceil(FRAMES_PER_LATENT) + 1
}

/// The block that a frame belongs to.
pub fn block_of(frame: u64, frames_per_block: usize) -> u64 {
    frame.div_ceil(FRAMES_PER_LATENT) / frames_per_block as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use gstblockcascade::checkpoint::Manifest;

    fn resolve(args: LengthArgs) -> Result<Length> {
        args.resolve(&Manifest::named("pocket").unwrap().preset) // 16 fps, blocks of 3
    }

    fn frames(n: u64) -> (u64, u64) {
        let args = LengthArgs { frames: Some(n), ..LengthArgs::default() };
        let Length { blocks, frames } = resolve(args).unwrap();
        (blocks, frames)
    }

    #[test]
    fn blocks_hold_nine_frames_and_then_twelve() {
        assert_eq!([1, 9, 10, 21, 22].map(frames), [(1, 1), (1, 9), (2, 10), (2, 21), (3, 22)]);
        let two = LengthArgs { blocks: Some(2), ..LengthArgs::default() };
        assert_eq!(resolve(two).unwrap(), Length { blocks: 2, frames: 21 });
    }

    #[test]
    fn seconds_are_rounded_to_frames() {
        let seconds = |s| resolve(LengthArgs { seconds: Some(s), ..LengthArgs::default() });
        assert_eq!(seconds(2.0).unwrap().frames, 32);
        assert_eq!(resolve(LengthArgs::default()).unwrap().frames, 80);
        for wrong in [0.0, -1.0, 0.01, f64::NAN, f64::INFINITY] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn frames_know_their_block() {
        assert_eq!([0, 1, 8, 9, 20, 21].map(|frame| block_of(frame, 3)), [0, 0, 0, 1, 1, 2]);
    }
}
