//! From a path to a checkpoint: which format, which files, which names.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::btree_map;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::error::{Error, Result};
use super::place::Place;
use super::source::Source;
use super::{Checkpoint, Entry, legacy, names, safetensors, torch};
use crate::model::Interrupt;

/// Dicts of a `.pt` file that hold the network, the best first.
pub(super) const WEIGHTS: &[&str] = &["generator_ema", "generator", "model", "state_dict"];
/// Dicts of a `.pt` file that hold a LoRA.
pub(super) const LORA: &[&str] = &["generator_lora"];

const INDEX: &str = ".safetensors.index.json";
/// Bytes of an index, at most: ten times what the largest known model's has.
const MAX_INDEX: u64 = 1 << 20;

/// What a sharded checkpoint's index says: which shard has which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens what is at a place; `prefer` are the dicts to look for in a `.pt` file.
pub(super) fn place(place: &Place, prefer: &[&str]) -> Result<Checkpoint> {
    match place {
        Place::Disk(path) => self::path(path, prefer),
        Place::Embedded(embedded) => {
            file(Source::memory(&embedded.to_string(), embedded.bytes().into()), prefer)
        }
    }
}

/// Opens a file, an index or a folder.
fn path(path: &Path, prefer: &[&str]) -> Result<Checkpoint> {
    if path.is_dir() {
        return self::path(&only_checkpoint(path)?, prefer);
    }
    if path.to_string_lossy().ends_with(INDEX) {
        return index(path);
    }
    file(Source::open(path)?, prefer)
}

/// Reads one file, whichever format its first bytes say it is.
pub(super) fn file(source: Source, prefer: &[&str]) -> Result<Checkpoint> {
    let path = source.path().to_owned();
    let tensors = tensors(Arc::new(source), prefer)?;
    checkpoint(path, tensors)
}

/// The tensors of one file under the file's own names.
fn tensors(source: Arc<Source>, prefer: &[&str]) -> Result<Vec<(String, Entry)>> {
    let bytes = source.all()?;
    let read = if bytes.starts_with(torch::MAGIC) {
        torch::read(&bytes, prefer)
    } else if bytes.starts_with(legacy::MAGIC) {
        legacy::read(&bytes, prefer)
    } else {
        safetensors::read(&bytes)
    };
    let read = read.map_err(|reason| Error::format(source.path(), reason))?;
    let entry = |stored| Entry { source: source.clone(), stored };
    Ok(read.into_iter().map(|(name, stored)| (name, entry(stored))).collect())
}

/// Gives tensors upstream's names; two of one name are an error unless they are known to be tied.
fn checkpoint(path: PathBuf, mut list: Vec<(String, Entry)>) -> Result<Checkpoint> {
    // A tied copy comes last, so that the tensor itself is the one that stays.
    list.sort_by_key(|(name, _)| names::is_tied_copy(name));
    let (old, entries): (Vec<_>, Vec<_>) = list.into_iter().unzip();
    let mut tensors = BTreeMap::new();
    for ((name, old), entry) in names::upstream(&old).into_iter().zip(&old).zip(entries) {
        match tensors.entry(name) {
            btree_map::Entry::Vacant(place) => {
                place.insert(entry);
            }
            btree_map::Entry::Occupied(_) if names::is_tied_copy(old) => {}
            btree_map::Entry::Occupied(place) => {
                let reason = format!("two tensors are {}, one of them as {old}", place.key());
                return Err(Error::format(path, reason));
            }
        }
    }
    if tensors.is_empty() {
        return Err(Error::format(path, "holds no tensors"));
    }
    Ok(Checkpoint { path, tensors, deltas: HashMap::new(), interrupt: Interrupt::default() })
}

/// Opens the shards that an index names, which must lie beside it.
fn index(path: &Path) -> Result<Checkpoint> {
    let json = Source::open(path)?;
    if json.len()? > MAX_INDEX {
        let reason = format!("expected an index of {MAX_INDEX} bytes at most, got {}", json.len()?);
        return Err(Error::format(path, reason));
    }
    let index: Index = serde_json::from_slice(&json.all()?)
        .map_err(|e| Error::format(path, format!("not the index of a checkpoint: {e}")))?;
    let mut shards: BTreeMap<String, HashMap<String, Entry>> = BTreeMap::new();
    let mut list = Vec::new();
    for (name, shard) in index.weight_map {
        let tensors = match shards.entry(shard) {
            btree_map::Entry::Occupied(opened) => opened.into_mut(),
            btree_map::Entry::Vacant(place) => {
                let file = beside(path, place.key())?;
                let tensors = tensors(Arc::new(Source::open(&file)?), WEIGHTS)?;
                place.insert(tensors.into_iter().collect())
            }
        };
        match tensors.remove(&name) {
            Some(entry) => list.push((name, entry)),
            None => {
                return Err(Error::format(path, format!("{name} is not in the shard it names")));
            }
        }
    }
    checkpoint(path.to_owned(), list)
}

/// The path of a shard; an index may name no file outside its folder.
fn beside(index: &Path, shard: &str) -> Result<PathBuf> {
    let mut parts = Path::new(shard).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Ok(index.with_file_name(name)),
        _ => Err(Error::format(index, format!("{shard:?} is not the name of a file beside it"))),
    }
}

/// The one checkpoint of a folder: an index, else a `.safetensors`, else a `.pt` or `.pth`.
fn only_checkpoint(folder: &Path) -> Result<PathBuf> {
    let files = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|e| Error::open(folder, e))?;
    let files: Vec<PathBuf> = files;
    let is = |path: &Path, extension: &str| path.extension() == Some(OsStr::new(extension));
    let kinds: [&dyn Fn(&Path) -> bool; 3] = [
        &|path| path.to_string_lossy().ends_with(INDEX),
        &|path| is(path, "safetensors"),
        &|path| is(path, "pt") || is(path, "pth"),
    ];
    for kind in kinds {
        let mut found: Vec<&PathBuf> = files.iter().filter(|path| kind(path)).collect();
        found.sort();
        match found.as_slice() {
            [] => {}
            [one] => return Ok((*one).clone()),
            [one, other, ..] => {
                let names = format!("{} and {}", one.display(), other.display());
                return Err(Error::format(folder, format!("more than one checkpoint: {names}")));
            }
        }
    }
    Err(Error::format(folder, "expected a .safetensors, .pt or .pth file in the folder, got none"))
}
