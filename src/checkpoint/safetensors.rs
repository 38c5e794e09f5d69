//! The header of a `.safetensors` file.

use safetensors::SafeTensors;

use super::stored::Stored;

/// Bytes before the header: its length.
const LENGTH: u64 = 8;

/// Bytes of memory that any file's header may take; a larger file's, as many as it has.
const MIN_BUDGET: usize = 4 << 20;

/// Names and places of all tensors; the format's own crate checks every offset against the file.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, Stored)>, String> {
    check_header(bytes)?;
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

/// Whether the header, once it is parsed, takes no more memory than the file is worth: a header may
/// describe any number of tensors without a single element.
fn check_header(bytes: &[u8]) -> Result<(), String> {
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let header = bytes.get(LENGTH as usize..).and_then(|rest| rest.get(..length));
    let cost: usize = header.unwrap_or_default().iter().map(cost).sum();
    if cost <= bytes.len().max(MIN_BUDGET) {
        return Ok(());
    }
    Err(format!("its header takes {cost} bytes of memory, more than a file of {}", bytes.len()))
}

/// What a byte of a header becomes, about: names are copied, and a tensor has three brackets.
fn cost(byte: &u8) -> usize {
    match byte {
        b'{' | b'[' => 320,
        b':' | b',' => 64,
        _ => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn a_header_is_paid_for() {
        let empty =
            |i: usize| format!(r#""t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
        let tensors = |n: usize| (0..n).map(empty).collect::<Vec<_>>().join(",");
        assert_eq!(read(&file(&format!("{{{}}}", tensors(1000)), 0)).unwrap().len(), 1000);
        for header in [
            format!("{{{}}}", tensors(20_000)),
            format!(r#"{{"t":{{"dtype":"F32","shape":[{}0],"#, "0,".repeat(100_000)),
            format!(r#"{{"__metadata__":{{{}"#, r#""":"","#.repeat(50_000)),
            format!(r#"{{"{}":"#, "x".repeat(1 << 20)),
        ] {
            let error = read(&file(&header, 0)).unwrap_err();
            assert!(error.starts_with("its header takes"), "{error}");
        }
    }
}
