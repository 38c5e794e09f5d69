//! What was compared, and how well it agrees.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

use super::target::Demand;

#[derive(Debug)]
pub struct Report {
    demand: Demand,
    tensors: usize,
    folders: usize,
    /// Of what is demanded.
    worst: f32,
    /// Why it is not good, a line each.
    failures: Vec<String>,
}

impl Report {
    pub fn new(demand: Demand) -> Self {
        let worst = match demand {
            Demand::Difference(_) => 0.0,
            Demand::Cosine(_) => 1.0,
        };
        Self { demand, tensors: 0, folders: 0, worst, failures: Vec::new() }
    }

    pub fn folder(&mut self, root: &Path, folder: &Path) {
        self.folders += 1;
        let name = folder.strip_prefix(root).ok().filter(|name| !name.as_os_str().is_empty());
        println!("{}", name.unwrap_or(folder).display());
    }

    /// Compares one tensor; a difference is reported, not returned.
    pub fn compare(&mut self, name: &str, got: &Tensor, expected: &Tensor) -> Result<()> {
        self.tensors += 1;
        if got.dims() != expected.dims() {
            self.worst = self.demand.miss();
            self.failed(&format!("{name}: shape {:?}, expected {:?}", got.dims(), expected.dims()));
            return Ok(());
        }
        let agreement = self.demand.measure(&numbers(got)?, &numbers(expected)?);
        self.worst = self.demand.worse(self.worst, agreement);
        let line = format!("{}  {name}", self.demand.show(agreement));
        if self.demand.is_met(agreement) {
            println!("  ok   {line}");
        } else {
            self.failed(&line);
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
            println!("{count} failed; {} is allowed", self.demand);
        }
        println!("{}", self.sum());
    }

    pub fn sum(&self) -> String {
        let Self { tensors, folders, worst, demand, failures } = self;
        let (worst, failed) = (demand.show(*worst), failures.len());
        let worst = worst.trim_start();
        format!("parity: {tensors} tensors in {folders} folders, {failed} failed, worst {worst}")
    }

    pub fn is_good(&self) -> bool {
        self.failures.is_empty() && self.tensors > 0
    }

    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}

fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    let x = x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    Ok(x.flatten_all()?.to_vec1()?)
}

impl Demand {
    fn measure(self, got: &[f32], expected: &[f32]) -> f32 {
        match self {
            Self::Difference(_) => difference(got, expected),
            Self::Cosine(_) => cosine(got, expected),
        }
    }

    fn is_met(self, agreement: f32) -> bool {
        match self {
            Self::Difference(most) => agreement <= most,
            Self::Cosine(least) => agreement >= least,
        }
    }

    fn worse(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Difference(_) => a.max(b),
            Self::Cosine(_) => a.min(b),
        }
    }

    /// As bad as can be.
    fn miss(self) -> f32 {
        match self {
            Self::Difference(_) => f32::INFINITY,
            Self::Cosine(_) => -1.0,
        }
    }

    fn show(self, agreement: f32) -> String {
        match self {
            Self::Difference(_) => format!("{agreement:8.1e}"),
            Self::Cosine(_) => format!("cosine {agreement:.6}"),
        }
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Difference(most) => write!(f, "at most {most:.0e}"),
            Self::Cosine(least) => write!(f, "a cosine of at least {least}"),
        }
    }
}

/// The largest, relative to the largest number expected where that exceeds one.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(1f32, |largest, x| largest.max(x.abs()));
    let differences = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // A NaN is a failure, which a plain maximum would hide.
    let differences = differences.map(|x| if x.is_nan() { f32::INFINITY } else { x });
    differences.fold(0.0, f32::max) / largest
}

/// Between the two as vectors; -1 where a number is none.
fn cosine(got: &[f32], expected: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let cosine = dot(got, expected) / (dot(got, got) * dot(expected, expected)).sqrt();
    if cosine.is_finite() { cosine as f32 } else { -1.0 }
}
