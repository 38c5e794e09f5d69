//! What is computed on, in which numbers, and how well it has to agree.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use gstblockcascade::device::DeviceSpec;

#[derive(Clone, Debug)]
pub struct Target {
    pub device: Device,
    pub dtype: DType,
}

/// What a tensor is held to.
#[derive(Clone, Copy, Debug)]
pub enum Demand {
    /// Largest |difference| allowed, relative to `max(1, max |expected|)`.
    Difference(f32),
    /// Smallest cosine allowed.
    Cosine(f32),
}

impl Target {
    /// `PARITY_DEVICE` and `PARITY_DTYPE`, else f32 on the CPU.
    pub fn from_environment() -> Result<Self> {
        let read = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let device: DeviceSpec = read("PARITY_DEVICE", "cpu").parse()?;
        let dtype = match read("PARITY_DTYPE", "f32").as_str() {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            other => bail!("PARITY_DTYPE: got {other:?}, expected f32 or bf16"),
        };
        Ok(Self { device: device.open().with_context(|| device.to_string())?, dtype })
    }

    /// Convolutions in 16-bit floats are for GPUs only, as the loader has it; `of` says which of them.
    pub fn decoder_dtype(&self, of: impl Fn(DType) -> DType) -> DType {
        if self.device.is_cpu() { DType::F32 } else { of(self.dtype) }
    }

    pub fn demand(&self) -> Demand {
        match self.dtype {
            DType::F32 => Demand::Difference(1e-4),
            _ => Demand::Cosine(0.999),
        }
    }
}

impl Default for Target {
    fn default() -> Self {
        Self { device: Device::Cpu, dtype: DType::F32 }
    }
}
