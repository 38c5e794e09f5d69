//! What was compared, and how well it agrees.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// Largest |difference| allowed, relative to `max(1, max |expected|)`.
const TOLERANCE: f32 = 2e-4;

#[derive(Debug, Default)]
pub struct Report {
    tensors: usize,
    folders: usize,
    worst: f32,
    /// Why it is not good, a line each.
    failures: Vec<String>,
}

impl Report {
    pub fn folder(&mut self, root: &Path, folder: &Path) {
        self.folders += 1;
        let name = folder.strip_prefix(root).ok().filter(|name| !name.as_os_str().is_empty());
        println!("{}", name.unwrap_or(folder).display());
    }

    /// Compares one tensor; a difference is reported, not returned.
    pub fn compare(&mut self, name: &str, got: &Tensor, expected: &Tensor) -> Result<()> {
        self.tensors += 1;
        if got.dims() != expected.dims() {
            self.worst = f32::INFINITY;
            self.failed(&format!("{name}: shape {:?}, expected {:?}", got.dims(), expected.dims()));
            return Ok(());
        }
        let difference = difference(got, expected)?;
        self.worst = self.worst.max(difference);
        if difference <= TOLERANCE {
            println!("  ok   {difference:8.1e}  {name}");
        } else {
            self.failed(&format!("{difference:8.1e}  {name}"));
        }
        Ok(())
    }

    pub fn failed(&mut self, reason: &str) {
        println!("  FAIL {reason}");
        self.failures.push(reason.to_owned());
    }

    /// The last lines of the report, the sum of it at the very end.
    pub fn close(&self) {
        let count = self.failures.len();
        if count > 0 {
            println!("{count} failed; at most {TOLERANCE:.0e} is allowed");
        }
        println!("{}", self.sum());
    }

    pub fn sum(&self) -> String {
        let Self { tensors, folders, worst, .. } = self;
        format!("parity: {tensors} tensors in {folders} folders, worst {worst:.1e}")
    }

    pub fn is_good(&self) -> bool {
        self.failures.is_empty() && self.tensors > 0
    }

    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}

/// The largest, relative to the largest number expected where that exceeds one.
fn difference(got: &Tensor, expected: &Tensor) -> Result<f32> {
    let expected = expected.to_dtype(DType::F32)?;
    let got = got.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let largest = expected.abs()?.max_all()?.to_scalar::<f32>()?.max(1.0);
    let difference = (got - expected)?.abs()?.flatten_all()?.to_vec1::<f32>()?;
    // A NaN is a failure, which a plain maximum would hide.
    let difference = difference.into_iter().map(|x| if x.is_nan() { f32::INFINITY } else { x });
    Ok(difference.fold(0.0, f32::max) / largest)
}
