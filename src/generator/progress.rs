//! How far loading is.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

/// Percent between two reports.
const STRIDE: u64 = 5;

/// Counts the numbers that are loaded, and reports whole percents of all.
#[derive(Clone)]
pub(super) struct Progress(Arc<State>);

struct State {
    total: AtomicU64,
    done: AtomicU64,
    /// In strides.
    reported: AtomicU64,
    report: Box<dyn Fn(u32) + Send + Sync>,
}

impl Progress {
    pub(super) fn new(report: impl Fn(u32) + Send + Sync + 'static) -> Self {
        let zero = AtomicU64::default;
        let (total, done, reported) = (zero(), zero(), zero());
        Self(Arc::new(State { total, done, reported, report: Box::new(report) }))
    }

    /// So many numbers are still to come.
    pub(super) fn add_total(&self, numbers: usize) {
        self.0.total.fetch_add(numbers as u64, Ordering::SeqCst);
    }

    fn advance(&self, numbers: usize) {
        let State { total, done, reported, report } = &*self.0;
        let done = done.fetch_add(numbers as u64, Ordering::SeqCst) + numbers as u64;
        let strides = (100 / STRIDE * done / total.load(Ordering::SeqCst).max(1)).min(100 / STRIDE);
        if strides > reported.load(Ordering::SeqCst) {
            reported.store(strides, Ordering::SeqCst);
            report((strides * STRIDE) as u32);
        }
    }

    /// Tensors of a backend, counted while they are read.
    pub(super) fn count(
        &self,
        tensors: impl SimpleBackend + 'static,
        dtype: DType,
        device: &Device,
    ) -> VarBuilder<'static> {
        let counted = Counted { tensors, progress: self.clone() };
        VarBuilder::from_backend(Box::new(counted), dtype, device.clone())
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress {{ done: {:?} of {:?} }}", self.0.done, self.0.total)
    }
}

struct Counted<B> {
    tensors: B,
    progress: Progress,
}

impl<B: SimpleBackend> SimpleBackend for Counted<B> {
    fn get(&self, s: Shape, name: &str, h: Init, dtype: DType, dev: &Device) -> Result<Tensor> {
        let tensor = self.tensors.get(s, name, h, dtype, dev)?;
        self.progress.advance(tensor.elem_count());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> Result<Tensor> {
        let tensor = self.tensors.get_unchecked(name, dtype, dev)?;
        self.progress.advance(tensor.elem_count());
        Ok(tensor)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_tensor(name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn percents_rise_to_a_hundred_in_strides() {
        let (report, reports) = mpsc::channel();
        let progress = Progress::new(move |percent| report.send(percent).unwrap());
        progress.add_total(150);
        progress.add_total(50);
        (0..200).for_each(|_| progress.advance(1));
        let expected: Vec<_> = (1..=20).map(|n| 5 * n).collect();
        assert_eq!(reports.try_iter().collect::<Vec<_>>(), expected);
    }
}
