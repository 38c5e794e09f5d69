//! Attention in bf16: `attention.cu`, and `attention_90.cu` where it runs.
#![allow(unsafe_code)] // says how its arguments are laid out

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr};
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{HOPPER, capability, multiprocessors, place, place_on, run};
use crate::device::arguments::{self, PIECES};

/// Softmax attention of `(1, queries, heads, width)` over keys and values in pieces, shaped likewise; the last
/// key stands for `last_count` equal ones.
pub fn attention(
    q: &Tensor,
    keys: &[(&Tensor, &Tensor)],
    last_count: usize,
) -> Result<Option<Tensor>> {
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
        let contiguous = |(k, v): &(&Tensor, &Tensor)| Ok([k.contiguous()?, v.contiguous()?]);
        keys.iter().map(contiguous).collect::<Result<_>>()?
    };
    let is_row = q.stride()[2..] == [width, 1];
    let q = if is_row { q.clone() } else { q.contiguous()? };
    q.apply_op1_no_bwd(&Attention { keys, last_count }).map(Some)
}

/// What queries attend to.
struct Attention {
    /// Keys, values.
    keys: Vec<[Tensor; 2]>,
    last_count: usize,
}

// SAFETY: numbers and addresses, laid out as the kernel has them.
unsafe impl DeviceRepr for arguments::Attention {}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs cannot run on the cpu")
    }

    fn cuda_fwd(&self, q: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (_, queries, heads, width) = layout.shape().dims4()?;
        let (device, stream) = (q.device(), q.device().cuda_stream());
        // SAFETY: the kernel writes all of it.
        let mut out = unsafe { device.alloc::<bf16>(queries * heads * width)? };
        let tensors = self.keys.iter().flatten();
        let stored: Vec<_> = tensors.map(Tensor::storage_and_layout).collect();
        let mut arguments = arguments::Attention::new(queries, heads, width, self.last_count);
        arguments.q_row = layout.stride()[1] as i64;
        let mut in_use = Vec::new(); // until the kernel is queued
        for (index, kv) in stored.chunks_exact(2).enumerate() {
            let mut addresses = [0; 2];
            for (address, (storage, layout)) in addresses.iter_mut().zip(kv) {
                *address = place::<bf16>(storage, layout, &stream, &mut in_use)?;
            }
            arguments.push(index, kv[0].1.dims()[1], addresses);
        }
        arguments.q = place_on::<bf16>(q, layout, &stream, &mut in_use)?;
        let (address, out_in_use) = out.device_ptr_mut(&stream);
        arguments.out = address;
        if capability(device)? == HOPPER && width == arguments::Attention::WIDTH_90 {
            attend_90(device, arguments)?;
        } else {
            run(&arguments.start(width), device, &arguments)?;
        }
        drop((in_use, out_in_use));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}

/// A part of the keys at a time, where that keeps more of the GPU at work.
fn attend_90(device: &CudaDevice, mut arguments: arguments::Attention) -> Result<()> {
    let parts = arguments.parts(multiprocessors(device)?);
    if parts == 1 {
        return run(&arguments.start_90(), device, &arguments);
    }
    let rows = arguments.queries as usize * arguments.heads as usize;
    let stream = device.cuda_stream();
    let numbers = parts * rows * (arguments::Attention::WIDTH_90 + 1);
    // SAFETY: the first kernel writes all that the second one reads.
    let mut between = unsafe { device.alloc::<f32>(numbers)? };
    let (address, in_use) = between.device_ptr_mut(&stream);
    (arguments.parts, arguments.key_parts) = (address, parts as i32);
    run(&arguments.start_90(), device, &arguments)?;
    run(&arguments.start_joining(), device, &arguments)?;
    drop(in_use);
    Ok(())
}
