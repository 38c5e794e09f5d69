//! Whether what is loaded fits the memory of the devices that it goes to.

use candle_core::{DType, Device, Error as Cause};

use super::error::{Error, Result};
use crate::device::{self, DeviceSpec};

/// What goes to one device.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub(super) device: Device,
    pub(super) numbers: usize,
    pub(super) dtype: DType,
}

/// Refuses what would run out of memory later; only GPUs tell how much they have.
pub(super) fn check(shares: &[Share]) -> Result<()> {
    for (i, share) in shares.iter().enumerate() {
        // Streams of one device share its memory.
        let place = |share: &Share| DeviceSpec::from(&share.device);
        let is_here = |other: &&Share| place(other) == place(share);
        let is_first = !shares[..i].iter().any(|other| is_here(&other));
        let memory = device::memory(&share.device).map_err(|cause| failed(&share.device, cause))?;
        if let (true, Some((free, total))) = (is_first, memory) {
            let needed = shares.iter().filter(is_here).map(Share::bytes).sum();
            fits(needed, free, total).map_err(|cause| failed(&share.device, cause))?;
        }
    }
    Ok(())
}

impl Share {
    fn bytes(&self) -> u64 {
        self.numbers as u64 * self.dtype.size_in_bytes() as u64
    }
}

fn fits(needed: u64, free: u64, total: u64) -> Result<(), Cause> {
    if needed <= free {
        return Ok(());
    }
    let [needed, free, total] =
        [needed, free, total].map(|bytes| format!("{:.1}", bytes as f64 / 1e9));
    Err(Cause::Msg(format!(
        "out of memory: weights and history take {needed} GB, of {total} GB {free} are free; a smaller \
         size, window or cascade width, or a 16-bit dtype, needs less, and the decoder can be tiny or on \
         another device"
    )))
}

fn failed(device: &Device, source: Cause) -> Error {
    Error::Device { device: DeviceSpec::from(device).to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_what_would_help() {
        assert!(fits(10, 10, 20).is_ok());
        let error = fits(28_600_000_000, 20_000_000_000, 24_000_000_000).unwrap_err().to_string();
        assert!(error.contains("take 28.6 GB, of 24.0 GB 20.0 are free"), "{error}");
        assert!(error.contains("decoder can be tiny"), "{error}");
    }

    #[test]
    fn numbers_take_what_their_kind_takes() {
        let share = |dtype| Share { device: Device::Cpu, numbers: 3, dtype };
        assert_eq!([DType::F32, DType::BF16].map(|dtype| share(dtype).bytes()), [12, 6]);
        assert!(check(&[share(DType::F32)]).is_ok()); // the host pages
    }
}
