//! Kernels of ours for NVIDIA GPUs: the `.cu` files beside this one, compiled when the crate is built; and products
//! by cuBLASLt. Each takes what it knows, and answers nothing to the rest: that is left to candle's operators.
#![allow(unsafe_code)] // launches them

mod attention;
mod convolution;
mod linear;
mod rows;

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as DeviceAttribute;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute as FunctionAttribute;
use candle_core::cuda_backend::cudarc::driver::{
    CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{Layout, Result, Storage, Tensor, bail};

use super::arguments::{CHUNK, Start};

pub use self::attention::{Begun, attention, begin};
pub use self::convolution::{ConvWeight, convolve, lay_out};
pub use self::linear::linear;
pub use self::rows::{gate, modulate, norm_rotate, norm_silu, rms_norm};

/// What each file was compiled to.
const PTX: [(&str, &str); 5] = [
    ("attention", include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"))),
    ("attention_90", include_str!(concat!(env!("OUT_DIR"), "/attention_90.ptx"))),
    ("convolution", include_str!(concat!(env!("OUT_DIR"), "/convolution.ptx"))),
    ("convolution_90", include_str!(concat!(env!("OUT_DIR"), "/convolution_90.ptx"))),
    ("rows", include_str!(concat!(env!("OUT_DIR"), "/rows.ptx"))),
];
/// Compute capabilities, as major and minor version: the oldest that the kernels are for, and the one that has
/// warpgroups as `hopper.cuh` has them, which newer ones have not.
const AMPERE: (i32, i32) = (8, 0);
const HOPPER: (i32, i32) = (9, 0);

/// Queues a kernel.
fn run<A: DeviceRepr>(start: &Start, device: &CudaDevice, arguments: &A) -> Result<()> {
    let Some((file, ptx)) = PTX.iter().find(|(file, _)| *file == start.file) else {
        bail!("there is no kernel {}", start.file)
    };
    // Two threads that miss a file at once would both load it, and one of them would go while its kernels are queued.
    static LOADING: Mutex<()> = Mutex::new(());
    let loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    let function = device.get_or_load_custom_func(&start.function, file, ptx)?;
    drop(loading);
    let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(most, start.shared_bytes as i32).w()?;
    let [x, y, z] = start.grid.map(|blocks| blocks as u32);
    let config = LaunchConfig {
        grid_dim: (x, y, z),
        block_dim: (start.threads as u32, 1, 1),
        shared_mem_bytes: start.shared_bytes as u32,
    };
    let mut builder = function.builder();
    builder.arg(arguments);
    // SAFETY: the arguments are the kernel's, and what they point to is in use by the stream.
    unsafe { builder.launch(config) }.w().map(drop)
}

fn capability(device: &CudaDevice) -> Result<(i32, i32)> {
    device.cuda_stream().context().compute_capability().w()
}

/// Blocks of threads that run at once, where one takes all that there is for it.
fn multiprocessors(device: &CudaDevice) -> Result<usize> {
    let count = DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    Ok(device.cuda_stream().context().attribute(count).w()? as usize)
}

/// Whether it begins at a multiple of what a thread reads at once.
fn is_aligned(x: &Tensor) -> bool {
    x.layout().start_offset().is_multiple_of(CHUNK)
}

/// The same numbers without gaps, from such a multiple on.
fn aligned(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    if is_aligned(&x) { Ok(x) } else { x.force_contiguous() }
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
