//! Building blocks that belong to no family and know no thread, path or property.

pub mod activation;
pub mod attention;
pub mod conv;
mod dots;
pub mod linear;
mod matmul;
pub mod norm;
#[cfg(test)]
pub(crate) mod numbers;
mod panels;
mod real;
pub mod rope;
mod rows;
pub mod simd;
