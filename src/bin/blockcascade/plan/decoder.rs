//! What a decoder costs: FLOP by its kind and the size of the frames (performance.md 2.4).

use gstblockcascade::checkpoint::Architecture;
use gstblockcascade::generator::Decoder;
use gstblockcascade::wan::vae_config;

/// Latent positions of three latent frames of 832x480, which the figures below are of.
const POSITIONS: f64 = 3.0 * 60.0 * 104.0;
/// FLOP of Wan 2.1's decoder for them.
const FULL: f64 = 40.65e12;
/// Its channels at full size.
const FULL_CHANNELS: f64 = 96.0;
/// FLOP of TAEHV for them.
const TINY: f64 = 1.63e12;
/// Channels of Wan 2.1's decoder for one of LightVAE's.
const LIGHT: f64 = 4.0;
/// Frames of a latent frame, the stream's first excepted, which becomes one.
const FRAMES_PER_LATENT: f64 = 4.0;

/// FLOP of a block of `positions` once the stream runs. Products of fewer channels shrink with both
/// their sides; of the embedded model's decoder, which is also less deep, this is rough.
pub fn flop(decoder: Decoder, architecture: Architecture, positions: f64) -> f64 {
    let channels = vae_config(architecture).dim as f64;
    let native = match decoder {
        Decoder::Full => FULL * (channels / FULL_CHANNELS).powi(2),
        Decoder::Light => FULL / LIGHT.powi(2),
        Decoder::Tiny | Decoder::LightTiny => TINY,
    };
    native * positions / POSITIONS
}

/// Frames of a block of `latents`.
pub fn frames(latents: usize) -> f64 {
    FRAMES_PER_LATENT * latents as f64
}

/// Which part of a block the stream's first is, of which one latent becomes a single frame.
pub fn first_part(latents: usize) -> f64 {
    1.0 - (FRAMES_PER_LATENT - 1.0) / frames(latents)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// performance.md 2.4: 135 ms at 300 TFLOP/s, a sixteenth of that for LightVAE, 25 times less
    /// for TAEHV.
    #[test]
    fn decoders_have_the_flop_of_the_source() {
        let of = |decoder| flop(decoder, Architecture::T2v14b, POSITIONS);
        assert!((of(Decoder::Full) / 300e12 - 0.135).abs() < 1e-3);
        assert_eq!(of(Decoder::Light) * 16.0, of(Decoder::Full));
        assert!((of(Decoder::Full) / of(Decoder::Tiny) - 25.0).abs() < 0.1);
        assert!(flop(Decoder::Full, Architecture::Pocket, POSITIONS) < of(Decoder::Tiny));
        // A small decoder is the same whatever model it decodes for.
        assert_eq!(flop(Decoder::Light, Architecture::Pocket, POSITIONS), of(Decoder::Light));
        assert_eq!((frames(3), first_part(3)), (12.0, 0.75));
    }
}
