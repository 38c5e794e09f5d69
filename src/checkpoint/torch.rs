//! The zip archive that `torch.save` writes: a pickle of dicts, and one entry for each storage.

use std::collections::HashMap;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, View};
use super::stored::Stored;

/// Where a zip archive starts.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

const PICKLE: &str = "data.pkl";

/// Bytes of headers that any archive may have: two thousand entries. Of a large one, an eighth.
const MIN_HEADERS: usize = 256 << 10;
const HEADERS_SHARE: usize = 8;

/// Names and places of the tensors of the first dict of `prefer` there is, or of all.
pub(super) fn read(bytes: &[u8], prefer: &[&str]) -> Result<Vec<(String, Stored)>, String> {
    let entries = entries(bytes)?;
    let mut roots = entries.keys().filter_map(|name| name.strip_suffix(PICKLE));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err(format!("expected a PyTorch archive with one {PICKLE}"));
    };
    if let Some(order) = entries.get(&format!("{root}byteorder"))
        && bytes[order.clone()] != *b"little"
    {
        return Err("expected an archive of little-endian numbers, got another order".into());
    }
    let pickle = entries[&format!("{root}{PICKLE}")].clone();
    let place = |(name, view): (String, View<'_>)| {
        let storage = entries.get(&format!("{root}data/{}", view.storage));
        let stored = stored(&view, storage).map_err(|reason| format!("{name}: {reason}"))?;
        Ok((name, stored))
    };
    pickle::read(&bytes[pickle], bytes.len(), prefer)?.into_iter().map(place).collect()
}

/// An archive of which only so many bytes can be read. Its reader keeps several times the bytes of
/// every header: a file that is nothing else would take more memory than its size.
struct Headers<'a> {
    bytes: Cursor<&'a [u8]>,
    left: usize,
}

impl<'a> Headers<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let left = (bytes.len() / HEADERS_SHARE).max(MIN_HEADERS);
        Self { bytes: Cursor::new(bytes), left }
    }
}

impl Read for Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        self.left = self.left.checked_sub(read).ok_or_else(|| {
            io::Error::other("its headers are larger than those of a file of this size need be")
        })?;
        Ok(read)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

/// Places of all entries by name, each inside `bytes` and readable without unpacking.
fn entries(bytes: &[u8]) -> Result<HashMap<String, Range<usize>>, String> {
    let unsound = |e: zip::result::ZipError| format!("not a sound PyTorch archive: {e}");
    let mut archive = ZipArchive::new(Headers::new(bytes)).map_err(unsound)?;
    let mut entries = HashMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(unsound)?;
        let name = entry.name().map_err(unsound)?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(format!(
                "entry {name} is compressed or encrypted; torch.save does neither"
            ));
        }
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let end = start.zip(usize::try_from(entry.compressed_size()).ok());
        match end.and_then(|(start, size)| Some(start..start.checked_add(size)?)) {
            Some(range) if range.end <= bytes.len() => entries.insert(name, range),
            _ => return Err(format!("entry {name} reaches past the end of the file")),
        };
    }
    Ok(entries)
}

/// The bytes that a view of a storage touches.
pub(super) fn stored(view: &View<'_>, storage: Option<&Range<usize>>) -> Result<Stored, String> {
    let storage = storage.ok_or_else(|| format!("storage {} is missing", view.storage))?;
    let size = (view.dtype.bitsize() / 8) as u64;
    let held = (storage.end - storage.start) as u64;
    if view.elements.checked_mul(size).is_none_or(|wanted| wanted > held) {
        return Err(format!(
            "expected a storage of {} elements of {size} bytes, got {held} bytes",
            view.elements
        ));
    }
    // `View` lies within `elements`, and `elements * size` within the file: nothing overflows.
    let span = view.span().unwrap_or(view.offset).max(view.offset);
    Ok(Stored {
        dtype: view.dtype,
        shape: view.shape.clone(),
        strides: (!in_order(&view.shape, &view.strides)).then(|| view.strides.clone()),
        region: storage.start as u64 + view.offset * size..storage.start as u64 + span * size,
    })
}

/// Whether the elements lie in row-major order without gaps; axes of one element have any stride.
fn in_order(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1;
    shape.iter().zip(strides).rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == step;
        step = step.saturating_mul(n);
        fits
    })
}
