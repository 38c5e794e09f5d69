//! Kernels of ours for NVIDIA GPUs: the `.cu` files beside this one, compiled when the crate is built. Each takes
//! what it knows, and answers nothing to the rest: that is left to candle's operators.

mod attention;

pub use self::attention::attention;
