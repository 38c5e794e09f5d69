//! A checkpoint as the source of candle's `VarBuilder`.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;

use super::Checkpoint;

impl SimpleBackend for Checkpoint {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> Result<Tensor> {
        let got = self.tensors.get(name).map(|entry| entry.stored.shape.as_slice());
        match got {
            Some(got) if got != shape.dims() => {
                let path = self.path.display();
                bail!("{path}: {name}: expected {:?}, got {got:?}", shape.dims())
            }
            _ => self.get_unchecked(name, dtype, dev),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> Result<Tensor> {
        self.interrupt.check()?;
        self.load(name, dtype, dev)
            .map_err(|e| e.context(format!("{}: {name}", self.path.display())))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

impl Checkpoint {
    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let Some(entry) = self.tensors.get(name) else { bail!("no such tensor") };
        let Some(deltas) = self.deltas.get(name) else {
            return entry.stored.load(&entry.source, dtype, device);
        };
        // f32 until all is added: rounding once is what merging offline does.
        let mut weight = entry.stored.load(&entry.source, DType::F32, device)?;
        for delta in deltas {
            weight = (weight + delta.product(device)?)?;
        }
        weight.to_dtype(dtype)
    }
}
