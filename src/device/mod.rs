//! Devices by name.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, utils};

use crate::generator::{Error, Result};

/// What a model is computed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The first CUDA device when there is one, else the CPU.
    #[default]
    Auto,
    /// All cores of the CPU.
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
}

impl DeviceSpec {
    /// The device itself.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !utils::cuda_is_available() => Err(Error::MissingFeature("cuda")),
            Self::Cuda(ordinal) => Device::new_cuda(ordinal)
                .map_err(|source| Error::Device { device: self.to_string(), source }),
            Self::Auto if utils::cuda_is_available() => {
                Ok(Device::new_cuda(0).unwrap_or(Device::Cpu))
            }
            Self::Auto => Ok(Device::Cpu),
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
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| {
                    Error::config("device", format!("got {text:?}, expected auto, cpu or cuda:N"))
                }),
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
    fn an_unknown_name_is_answered_with_what_is_accepted() {
        let error = "gpu".parse::<DeviceSpec>().unwrap_err().to_string();
        assert_eq!(error, r#"device: got "gpu", expected auto, cpu or cuda:N"#);
    }
}
