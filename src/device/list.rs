//! Several devices by name.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use super::{DeviceSpec, UnknownDevice};

/// The device of each worker, by rank; at least one. A device that is listed twice has two workers,
/// which share the model's weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices(Vec<DeviceSpec>);

impl Devices {
    /// The first ones, at most so many, at least one.
    pub fn first_of(&self, count: usize) -> Self {
        Self(self.0.iter().copied().take(count.max(1)).collect())
    }

    /// Each device once, in the order of the list.
    pub fn distinct(&self) -> Vec<DeviceSpec> {
        let mut distinct = Vec::new();
        for device in &self.0 {
            if !distinct.contains(device) {
                distinct.push(*device);
            }
        }
        distinct
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self(vec![DeviceSpec::default()])
    }
}

impl From<DeviceSpec> for Devices {
    fn from(device: DeviceSpec) -> Self {
        Self(vec![device])
    }
}

impl Deref for Devices {
    type Target = [DeviceSpec];

    fn deref(&self) -> &[DeviceSpec] {
        &self.0
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(DeviceSpec::to_string).collect();
        f.write_str(&names.join(","))
    }
}

/// Names with commas between them; behind a CUDA device a number alone is another one:
/// `cuda:0,1` is `cuda:0,cuda:1`.
impl FromStr for Devices {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let mut devices = Vec::new();
        for name in text.split(',').map(str::trim) {
            let after_cuda = matches!(devices.last(), Some(DeviceSpec::Cuda(_)));
            devices.push(match name.parse() {
                Ok(ordinal) if after_cuda => DeviceSpec::Cuda(ordinal),
                _ => name.parse()?,
            });
        }
        Ok(Self(devices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<Devices>().unwrap().to_string()
    }

    #[test]
    fn lists_parse_and_print_back() {
        assert_eq!(shown("cpu"), "cpu");
        assert_eq!(shown("cpu, cpu"), "cpu,cpu");
        assert_eq!(shown("cuda:0,1,cuda:3,cpu"), "cuda:0,cuda:1,cuda:3,cpu");
        assert_eq!(Devices::default().to_string(), "auto");
        let distinct = "cuda:1,0,1,cpu".parse::<Devices>().unwrap().distinct();
        assert_eq!(distinct, [DeviceSpec::Cuda(1), DeviceSpec::Cuda(0), DeviceSpec::Cpu]);
    }

    #[test]
    fn what_is_no_device_is_named() {
        for (text, named) in [("", ""), ("cpu,", ""), ("cpu,1", "1"), ("cuda:0,x", "x"), (",", "")]
        {
            let error = text.parse::<Devices>().unwrap_err().to_string();
            assert_eq!(error, format!("device: got {named:?}, expected auto, cpu or cuda:N"));
        }
    }
}
