//! Numbers for tests: the same each time.

use candle_core::{Device, Tensor};
use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;
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

/// Sizes of what is compared within a tolerance: `count` cases, or as few as `PROPTEST_CASES` says.
pub(crate) fn property(count: u32) -> ProptestConfig {
    let most = ProptestConfig::default().cases;
    ProptestConfig {
        cases: count.min(most),
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    }
}
