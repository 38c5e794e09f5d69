//! No GPUs: a build without the feature `cuda`.

use candle_core::{Device, Result};

/// What candle says of a build without CUDA.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    Device::new_cuda(ordinal)
}

/// The same device, where what is queued does not wait for what others have queued.
pub fn beside(device: &Device) -> Result<Device> {
    Ok(device.clone())
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
