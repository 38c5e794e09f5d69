//! The header of a `.safetensors` file.

use safetensors::SafeTensors;

use super::stored::Stored;

/// Bytes before the header: its length.
const LENGTH: u64 = 8;

/// Names and places of all tensors; the format's own crate checks every offset against the file.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, Stored)>, String> {
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| format!("not a sound safetensors file: {e}"))?;
    let data = LENGTH + header as u64;
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let stored = Stored {
            dtype: info.dtype,
            shape: info.shape.clone(),
            strides: None,
            region: data + start as u64..data + end as u64,
        };
        (name, stored)
    });
    Ok(tensors.collect())
}
