//! The video auto-encoder against upstream's `WanVAE_` and diffusers' `AutoencoderKLWan`.

use anyhow::Result;
use gstblockcascade::model::Interrupt;
use gstblockcascade::wan::vae::{WanDecoder, WanEncoder, WanVaeConfig};

use super::fixture::Fixture;
use super::report::Report;

pub fn check(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let (config, interrupt): (WanVaeConfig, _) = (fixture.config()?, Interrupt::default());
    let decoder = WanDecoder::new(&config, fixture.decoder_weights(&config)?)?;
    let pixels = decoder.step(&mut decoder.state(), fixture.tensor("latents")?, &interrupt)?;
    let pixels = pixels.permute((0, 3, 1, 2))?; // (frames, 3, height, width)
    report.compare("pixels_unclamped", &pixels, fixture.tensor("pixels_unclamped")?)?;
    let encoder = WanEncoder::new(&config, fixture.decoder_weights(&config)?)?;
    let rgb = fixture.tensor("rgb")?.permute((0, 2, 3, 1))?.contiguous()?;
    let encoded = encoder.step(&mut encoder.state(), &rgb, &interrupt)?;
    report.compare("encoded", &encoded, fixture.tensor("encoded")?)
}
