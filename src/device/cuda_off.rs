//! No GPUs: a build without the feature `cuda`.

use candle_core::{Device, Result, Tensor};

use super::Sent;

/// What candle says of a build without CUDA.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    Device::new_cuda(ordinal)
}

/// The same device, where what is queued does not wait for what others have queued.
pub fn beside(device: &Device) -> Result<Device> {
    Ok(device.clone())
}

/// From here on, what is freed is kept for what is allocated next; there is nothing to do on a CPU.
pub fn keep_memory(_: &Device) -> Result<()> {
    Ok(())
}

/// The same numbers on another device, of which a CPU is the only one.
pub fn moved(x: &Tensor, device: &Device) -> Result<Tensor> {
    x.to_device(device)
}

/// The same numbers, which are there at once.
pub(crate) fn sent(x: &Tensor, device: &Device) -> Result<Sent> {
    Ok(Sent { there: moved(x, device)?, kept: None })
}

/// Numbers that are on their way, which none are.
#[derive(Debug)]
pub(crate) enum Kept {}

impl Kept {
    /// There is nothing to let go of.
    pub(crate) fn release(self) -> Result<()> {
        match self {}
    }
}

/// Whether there is any: none that this build knows of.
pub(super) fn is_available() -> bool {
    false
}

/// Bytes that are free and that there are; nothing for a device that is no GPU.
pub fn memory(_: &Device) -> Result<Option<(u64, u64)>> {
    Ok(None)
}

/// Most bytes in use at once since this was last asked for; nothing where nobody counts them.
pub fn peak_memory(_: &Device) -> Result<Option<u64>> {
    Ok(None)
}

/// Why the device cannot compute in bf16, if it cannot.
pub fn lacks_bf16(_: &Device) -> Result<Option<String>> {
    Ok(None)
}
