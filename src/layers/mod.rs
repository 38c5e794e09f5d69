//! Building blocks that belong to no family and know no thread, path or property.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod linear;
mod matmul;
pub mod norm;
#[cfg(test)]
pub(crate) mod numbers;
pub mod rope;
pub mod simd;
