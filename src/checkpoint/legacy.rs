//! What `torch.save` wrote before version 1.6, and writes to this day when it is asked to: pickles one
//! after the other, then the numbers of every storage, each behind their count.
//!
//! Format: <https://github.com/pytorch/pytorch/blob/v2.5.1/torch/serialization.py>, `_legacy_save`.

use std::collections::HashMap;
use std::mem::size_of;
use std::ops::Range;

use super::pickle::{Machine, Storage, Value, View};
use super::stored::Stored;
use super::torch::stored;

/// Where a pickle of protocol 2 starts whose first object is a long of ten bytes. Two bytes would be
/// the length of some safetensors headers, too.
pub(super) const MAGIC: &[u8] = b"\x80\x02\x8a\x0a";
/// That long.
const NUMBER: u128 = 0x1950_a86a_20f9_469c_fc6c;
/// Its bytes.
const WIDTH: usize = 10;

/// The number in the second pickle.
const PROTOCOL: i64 = 1001;

/// Bytes that the place of a storage costs, with what the pickle says of it.
const PLACE: usize = 4 * size_of::<(&str, Range<usize>)>();

/// Places by the keys of their storages.
type Places<'a> = HashMap<&'a str, Range<usize>>;

/// Names and places of the tensors of the first dict of `prefer` there is, or of all.
pub(super) fn read(bytes: &[u8], prefer: &[&str]) -> Result<Vec<(String, Stored)>, String> {
    check_number(bytes)?;
    let mut machine = Machine::new(bytes, bytes.len());
    machine.run()?; // that number
    check_protocol(machine.run()?)?;
    let system = machine.run()?;
    check_order(machine.entry(system, "little_endian"))?;
    let (root, keys) = (machine.run()?, machine.run()?);
    let places = places(&mut machine, keys, bytes)?;
    let place = |(name, view): (String, View<'_>)| {
        let stored = stored(&view, places.get(view.storage));
        let stored = stored.map_err(|reason| format!("{name}: {reason}"))?;
        Ok((name, stored))
    };
    machine.tensors(root, prefer)?.into_iter().map(place).collect()
}

fn check_number(bytes: &[u8]) -> Result<(), String> {
    let number = bytes.get(MAGIC.len()..).and_then(|rest| rest.first_chunk::<WIDTH>());
    let number = number.ok_or("a PyTorch file that ends within its magic number")?;
    let number = number.iter().rfold(0, |number, byte| number << 8 | u128::from(*byte));
    if number == NUMBER {
        return Ok(());
    }
    Err(format!("expected the magic number {NUMBER:#x} of a PyTorch file, got {number:#x}"))
}

fn check_protocol(protocol: Value<'_>) -> Result<(), String> {
    let got = match protocol {
        Value::Int(PROTOCOL) => return Ok(()),
        Value::Int(other) => other.to_string(),
        _ => "no number".into(),
    };
    Err(format!("expected a PyTorch file of protocol {PROTOCOL}, got {got}"))
}

fn check_order(is_little: Option<Value<'_>>) -> Result<(), String> {
    let got = match is_little {
        Some(Value::Flag(true)) => return Ok(()),
        Some(Value::Flag(false)) => "big-endian ones",
        _ => "a file that does not say",
    };
    Err(format!("expected a PyTorch file of little-endian numbers, got {got}"))
}

/// Where the numbers of every storage lie, behind the pickles in the order of `keys`.
fn places<'a>(
    machine: &mut Machine<'a>,
    keys: Value<'a>,
    bytes: &[u8],
) -> Result<Places<'a>, String> {
    machine.spend(machine.storages().len() * PLACE)?;
    let mut storages = HashMap::new();
    for storage in machine.storages() {
        // Its first mention counts, as in PyTorch: the count is of elements of that one's size.
        storages.entry(storage.key).or_insert(*storage);
    }
    let mut places = Places::new();
    let mut end = bytes.len() - machine.rest().len();
    for key in machine.listed(keys).ok_or("expected a list of storages behind the tensors")? {
        let Value::Text(key) = *key else {
            return Err(format!("expected the key of a storage, got {key:?}"));
        };
        let storage = storages.get(key);
        let storage = storage.ok_or_else(|| format!("storage {key} has no element type"))?;
        let place = place(storage, bytes, end)?;
        end = place.end;
        if places.insert(key, place).is_some() {
            return Err(format!("storage {key} is listed twice"));
        }
    }
    Ok(places)
}

/// The numbers of a storage, whose count is at `start`.
fn place(storage: &Storage<'_>, bytes: &[u8], start: usize) -> Result<Range<usize>, String> {
    let Storage { key, dtype, elements } = *storage;
    let rest = bytes.get(start..).unwrap_or_default();
    let Some((count, rest)) = rest.split_first_chunk() else {
        return Err(format!("storage {key}: the file ends before its numbers"));
    };
    let count = i64::from_le_bytes(*count);
    if u64::try_from(count) != Ok(elements) {
        return Err(format!("storage {key}: expected {elements} elements, got {count}"));
    }
    let (size, start) = (dtype.bitsize() / 8, bytes.len() - rest.len());
    let len = usize::try_from(elements).ok().and_then(|elements| elements.checked_mul(size));
    match len.filter(|len| *len <= rest.len()) {
        Some(len) => Ok(start..start + len),
        None => Err(format!(
            "storage {key}: expected {elements} elements of {size} bytes, the file ends after {} bytes",
            rest.len()
        )),
    }
}
