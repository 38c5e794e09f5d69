//! Attention in bf16: `attention.cu`, and `attention_90.cu` where it runs.
#![allow(unsafe_code)] // says how its arguments are laid out

use std::ops::Deref;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, DeviceRepr};
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor, bail,
};
use half::bf16;

use super::{
    HOPPER, InUse, aligned, capability, is_aligned, multiprocessors, place, place_on, run,
};
use crate::device::arguments::{self, CHUNK, PIECES};

/// Softmax attention of `(1, queries, heads, width)` over keys and values in pieces, shaped likewise; the last
/// key stands for `last_count` equal ones.
pub fn attention(
    q: &Tensor,
    keys: &[(&Tensor, &Tensor)],
    last_count: usize,
) -> Result<Option<Tensor>> {
    let Some((q, keys)) = known(q, keys)? else { return Ok(None) };
    q.apply_op1_no_bwd(&Attention { keys, last_count }).map(Some)
}

/// Attention to some of the keys, queued on a GPU.
#[derive(Debug)]
pub struct Begun(Tensor);

/// The same to keys of which there will be others; by `attention_90.cu` only.
pub fn begin(q: &Tensor, keys: &[(&Tensor, &Tensor)]) -> Result<Option<Begun>> {
    let Some((q, keys)) = known(q, keys)? else { return Ok(None) };
    match q.device().as_cuda_device() {
        Ok(device) if is_90(device, q.dim(3)?)? => {
            q.apply_op1_no_bwd(&Beginning(keys)).map(|parts| Some(Begun(parts)))
        }
        _ => Ok(None),
    }
}

impl Begun {
    /// Attention of the same queries to all keys, of which these are the others.
    pub fn finish(self, q: &Tensor, keys: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
        let Some((q, keys)) = known(q, keys)? else {
            bail!("keys of another dtype, or on no GPU, have come for {:?}", q.dims())
        };
        q.apply_op2_no_bwd(&self.0, &Finishing(keys))
    }
}

/// Keys, values.
type Pieces = Vec<[Tensor; 2]>;

/// Queries and keys as kernels take them, if they do.
fn known(q: &Tensor, keys: &[(&Tensor, &Tensor)]) -> Result<Option<(Tensor, Pieces)>> {
    let (batch, _, _, width) = q.dims4()?;
    let mut tensors = keys.iter().flat_map(|(k, v)| [*k, *v]).chain([q]);
    let is_known = tensors.all(|x| x.device().is_cuda() && x.dtype() == DType::BF16);
    if !is_known || batch != 1 || !arguments::Attention::WIDTHS.contains(&width) {
        return Ok(None);
    }
    let keys = if keys.len() > PIECES {
        let all = |part: fn(&(&Tensor, &Tensor)) -> Tensor| {
            Tensor::cat(&keys.iter().map(part).collect::<Vec<_>>(), 1)
        };
        vec![[all(|(k, _)| (*k).clone())?, all(|(_, v)| (*v).clone())?]]
    } else {
        let both = |(k, v): &(&Tensor, &Tensor)| Ok([aligned(k)?, aligned(v)?]);
        keys.iter().map(both).collect::<Result<_>>()?
    };
    let is_row = q.stride()[2..] == [width, 1] && q.stride()[1].is_multiple_of(CHUNK);
    Ok(Some((if is_row && is_aligned(q) { q.clone() } else { aligned(q)? }, keys)))
}

fn is_90(device: &CudaDevice, width: usize) -> Result<bool> {
    Ok(capability(device)? == HOPPER && width == arguments::Attention::WIDTH_90)
}

// SAFETY: numbers and addresses, laid out as the kernel has them.
unsafe impl DeviceRepr for arguments::Attention {}

/// What queries attend to.
struct Attention {
    keys: Pieces,
    last_count: usize,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(&self, q: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, stream) = (q.device(), q.device().cuda_stream());
        let (stored, mut in_use) = (stored(&self.keys), Vec::new());
        let mut arguments = told((q, layout), &stored, self.last_count, &stream, &mut in_use)?;
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<bf16>(layout.shape().elem_count())? };
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        arguments.out = address;
        let width = layout.dims()[3];
        if !is_90(device, width)? {
            run(&arguments.start(width), device, &arguments)?;
        } else if arguments.parts(multiprocessors(device)?) == 1 {
            run(&arguments.start_90(), device, &arguments)?;
        } else {
            let _parts = in_parts(device, &mut arguments)?;
            run(&arguments.start_joining(), device, &arguments)?;
        }
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}

/// Of the first keys, to what their parts come.
struct Beginning(Pieces);

impl CustomOp1 for Beginning {
    fn name(&self) -> &'static str {
        "attention to the first keys"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(&self, q: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, stream) = (q.device(), q.device().cuda_stream());
        let (stored, mut in_use) = (stored(&self.0), Vec::new());
        let mut arguments = told((q, layout), &stored, 1, &stream, &mut in_use)?;
        let parts = in_parts(device, &mut arguments)?;
        drop(in_use);
        let count = arguments.key_parts as usize;
        let shape = Shape::from((count, parts.len() / count.max(1)));
        Ok((CudaStorage::wrap_cuda_slice(parts, device.clone()), shape))
    }
}

/// The keys behind them, of which there may be none.
struct Finishing(Pieces);

impl CustomOp2 for Finishing {
    fn name(&self) -> &'static str {
        "attention to the other keys"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        layout: &Layout,
        earlier: &CudaStorage,
        earlier_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (device, stream) = (q.device(), q.device().cuda_stream());
        let (stored, mut in_use) = (stored(&self.0), Vec::new());
        let mut arguments = told((q, layout), &stored, 1, &stream, &mut in_use)?;
        arguments.earlier = place_on::<f32>(earlier, earlier_layout, &stream, &mut in_use)?;
        arguments.earlier_parts = earlier_layout.dims()[0] as i32;
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<bf16>(layout.shape().elem_count())? };
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        arguments.out = address;
        arguments.key_parts = 0;
        let has_keys = arguments.keys > 0;
        let _parts = has_keys.then(|| in_parts(device, &mut arguments)).transpose()?;
        run(&arguments.start_joining(), device, &arguments)?;
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}

/// Their numbers, which nobody changes while these are held.
fn stored(keys: &Pieces) -> Vec<(impl Deref<Target = Storage> + '_, &Layout)> {
    keys.iter().flatten().map(Tensor::storage_and_layout).collect()
}

/// What a kernel is told of queries and keys, which are in use until it is queued.
fn told<'a>(
    (q, layout): (&'a CudaStorage, &Layout),
    keys: &'a [(impl Deref<Target = Storage>, &Layout)],
    last_count: usize,
    stream: &'a CudaStream,
    in_use: &mut InUse<'a>,
) -> Result<arguments::Attention> {
    let (_, queries, heads, width) = layout.shape().dims4()?;
    let mut arguments = arguments::Attention::new(queries, heads, width, last_count);
    arguments.q_row = layout.stride()[1] as i64;
    for (index, kv) in keys.chunks_exact(2).enumerate() {
        let mut addresses = [0; 2];
        for (address, (storage, layout)) in addresses.iter_mut().zip(kv) {
            *address = place::<bf16>(storage, layout, stream, in_use)?;
        }
        arguments.push(index, kv[0].1.dims()[1], addresses);
    }
    arguments.q = place_on::<bf16>(q, layout, stream, in_use)?;
    Ok(arguments)
}

/// A part of the keys at a time, as many at once as keep the GPU at work, and what they come to.
fn in_parts(device: &CudaDevice, arguments: &mut arguments::Attention) -> Result<CudaSlice<f32>> {
    let count = arguments.parts(multiprocessors(device)?);
    let rows = arguments.queries as usize * arguments.heads as usize;
    let stream = device.cuda_stream();
    // SAFETY: the kernel writes all that is read of it.
    let mut parts =
        unsafe { device.alloc::<f32>(count * rows * (arguments::Attention::WIDTH_90 + 1))? };
    let (address, in_use) = parts.device_ptr_mut(&stream);
    (arguments.parts, arguments.key_parts) = (address, count as i32);
    run(&arguments.start_90(), device, arguments)?;
    drop(in_use);
    Ok(parts)
}
