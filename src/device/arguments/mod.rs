//! What kernels for GPUs are told, laid out as their sources have it, and how they are started; the same for those that
//! stand in for them in tests. Addresses are those of a device, 0 where there is nothing.

mod attention;
mod convolution;
mod rows;

use candle_core::Tensor;

pub use self::attention::{Attention, PIECES, Piece};
pub use self::convolution::Convolution;
pub use self::rows::Rows;

/// Numbers of 16 bytes, which a thread reads at once.
pub const CHUNK: usize = 8;
/// Threads of a block, in kernels for all GPUs and in those for warpgroups.
const THREADS: usize = 256;
const THREADS_90: usize = 384;
/// Lanes of a warp.
const LANES: usize = 32;
/// Bytes of a number, and of a barrier.
const NUMBER: usize = 2;
const BARRIER: usize = 8;

/// How a kernel is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its source.
    pub file: &'static str,
    /// Its name there.
    pub function: String,
    /// Blocks of threads, along three sides.
    pub grid: [usize; 3],
    /// Of a block.
    pub threads: usize,
    /// Memory that a block shares.
    pub shared_bytes: usize,
}

/// What follows a linear in the same pass over memory.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a> {
    /// Nothing.
    Nothing,
    /// GELU, in its tanh form.
    Gelu,
    /// A residual is added.
    Add(&'a Tensor),
}
