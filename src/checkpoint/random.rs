//! Random weights for any network: to try devices, sizes and speed without a checkpoint.

use candle_core::{DType, Device, Result, Shape, Tensor, WithDType, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Normal numbers drawn once and tiled over all tensors; a prime, so that the rows of no matrix
/// fall on the same stretch twice in a row.
const TABLE: usize = 1_048_573;
/// Elements that one thread fills at a time.
const CHUNK: usize = 1 << 16;
/// Deviation of biases and modulations: present in every sum, dominant in none.
const SMALL: f32 = 0.02;

/// Weights that depend on nothing but `seed` and the name of the tensor. Matrices and kernels keep
/// the variance of what passes through them (`1 / fan_in`), norms scale by one.
pub fn random(seed: u64, dtype: DType, device: &Device) -> VarBuilder<'static> {
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let table = StandardNormal.sample_iter(rng).take(TABLE).collect();
    VarBuilder::from_backend(Box::new(Random { seed, table }), dtype, device.clone())
}

struct Random {
    seed: u64,
    table: Vec<f32>,
}

enum Fill {
    Ones,
    Normal { deviation: f32 },
}

impl SimpleBackend for Random {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> Result<Tensor> {
        let dims = shape.dims();
        let deviation = match Fill::of(name, dims) {
            Fill::Ones => return Tensor::ones(dims, dtype, dev),
            Fill::Normal { deviation } => deviation,
        };
        match dtype {
            DType::F32 => self.normal(name, dims, |x| x * deviation),
            DType::F16 => self.normal(name, dims, |x| f16::from_f32(x * deviation)),
            DType::BF16 => self.normal(name, dims, |x| bf16::from_f32(x * deviation)),
            _ => bail!("random weights are f32, f16 or bf16, got {dtype:?}"),
        }?
        .to_device(dev)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("{name} is asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

impl Fill {
    fn of(name: &str, dims: &[usize]) -> Self {
        let last = name.rsplit('.').next().unwrap_or(name);
        match (last, dims) {
            ("gamma", _) | ("weight", [_]) => Self::Ones,
            ("modulation", _) | (_, [] | [_]) => Self::Normal { deviation: SMALL },
            (_, [_, fan_in @ ..]) => {
                let fan_in = fan_in.iter().product::<usize>().max(1);
                Self::Normal { deviation: (fan_in as f32).sqrt().recip() }
            }
        }
    }
}

impl Random {
    fn normal<T: WithDType>(
        &self,
        name: &str,
        dims: &[usize],
        scale: impl Fn(f32) -> T + Sync,
    ) -> Result<Tensor> {
        let start = self.start(name);
        let mut values = vec![T::zero(); dims.iter().product()];
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
            let (before, after) = self.table.split_at((start + i * CHUNK) % TABLE);
            for (value, x) in chunk.iter_mut().zip(after.iter().chain(before)) {
                *value = scale(*x);
            }
        });
        Tensor::from_vec(values, dims, &Device::Cpu)
    }

    /// Where in the table a tensor begins.
    fn start(&self, name: &str) -> usize {
        let hash =
            Sha256::new().chain_update(self.seed.to_le_bytes()).chain_update(name).finalize();
        hash.iter().fold(0, |n, byte| (n * 256 + usize::from(*byte)) % TABLE)
    }
}
