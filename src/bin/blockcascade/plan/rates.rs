//! How fast a GPU does its work: presets, and numbers that users put in their place.
//!
//! Presets are what good kernels reach, not what a data sheet says (performance.md 2.5): one H200
//! was measured at 790 TFLOP/s in large bf16 products and 4.3 TB/s in copies.

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::forward::Work;

const TERA: f64 = 1e12;
const GIGA: f64 = 1e9;

/// What a collective or a copy between GPUs takes however short it is: what is left of
/// performance.md 2.7's times when their work and bytes are taken away. Seconds.
const COLLECTIVE: f64 = 15e-6;
/// What a host takes to launch a kernel, in seconds. Assumed; it matters for tiny networks only.
const LAUNCH: f64 = 5e-6;
/// What decoders reach of good kernels: performance.md 2.4. FLOP/s.
const CONVOLUTION: f64 = 300.0 * TERA;

/// A kind of GPU.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Gpu {
    /// NVIDIA H100 SXM: 80 GB
    H100,
    /// NVIDIA H200: 141 GB
    H200,
}

/// Number format of products with weights and of attention.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// 16 bits
    Bf16,
    /// 8 bits, activations between kernels in 16: no program's here, for comparison
    Fp8,
}

/// Work that one GPU does in a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Products with weights, FLOP/s.
    pub gemm: f64,
    /// Attention, FLOP/s.
    pub attention: f64,
    /// Convolutions of a decoder, FLOP/s.
    pub convolution: f64,
    /// Memory, bytes/s.
    pub memory: f64,
    /// What a GPU receives from the others, bytes/s.
    pub link: f64,
    /// What an exchange takes besides, in seconds.
    pub collective: f64,
    /// What a launch takes, in seconds.
    pub launch: f64,
}

/// Numbers in place of a preset's.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Rates")]
pub struct RateArgs {
    /// What a GPU receives from the others: 400 for NVLink, 25 for PCIe [GB/s]
    #[arg(long, value_name = "GB/s", default_value_t = 400.0)]
    link: f64,
    /// Products with weights [TFLOP/s; default: the GPU's]
    #[arg(long, value_name = "TFLOP/s")]
    gemm: Option<f64>,
    /// Attention [TFLOP/s; default: the GPU's]
    #[arg(long, value_name = "TFLOP/s")]
    attention: Option<f64>,
    /// Convolutions of the decoder [TFLOP/s; default: the GPU's]
    #[arg(long, value_name = "TFLOP/s")]
    convolution: Option<f64>,
    /// Copies in the GPU's memory [GB/s; default: the GPU's]
    #[arg(long, value_name = "GB/s")]
    memory: Option<f64>,
}

impl Gpu {
    /// Bytes of memory.
    pub fn memory(self) -> f64 {
        match self {
            Self::H100 => 80.0 * GIGA,
            Self::H200 => 141.0 * GIGA,
        }
    }

    /// Copies, bytes/s: of the H200 measured, of the H100 as much of its data sheet's 3.35 TB/s as
    /// the H200 reaches of 4.8.
    fn copies(self) -> f64 {
        match self {
            Self::H100 => 3.0 * TERA,
            Self::H200 => 4.3 * TERA,
        }
    }

    /// Both kinds are the same processors. performance.md 2.5, "practical".
    fn rates(self, format: Format) -> Rates {
        let (gemm, attention) = match format {
            Format::Bf16 => (600.0 * TERA, 550.0 * TERA),
            Format::Fp8 => (1000.0 * TERA, 850.0 * TERA),
        };
        Rates {
            gemm,
            attention,
            convolution: CONVOLUTION,
            memory: self.copies(),
            link: 400.0 * GIGA,
            collective: COLLECTIVE,
            launch: LAUNCH,
        }
    }
}

impl Format {
    /// Bytes of a weight.
    pub fn bytes(self) -> f64 {
        match self {
            Self::Bf16 => 2.0,
            Self::Fp8 => 1.0,
        }
    }
}

impl RateArgs {
    /// A GPU's rates with these in place of some.
    pub fn over(&self, gpu: Gpu, format: Format) -> Result<Rates> {
        let preset = gpu.rates(format);
        let tera = |name, rate: Option<f64>, other| positive(name, rate, TERA, other);
        Ok(Rates {
            gemm: tera("gemm", self.gemm, preset.gemm)?,
            attention: tera("attention", self.attention, preset.attention)?,
            convolution: tera("convolution", self.convolution, preset.convolution)?,
            memory: positive("memory", self.memory, GIGA, preset.memory)?,
            link: positive("link", Some(self.link), GIGA, preset.link)?,
            ..preset
        })
    }
}

fn positive(name: &str, rate: Option<f64>, unit: f64, other: f64) -> Result<f64> {
    match rate {
        Some(rate) if rate > 0.0 && rate.is_finite() => Ok(rate * unit),
        Some(rate) => bail!("{name}: got {rate}, expected a number above 0"),
        None => Ok(other),
    }
}

impl Rates {
    /// Seconds of a forward: kernels one after the other, never faster than memory or the host.
    pub fn forward(&self, work: &Work) -> f64 {
        let products = work.linear / (self.gemm * work.efficiency);
        let kernels = products + work.attention / self.attention + work.bare / self.memory;
        kernels.max(work.bytes / self.memory).max(work.launches * self.launch)
    }

    /// Seconds in which a GPU receives `bytes` in some collectives; nothing hides it.
    pub fn exchange(&self, bytes: f64, collectives: f64) -> f64 {
        if bytes == 0.0 { 0.0 } else { bytes / self.link + collectives * self.collective }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::plan::forward::Load;
    use crate::plan::forward::tests::{native, near};

    /// performance.md 2.5, "peak": every FLOP at 790 TFLOP/s, nothing else counts.
    pub fn peak() -> Rates {
        let flop = 790.0 * TERA;
        let rates = Gpu::H200.rates(Format::Bf16);
        let memory = f64::INFINITY;
        Rates { gemm: flop, attention: flop, memory, collective: 0.0, launch: 0.0, ..rates }
    }

    /// performance.md 2.5, "practical".
    pub fn practical(gpu: Gpu, format: Format) -> Rates {
        gpu.rates(format)
    }

    /// Every FLOP at the same rate, which counts all that a program loses besides.
    pub fn uniform(flop: f64) -> Rates {
        let rates = practical(Gpu::H100, Format::Bf16);
        Rates { gemm: flop, attention: flop, memory: f64::INFINITY, ..rates }
    }

    /// Frames per second of one GPU that makes five forwards for each block of twelve frames.
    fn frames_per_second(model: &str, frames: usize, rates: &Rates) -> f64 {
        let work = native(model).forward(Load { blocks: 1, seen: frames / 3, gpus: 1 });
        12.0 / (5.0 * rates.forward(&work))
    }

    /// performance.md 2.5 at 6, 12 and 21 frames seen: 1.3B, then 14B. Its figures have two or three
    /// digits.
    #[test]
    fn one_gpu_is_as_fast_as_in_the_table() {
        let (small, large) = ("self-forcing-1.3b", "krea-realtime-14b");
        let h200 = |format| practical(Gpu::H200, format);
        for (rates, expected) in [
            (peak(), [(93.8, 12.7), (67.0, 10.2), (46.9, 7.9)]),
            (h200(Format::Bf16), [(65.9, 9.2), (47.0, 7.3), (32.8, 5.7)]),
            (h200(Format::Fp8), [(103.8, 14.8), (73.6, 11.7), (51.2, 8.9)]),
        ] {
            for (frames, (small_fps, large_fps)) in [6, 12, 21].into_iter().zip(expected) {
                near(frames_per_second(small, frames, &rates), small_fps, 0.01);
                near(frames_per_second(large, frames, &rates), large_fps, 0.01);
            }
        }
    }

    #[test]
    fn rates_are_positive_numbers() {
        let rates = RateArgs {
            link: 25.0,
            gemm: Some(1.0),
            attention: None,
            convolution: None,
            memory: None,
        };
        let over = rates.over(Gpu::H100, Format::Bf16).unwrap();
        assert_eq!((over.gemm, over.attention, over.link), (1e12, 550e12, 25e9));
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let rates = RateArgs { gemm: Some(wrong), ..rates };
            let error = rates.over(Gpu::H100, Format::Bf16).unwrap_err().to_string();
            assert!(error.starts_with("gemm: got ") && error.contains("above 0"), "{error}");
        }
    }
}
