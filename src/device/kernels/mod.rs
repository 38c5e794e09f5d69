//! Kernels of ours for NVIDIA GPUs: the `.cu` files beside this one, compiled when the crate is built; and products
//! by cuBLASLt. Each takes
//! what it knows, and answers nothing to the rest: that is left to candle's operators.
#![allow(unsafe_code)] // launches them

mod attention;
mod convolution;
mod linear;
mod rows;

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as DeviceAttribute;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute as FunctionAttribute;
use candle_core::cuda_backend::cudarc::driver::{
    CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{Layout, Result, Storage, bail};

pub use self::attention::attention;
pub use self::convolution::{ConvWeight, convolve, lay_out};
pub use self::linear::linear;
pub use self::rows::{gate, modulate, norm_rotate, norm_silu, rms_norm};

/// Threads of a block, in kernels for all GPUs and in those for warpgroups.
const THREADS: u32 = 256;
const THREADS_90: u32 = 384;
/// Compute capabilities, as major and minor version: the oldest that the kernels are for, and the one that has
/// warpgroups as `hopper.cuh` has them, which newer ones have not.
const AMPERE: (i32, i32) = (8, 0);
const HOPPER: (i32, i32) = (9, 0);

/// A function of a file of kernels, and how it is started.
struct Launch {
    /// The file's name, and what it was compiled to.
    module: (&'static str, &'static str),
    function: String,
    /// Blocks of threads.
    grid: (u32, u32, u32),
    /// Of a block.
    threads: u32,
    /// Memory that each block shares.
    shared_bytes: u32,
}

impl Launch {
    fn run<A: DeviceRepr>(self, device: &CudaDevice, arguments: &A) -> Result<()> {
        let (name, ptx) = self.module;
        let function = device.get_or_load_custom_func(&self.function, name, ptx)?;
        let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, self.shared_bytes as i32).w()?;
        let config = LaunchConfig {
            grid_dim: self.grid,
            block_dim: (self.threads, 1, 1),
            shared_mem_bytes: self.shared_bytes,
        };
        let mut builder = function.builder();
        builder.arg(arguments);
        // SAFETY: the arguments are the kernel's, and what they point to is in use by the stream.
        unsafe { builder.launch(config) }.w().map(drop)
    }
}

fn capability(device: &CudaDevice) -> Result<(i32, i32)> {
    device.cuda_stream().context().compute_capability().w()
}

/// Blocks of threads that run at once, where one takes all that there is for it.
fn multiprocessors(device: &CudaDevice) -> Result<usize> {
    let count = DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    Ok(device.cuda_stream().context().attribute(count).w()? as usize)
}

/// What is kept in use until a kernel is queued.
type InUse<'a> = Vec<SyncOnDrop<'a>>;

/// Where the numbers of a tensor begin.
fn place<'a, T: CudaDType + 'static>(
    storage: &'a Storage,
    layout: &Layout,
    stream: &'a CudaStream,
    in_use: &mut InUse<'a>,
) -> Result<u64> {
    let Storage::Cuda(storage) = storage else {
        bail!("a kernel's tensors have to be on its device")
    };
    place_on::<T>(storage, layout, stream, in_use)
}

fn place_on<'a, T: CudaDType + 'static>(
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
    in_use: &mut InUse<'a>,
) -> Result<u64> {
    let (address, guard) = storage.as_cuda_slice::<T>()?.device_ptr(stream);
    in_use.push(guard);
    Ok(address + (layout.start_offset() * size_of::<T>()) as u64)
}
