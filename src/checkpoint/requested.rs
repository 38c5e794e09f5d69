//! Which tensors a network asks for.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::TensorShape;

type Names = Arc<Mutex<Vec<TensorShape>>>;

/// Runs `build` on zeros that cost no memory and lists what it asked for, in order, each once.
/// A network that looks before it asks is told that every tensor is there.
pub fn requested<T>(
    build: impl FnOnce(VarBuilder<'static>) -> Result<T>,
) -> Result<Vec<TensorShape>> {
    let names = Names::default();
    let backend = Box::new(Recorder(names.clone()));
    build(VarBuilder::from_backend(backend, DType::F32, Device::Cpu))?;
    let names = std::mem::take(&mut *names.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(names)
}

struct Recorder(Names);

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> Result<Tensor> {
        let tensor = TensorShape { name: name.to_owned(), shape: shape.dims().to_vec() };
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !names.contains(&tensor) {
            names.push(tensor);
        }
        Tensor::zeros((), dtype, dev)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("{name} is asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
