//! Where a checkpoint's bytes are: a file, mapped piece by piece, or memory.

use std::borrow::Cow;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapOptions};

use super::error::{Error, Result};

/// One open file, or bytes that stand for one.
#[derive(Debug)]
pub(super) struct Source {
    /// The file's path, or a name for bytes in memory: what messages show.
    path: PathBuf,
    data: Data,
}

#[derive(Debug)]
enum Data {
    File(File),
    Memory(Cow<'static, [u8]>),
}

/// A readable piece of a source. A mapped piece leaves resident memory when it is dropped.
#[derive(Debug)]
pub(super) enum Region<'a> {
    Mapped(Mmap),
    Borrowed(&'a [u8]),
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::open(path, e))?;
        Ok(Self { path: path.into(), data: Data::File(file) })
    }

    pub(super) fn memory(name: &str, bytes: Cow<'static, [u8]>) -> Self {
        Self { path: name.into(), data: Data::Memory(bytes) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> Result<u64> {
        match &self.data {
            Data::Memory(bytes) => Ok(bytes.len() as u64),
            Data::File(file) => {
                file.metadata().map(|m| m.len()).map_err(|e| Error::open(&self.path, e))
            }
        }
    }

    /// Everything, for the readers of headers: untouched pages of a mapped file cost nothing.
    pub(super) fn all(&self) -> Result<Region<'_>> {
        self.region(0..self.len()?)
    }

    /// A piece; one that reaches past the end of the file is an error.
    pub(super) fn region(&self, range: Range<u64>) -> Result<Region<'_>> {
        // Asked anew each time, so that a file cut short since it was opened is noticed here.
        let len = self.len()?;
        if range.start > range.end || range.end > len {
            let reason = format!("bytes {range:?} asked for, the file has {len}");
            return Err(Error::format(&self.path, reason));
        }
        let size = usize::try_from(range.end - range.start)
            .map_err(|_| Error::format(&self.path, "larger than this machine can address"))?;
        match &self.data {
            _ if size == 0 => Ok(Region::Borrowed(&[])),
            // In memory `len` is a usize, so `start` is one too.
            Data::Memory(bytes) => Ok(Region::Borrowed(&bytes[range.start as usize..][..size])),
            Data::File(file) => {
                map(file, range.start, size).map_err(|e| Error::open(&self.path, e))
            }
        }
    }
}

#[allow(unsafe_code)] // a map is what lets 28 GB of weights pass through a small memory
fn map(file: &File, offset: u64, len: usize) -> std::io::Result<Region<'static>> {
    // SAFETY: the map is read-only, private to its `Region` and inside the length that `region` has
    // just read. As for every map of a file, nobody may change the file while it is mapped: that is
    // asked of whoever writes checkpoints, and kept short by mapping one tensor at a time. Should it
    // happen, weights turn to noise or the process gets SIGBUS; places and lengths of tensors are
    // copied out when a header is parsed, and never read from the map again.
    unsafe { MmapOptions::new().offset(offset).len(len).map(file) }.map(Region::Mapped)
}

impl Deref for Region<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Borrowed(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_ends_with_its_source() {
        let source = Source::memory("bytes", Cow::Borrowed(&[1, 2, 3]));
        assert_eq!(&*source.region(1..3).unwrap(), &[2, 3]);
        assert_eq!(&*source.region(3..3).unwrap(), &[] as &[u8]);
        let error = source.region(2..4).unwrap_err().to_string();
        assert_eq!(error, "bytes: bytes 2..4 asked for, the file has 3");
    }

    #[test]
    fn a_mapped_region_need_not_start_at_a_page() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let source = Source::open(file.path()).unwrap();
        assert_eq!(&*source.region(4_099..8_200).unwrap(), &bytes[4_099..8_200]);
        file.as_file().set_len(5_000).unwrap();
        assert!(source.region(4_099..8_200).is_err());
    }
}
