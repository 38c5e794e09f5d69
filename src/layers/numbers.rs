//! Numbers for tests: normal, the same each time.

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// N(0, 1) values. Regular ones will not do: where weights and inputs swing alike, terms a hundred
/// times the sum cancel, and two ways to sum differ by their rounding alone.
pub(crate) fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let normals = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(seed));
    let data: Vec<f32> = normals.take(shape.iter().product()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}
