//! NVIDIA GPUs.
#![allow(unsafe_code)] // calls of the driver's that cudarc has no safe form of

mod delayed;

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{DType, Device, Error, Result, Storage, Tensor};
use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, DriverError, result, sys};
use half::bf16;

use super::{Sent, Unavailable};

/// What cuBLAS and the kernels were built for: tens are minor versions.
const CUDA: c_int = 13_000;
/// Bytes that a device keeps beyond those in use: the activations of a forward, not the weights of a model.
const KEPT: u64 = 4 << 30;
/// The first architecture that computes in bf16, as major and minor version.
const BF16: (c_int, c_int) = (8, 0);

/// The same device for all who ask, with a stream of its own on which all their threads queue their work, in
/// order: candle's usual one is another for each thread.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    static OPENED: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let count = count().map_err(Error::wrap)?;
    if ordinal >= count {
        return Err(Error::wrap(Unavailable::NoSuchDevice { ordinal, count }));
    }
    let known = || OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = known().get(&ordinal) {
        return Ok(device.clone());
    }
    let device = Device::new_cuda_with_stream(ordinal)?;
    do_not_wait_for_memory(&device).map_err(Error::wrap)?;
    keep_memory(&device)?;
    let mut opened = known();
    opened.values().for_each(|other| share_memory(&device, other));
    // Whoever was first, if two have opened it at once.
    Ok(opened.entry(ordinal).or_insert(device).clone())
}

/// Lets two GPUs reach each other's memory. It is no error if one of them cannot, or if the driver refuses: copies go
/// through the host then.
fn share_memory(one: &Device, other: &Device) {
    for (owner, reader) in [(one, other), (other, one)] {
        let _ = let_reach(owner, reader);
    }
}

/// Lets a GPU reach the memory of another one, if it can.
fn let_reach(owner: &Device, reader: &Device) -> std::result::Result<(), DriverError> {
    let (Some(pool), Some(owner), Some(reader)) = (pool(owner)?, context(owner), context(reader))
    else {
        return Ok(());
    };
    let mut can: c_int = 0;
    // SAFETY: the devices are there, for they have contexts; it writes one number, to where it is told.
    unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, reader.cu_device(), owner.cu_device()) }
        .result()?;
    if can == 0 {
        return Ok(());
    }
    let access = Access {
        kind: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
        device: reader.cu_device(),
        flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    // SAFETY: the pool is a device's own, and what it is told is one entry, which is read before this returns.
    unsafe { sys::cuMemPoolSetAccess(pool, (&raw const access).cast(), 1) }.result()
}

/// Who may reach a pool's memory: `CUmemAccessDesc`, which cudarc has in another form from CUDA 13.2 on.
#[repr(C)]
struct Access {
    kind: sys::CUmemLocationType,
    device: sys::CUdevice,
    flags: sys::CUmemAccess_flags,
}

const _: () = assert!(size_of::<Access>() == size_of::<sys::CUmemAccessDesc>());

/// The same device, where what is queued does not wait for what others have queued: another stream.
pub fn beside(device: &Device) -> Result<Device> {
    match context(device) {
        Some(context) => Device::new_cuda_with_stream(context.ordinal()),
        None => Ok(device.clone()),
    }
}

/// Has a stream never wait for another one, to reuse what that one is still to free.
fn do_not_wait_for_memory(device: &Device) -> std::result::Result<(), DriverError> {
    let Some(pool) = pool(device)? else { return Ok(()) };
    let mut no: c_int = 0;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
    // SAFETY: the pool is a device's own, and this attribute of it is an int.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut no).cast()) }
}

/// From here on, what is freed is kept for what is allocated next, up to a few GiB more than is in use now; by
/// default all of it goes back whenever anybody waits. To be called when weights are loaded.
pub fn keep_memory(device: &Device) -> Result<()> {
    let Some(pool) = pool(device).map_err(Error::wrap)? else { return Ok(()) };
    let mut bytes = 0u64;
    let used = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is a device's own, and these attributes of it are numbers of 64 bits.
    unsafe {
        result::mem_pool::get_attribute(pool, used, (&raw mut bytes).cast())
            .map_err(Error::wrap)?;
        bytes = bytes.saturating_add(KEPT);
        result::mem_pool::set_attribute(pool, threshold, (&raw mut bytes).cast())
            .map_err(Error::wrap)
    }
}

/// The same numbers on another device. Where `x` was, nothing that is queued later comes before they are read
/// there: its memory may be freed at once.
pub fn moved(x: &Tensor, device: &Device) -> Result<Tensor> {
    let Sent { there, kept } = sent(x, device)?;
    kept.map_or(Ok(()), Kept::release)?;
    Ok(there)
}

/// The same numbers on their way to another device; on the device of `x` nothing waits for that.
pub(crate) fn sent(x: &Tensor, device: &Device) -> Result<Sent> {
    if x.device().same_device(device) {
        return Ok(Sent { there: x.clone(), kept: None });
    }
    let x = if is_whole(x) { x.clone() } else { x.force_contiguous()? }; // a copy takes the whole storage along
    let there = x.to_device(device)?;
    let arrived = match (x.device(), device) {
        (Device::Cuda(_), Device::Cuda(device)) => {
            Some(device.cuda_stream().record_event(None).map_err(Error::wrap)?)
        }
        _ => None,
    };
    Ok(Sent { there, kept: arrived.map(|arrived| Kept { x, arrived }) })
}

/// Numbers that are on their way to another device.
#[derive(Debug)]
pub(crate) struct Kept {
    x: Tensor,
    arrived: CudaEvent,
}

impl Kept {
    /// Lets go of them: whatever is queued later where they are waits until they have arrived. An error of the driver's
    /// where it cannot wait.
    pub(crate) fn release(self) -> Result<()> {
        let Device::Cuda(device) = self.x.device() else { return Ok(()) };
        device.cuda_stream().wait(&self.arrived).map_err(Error::wrap)
    }
}

/// Whether a tensor in bf16 or f32 is all that its storage holds.
fn is_whole(x: &Tensor) -> bool {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return false };
    let len = match storage.dtype() {
        DType::BF16 => storage.as_cuda_slice::<bf16>().map(CudaSlice::len),
        DType::F32 => storage.as_cuda_slice::<f32>().map(CudaSlice::len),
        _ => return false,
    };
    layout.is_contiguous() && len.is_ok_and(|len| len == layout.shape().elem_count())
}

/// Where a device's memory comes from; not all of them have one.
fn pool(device: &Device) -> std::result::Result<Option<sys::CUmemoryPool>, DriverError> {
    let context = context(device).filter(|context| context.has_async_alloc());
    // SAFETY: the device is there, for it has a context.
    let pool = |context: Arc<CudaContext>| unsafe {
        result::device::get_default_mem_pool(context.cu_device())
    };
    context.map(pool).transpose()
}

/// Whether there is any.
pub(super) fn is_available() -> bool {
    count().is_ok_and(|count| count > 0)
}

/// How many devices there are, once libraries and driver are known to do.
fn count() -> std::result::Result<usize, Unavailable> {
    delayed::load()?;
    result::init()?;
    let mut version = 0;
    // SAFETY: it writes one number, to where it is told.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    if version < CUDA {
        return Err(Unavailable::OldDriver { version: release(version), needed: release(CUDA) });
    }
    Ok(usize::try_from(result::device::get_count()?).unwrap_or(0))
}

fn release(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Bytes that are free and that there are; nothing for a device that is no GPU.
pub fn memory(device: &Device) -> Result<Option<(u64, u64)>> {
    let Some(context) = context(device) else { return Ok(None) };
    device.synchronize()?;
    if let Some(pool) = pool(device).map_err(Error::wrap)? {
        // SAFETY: the pool is a device's own; what it keeps and nobody uses goes back.
        unsafe { result::mem_pool::trim_to(pool, 0) }.map_err(Error::wrap)?;
    }
    let (free, total) = context.mem_get_info().map_err(Error::wrap)?;
    Ok(Some((free as u64, total as u64)))
}

/// Most bytes in use at once since this was last asked for; nothing where nobody counts them.
pub fn peak_memory(device: &Device) -> Result<Option<u64>> {
    let Some(pool) = pool(device).map_err(Error::wrap)? else { return Ok(None) };
    device.synchronize()?;
    let (mut peak, mut none) = (0u64, 0u64);
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the pool is a device's own, and this attribute of it is a number of 64 bits; 0 starts it anew.
    unsafe {
        result::mem_pool::get_attribute(pool, attribute, (&raw mut peak).cast())
            .map_err(Error::wrap)?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut none).cast())
            .map_err(Error::wrap)?;
    }
    Ok(Some(peak))
}

/// Why the device cannot compute in bf16, if it cannot.
pub fn lacks_bf16(device: &Device) -> Result<Option<String>> {
    let Some(context) = context(device) else { return Ok(None) };
    let (major, minor) = context.compute_capability().map_err(Error::wrap)?;
    let name = context.name().map_err(Error::wrap)?;
    let is_older = (major, minor) < BF16;
    Ok(is_older.then(|| format!("compute capability of {name} is {major}.{minor}")))
}

fn context(device: &Device) -> Option<Arc<CudaContext>> {
    let Device::Cuda(device) = device else { return None };
    Some(device.cuda_stream().context().clone())
}

impl From<DriverError> for Unavailable {
    fn from(error: DriverError) -> Self {
        Self::Driver(error.to_string())
    }
}
