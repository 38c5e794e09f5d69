//! Bytes as a `.safetensors` or `.pt` file: opened, listed, and every tensor read.

#![no_main]

use candle_core::{DType, Device};
use gstblockcascade::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzz", bytes.to_vec()) else { return };
    let names: Vec<String> = checkpoint.tensors().map(|tensor| tensor.name.to_owned()).collect();
    let vb = checkpoint.var_builder(DType::F32, &Device::Cpu);
    for name in names {
        let _ = vb.get_unchecked(&name);
    }
});
