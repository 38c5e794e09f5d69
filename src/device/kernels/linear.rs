//! Linears in bf16 by cuBLASLt, which does what follows a product in the same pass.
#![allow(unsafe_code)] // calls it

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys::{
    self, cublasComputeType_t as ComputeType, cublasLtEpilogue_t as Epilogue,
    cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasStatus_t as Status,
    cudaDataType as DataType,
};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Error, Layout, Result, Shape, Tensor, bail,
};
use half::bf16;

use super::{place, place_on};
use crate::device::arguments::{CHUNK, Then};

/// Memory that products may use, as NVIDIA recommends it for its newer GPUs.
const WORKSPACE: usize = 32 << 20;
/// `CUBLAS_OP_T`.
const TRANSPOSED: u32 = 1;
/// What cuBLASLt takes for granted of where matrices begin, in numbers.
const ALIGNED: usize = 128;

/// `xs Wᵀ + bias`, and what comes then, where this is known.
pub fn linear(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    then: Then<'_>,
) -> Result<Option<Tensor>> {
    let Device::Cuda(device) = xs.device() else { return Ok(None) };
    let (outputs, inputs) = weight.dims2()?;
    let residual = match then {
        Then::Add(residual) => Some(residual.contiguous()?),
        Then::Nothing | Then::Gelu => None,
    };
    let (xs, weight, bias) = (xs.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let fit = xs.dims().last() == Some(&inputs)
        && bias.dims() == [outputs]
        && residual.iter().all(|residual| residual.dims() == with_last(&xs, outputs));
    let are_known = [&xs, &weight, &bias]
        .into_iter()
        .chain(&residual)
        .all(|x| x.dtype() == DType::BF16 && x.layout().start_offset().is_multiple_of(ALIGNED));
    if !(fit && are_known && outputs.is_multiple_of(CHUNK) && inputs.is_multiple_of(CHUNK)) {
        return Ok(None);
    }
    let epilogue = match then {
        Then::Gelu => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
        Then::Nothing | Then::Add(_) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
    };
    let rows = xs.elem_count() / inputs;
    let sizes = Sizes { outputs, rows, inputs, epilogue: epilogue as u32 };
    let blas = opened(&device.cuda_stream())?;
    if !lock(&blas).knows(sizes)? {
        return Ok(None);
    }
    xs.apply_op1_no_bwd(&Product { weight, bias, residual, sizes, blas }).map(Some)
}

fn with_last(xs: &Tensor, last: usize) -> Vec<usize> {
    let before = &xs.dims()[..xs.rank() - 1];
    [before, &[last]].concat()
}

struct Product {
    weight: Tensor,
    bias: Tensor,
    residual: Option<Tensor>,
    sizes: Sizes,
    blas: Arc<Mutex<Blas>>,
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a product for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, stream) = (xs.device(), xs.device().cuda_stream());
        let Sizes { outputs, rows, .. } = self.sizes;
        // SAFETY: the product writes all of it.
        let mut out = unsafe { device.alloc::<bf16>(rows * outputs)? };
        let stored = [Some(&self.weight), Some(&self.bias), self.residual.as_ref()];
        let stored = stored.map(|x| x.map(Tensor::storage_and_layout));
        let mut in_use = Vec::new(); // until the product is queued
        let mut addresses = [0; 3];
        for (address, stored) in addresses.iter_mut().zip(&stored) {
            if let Some((storage, layout)) = stored {
                *address = place::<bf16>(storage, layout, &stream, &mut in_use)?;
            }
        }
        let xs = place_on::<bf16>(xs, layout, &stream, &mut in_use)?;
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        let [weight, bias, residual] = addresses;
        let operands = Operands { weight, bias, residual, xs, out: address };
        lock(&self.blas).run(&stream, self.sizes, &operands)?;
        drop((in_use, out_in_use));
        let mut shape = layout.dims().to_vec();
        shape.pop();
        shape.push(outputs);
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from(shape)))
    }
}

/// What a product is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sizes {
    outputs: usize,
    rows: usize,
    inputs: usize,
    epilogue: u32,
}

/// Addresses; 0 where there is no residual.
struct Operands {
    weight: u64,
    bias: u64,
    residual: u64,
    xs: u64,
    out: u64,
}

/// Those of all streams: each has memory to work in of its own, for as long as the process lives.
fn opened(stream: &Arc<CudaStream>) -> Result<Arc<Mutex<Blas>>> {
    static OPENED: Mutex<BTreeMap<usize, Arc<Mutex<Blas>>>> = Mutex::new(BTreeMap::new());
    let key = stream.cu_stream() as usize;
    if let Some(blas) = lock(&OPENED).get(&key) {
        return Ok(blas.clone());
    }
    let blas = Arc::new(Mutex::new(Blas::new(stream)?));
    // Whoever was first, if two have opened one at once.
    Ok(lock(&OPENED).entry(key).or_insert(blas).clone())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The library, for a stream.
struct Blas {
    handle: Handle,
    workspace: CudaSlice<u8>,
    /// Nothing for what it does not know.
    plans: BTreeMap<Sizes, Option<Plan>>,
    /// Kept, so that no other one has its address.
    stream: Arc<CudaStream>,
}

// SAFETY: what its addresses stand for belongs to no thread.
unsafe impl Send for Blas {}

impl Blas {
    fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        stream.context().bind_to_thread().w()?;
        let handle = Handle(result::create_handle().map_err(Error::wrap)?);
        // SAFETY: nobody reads what is not written.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE) }.w()?;
        Ok(Self { handle, workspace, plans: BTreeMap::new(), stream: stream.clone() })
    }

    fn knows(&mut self, sizes: Sizes) -> Result<bool> {
        if !self.plans.contains_key(&sizes) {
            self.stream.context().bind_to_thread().w()?;
            let plan = Plan::new(&self.handle, sizes)?;
            self.plans.insert(sizes, plan);
        }
        Ok(self.plans.get(&sizes).is_some_and(Option::is_some))
    }

    fn run(&self, stream: &CudaStream, sizes: Sizes, operands: &Operands) -> Result<()> {
        let Some(Some(plan)) = self.plans.get(&sizes) else {
            bail!("cuBLASLt knows no product of {sizes:?}")
        };
        stream.context().bind_to_thread().w()?;
        let (workspace, _in_use) = self.workspace.device_ptr(stream);
        plan.description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &operands.bias)?;
        let (one, of_residual) = (1f32, if operands.residual == 0 { 0f32 } else { 1f32 });
        let added = if operands.residual == 0 { operands.out } else { operands.residual };
        // SAFETY: matrices are as large as the plan has them, and in use by the stream.
        unsafe {
            result::matmul(
                self.handle.0,
                plan.description.0,
                (&raw const one).cast(),
                (&raw const of_residual).cast(),
                operands.weight as *const _,
                plan.weight.0,
                operands.xs as *const _,
                plan.xs.0,
                added as *const _,
                plan.out.0,
                operands.out as *mut _,
                plan.out.0,
                &raw const plan.algorithm,
                workspace as *mut _,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(Error::wrap)
    }
}

/// How a product of some sizes is computed: matrices are by columns, so that what are rows here are columns there.
struct Plan {
    description: Description,
    weight: Matrix,
    xs: Matrix,
    out: Matrix,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    /// Nothing where the library has no algorithm.
    fn new(handle: &Handle, sizes: Sizes) -> Result<Option<Self>> {
        let Sizes { outputs, rows, inputs, epilogue } = sizes;
        let description = Description::new()?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        let weight = Matrix::new(inputs, outputs)?;
        let (xs, out) = (Matrix::new(inputs, rows)?, Matrix::new(outputs, rows)?);
        let preference = Preference::new()?;
        // SAFETY: all of them were made just now.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                handle.0,
                description.0,
                weight.0,
                xs.0,
                out.0,
                out.0,
                preference.0,
            )
        };
        match found {
            Ok(found) => Ok(Some(Self { description, weight, xs, out, algorithm: found.algo })),
            Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED)) => Ok(None),
            Err(error) => Err(Error::wrap(error)),
        }
    }
}

struct Handle(sys::cublasLtHandle_t);

struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self> {
        let made =
            result::create_matmul_desc(ComputeType::CUBLAS_COMPUTE_32F, DataType::CUDA_R_32F);
        made.map(Self).map_err(Error::wrap)
    }

    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<()> {
        // SAFETY: the description is one, and the value is read before this returns.
        unsafe {
            let value = std::ptr::from_ref(value).cast();
            result::set_matmul_desc_attribute(self.0, attribute, value, size_of::<T>())
        }
        .map_err(Error::wrap)
    }
}

/// One of bf16 without gaps.
struct Matrix(sys::cublasLtMatrixLayout_t);

impl Matrix {
    fn new(rows: usize, columns: usize) -> Result<Self> {
        let (height, width) = (rows as u64, columns as u64);
        let made = result::create_matrix_layout(DataType::CUDA_R_16BF, height, width, rows as i64);
        made.map(Self).map_err(Error::wrap)
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        let made = Self(result::create_matmul_pref().map_err(Error::wrap)?);
        let attribute = PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the preference is one, and the value is read before this returns.
        unsafe {
            let value = std::ptr::from_ref(&WORKSPACE).cast();
            result::set_matmul_pref_attribute(made.0, attribute, value, size_of::<usize>())
        }
        .map_err(Error::wrap)?;
        Ok(made)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more, as those below; there is nobody to tell of a failure.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
