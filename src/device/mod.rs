//! Devices by name.

pub mod arguments;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda_off.rs"]
mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod kernels;
#[cfg(not(feature = "cuda"))]
#[path = "kernels_off.rs"]
pub(crate) mod kernels;
mod list;

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, DeviceLocation, Result, Tensor, utils};

pub(crate) use self::cuda::{Kept, sent};
pub use self::cuda::{beside, keep_memory, lacks_bf16, memory, moved, peak_memory};
pub use self::list::Devices;

/// What a model is computed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The first CUDA device when there is one, else the CPU.
    #[default]
    Auto,
    /// The cores of the CPU; workers that are on it share them.
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
}

impl DeviceSpec {
    /// The device itself.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) => cuda::open(ordinal),
            Self::Auto if cuda::is_available() => cuda::open(0),
            Self::Auto => Ok(Device::Cpu),
        }
    }

    /// The cargo feature that this build lacks for it.
    pub fn missing_feature(self) -> Option<&'static str> {
        (matches!(self, Self::Cuda(_)) && !utils::cuda_is_available()).then_some("cuda")
    }
}

/// Numbers on their way from one device to another.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Where they go.
    pub(crate) there: Tensor,
    /// Where they come from, until they have arrived.
    pub(crate) kept: Option<Kept>,
}

/// Why there is no GPU to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The driver, or one of CUDA's libraries.
    #[error(
        "{file} cannot be used: {reason}; expected NVIDIA's driver, and cuBLAS and cuRAND of CUDA 13 where \
         the system looks for libraries or below CUDA_HOME"
    )]
    NoLibrary {
        /// Its name.
        file: String,
        /// What the system says.
        reason: String,
    },
    /// The driver does not know what the libraries ask for.
    #[error("the driver is too old: it supports CUDA {version}, expected {needed} or later")]
    OldDriver {
        /// Newest CUDA that it supports.
        version: String,
        /// What this program was built with.
        needed: String,
    },
    /// No device has the number.
    #[error("no such device: got number {ordinal}, there are {count}")]
    NoSuchDevice {
        /// As it was asked for.
        ordinal: usize,
        /// Devices that the driver has, numbered from 0.
        count: usize,
    },
    /// The driver refuses.
    #[error("the driver failed: {0}")]
    Driver(String),
}

/// A name that is no device's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device: got {0:?}, expected auto, cpu or cuda:N")]
pub struct UnknownDevice(String);

impl From<&Device> for DeviceSpec {
    fn from(device: &Device) -> Self {
        match device.location() {
            DeviceLocation::Cuda { gpu_id } => Self::Cuda(gpu_id),
            _ => Self::Cpu,
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> std::result::Result<Self, UnknownDevice> {
        let cuda = || text.strip_prefix("cuda:")?.parse().ok();
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => cuda().map(Self::Cuda).ok_or_else(|| UnknownDevice(text.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_parse_and_print_back(ordinal in 0usize..1000) {
            for spec in [DeviceSpec::Auto, DeviceSpec::Cpu, DeviceSpec::Cuda(ordinal)] {
                prop_assert_eq!(spec.to_string().parse::<DeviceSpec>().unwrap(), spec);
            }
        }

        #[test]
        fn other_names_are_refused(text in "\\PC*") {
            if let Ok(spec) = text.parse::<DeviceSpec>() {
                prop_assert!(matches!(spec, DeviceSpec::Cuda(_)) || spec.to_string() == text);
            }
        }
    }

    #[test]
    fn what_this_build_cannot_do_is_known_without_trying() {
        assert_eq!(DeviceSpec::Auto.missing_feature(), None);
        assert_eq!(DeviceSpec::Cuda(0).missing_feature().is_none(), utils::cuda_is_available());
        let device = DeviceSpec::Cpu.open().unwrap();
        assert_eq!(DeviceSpec::from(&device), DeviceSpec::Cpu);
        assert!(DeviceSpec::Auto.open().is_ok());
    }

    #[test]
    fn an_unknown_name_is_answered_with_what_is_accepted() {
        let error = "gpu".parse::<DeviceSpec>().unwrap_err().to_string();
        assert_eq!(error, r#"device: got "gpu", expected auto, cpu or cuda:N"#);
    }
}
