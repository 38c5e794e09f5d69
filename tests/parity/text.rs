//! The text encoder against upstream's `T5Encoder` and transformers' `UMT5EncoderModel`.

use anyhow::Result;
use candle_core::Tensor;
use gstblockcascade::model::Interrupt;
use gstblockcascade::wan::text::{Umt5Config, Umt5Encoder};

use super::fixture::Fixture;
use super::report::Report;

pub fn check(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let config: Umt5Config = fixture.config()?;
    let encoder = Umt5Encoder::new(&config, fixture.weights()?)?;
    let ids = fixture.tensor("ids")?.to_vec2::<i64>()?;
    let mask = fixture.tensor("mask")?.to_vec2::<i64>()?;
    let embeds = ids.iter().zip(&mask).map(|(ids, mask)| {
        let real: Vec<u32> = ids
            .iter()
            .zip(mask)
            .filter(|(_, mask)| **mask != 0)
            .map(|(id, _)| *id as u32)
            .collect();
        let embed = encoder.forward(&real, &Interrupt::default())?;
        Ok(embed.pad_with_zeros(0, 0, ids.len() - real.len())?)
    });
    let embeds = Tensor::stack(&embeds.collect::<Result<Vec<_>>>()?, 0)?;
    report.compare("embeds", &embeds, fixture.tensor("embeds")?)
}
