//! LoRA files: pairs of thin matrices whose product is added to a weight.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result as CandleResult, Tensor};

use super::error::{Error, Result};
use super::{Checkpoint, Entry};

/// What a LoRA adds to one weight: `scale · up · down`.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    /// `(rank, in)`, called A or down.
    down: Entry,
    /// `(out, rank)`, called B or up.
    up: Entry,
    /// `strength · alpha / rank`.
    scale: f64,
}

impl Delta {
    /// The addition itself, `(out, in)` in f32 on `device`.
    pub(super) fn product(&self, device: &Device) -> CandleResult<Tensor> {
        let load = |entry: &Entry| entry.stored.load(&entry.source, DType::F32, device);
        // The thin half is scaled: the product is as large as the weight.
        load(&self.up)?.affine(self.scale, 0.0)?.matmul(&load(&self.down)?)
    }
}

/// The parts of one pair found so far.
#[derive(Default)]
struct Pair<'a> {
    down: Option<&'a Entry>,
    up: Option<&'a Entry>,
    alpha: Option<&'a Entry>,
}

#[derive(Clone, Copy)]
enum Part {
    Down,
    Up,
    Alpha,
}

/// PEFT's names, then those of Kohya's trainers and the tools that follow them.
const SUFFIXES: [(&str, Part); 7] = [
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".alpha", Part::Alpha),
];

/// What `lora` adds to the weights of `base`, by name; all that does not fit is reported at once.
pub(super) fn deltas(
    lora: &Checkpoint,
    base: &Checkpoint,
    strength: f64,
) -> Result<Vec<(String, Delta)>> {
    if !strength.is_finite() {
        let problems = vec![format!("strength: expected a number, got {strength}")];
        return Err(Error::Lora { path: lora.path.clone(), problems });
    }
    let (pairs, mut problems) = pairs(lora);
    let mut deltas = Vec::new();
    for (module, pair) in pairs {
        let weight = format!("{module}.weight");
        match delta(&pair, base.tensors.get(&weight), strength, &lora.path) {
            Ok(delta) => deltas.push((weight, delta)),
            Err(reason) => problems.push(format!("{module}: {reason}")),
        }
    }
    if problems.is_empty() {
        Ok(deltas)
    } else {
        Err(Error::Lora { path: lora.path.clone(), problems })
    }
}

/// Sorts the tensors of a LoRA by module; those of no known kind come back as problems.
fn pairs(lora: &Checkpoint) -> (BTreeMap<&str, Pair<'_>>, Vec<String>) {
    let mut pairs: BTreeMap<&str, Pair<'_>> = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, entry) in &lora.tensors {
        let split = |(suffix, part): &(&str, Part)| Some((name.strip_suffix(suffix)?, *part));
        let Some((module, part)) = SUFFIXES.iter().find_map(split) else {
            problems.push(format!("{name}: not a part of a LoRA"));
            continue;
        };
        let pair = pairs.entry(module).or_default();
        match part {
            Part::Down => pair.down = Some(entry),
            Part::Up => pair.up = Some(entry),
            Part::Alpha => pair.alpha = Some(entry),
        }
    }
    (pairs, problems)
}

fn delta(
    pair: &Pair<'_>,
    weight: Option<&Entry>,
    strength: f64,
    path: &Path,
) -> std::result::Result<Delta, String> {
    let weight = weight.ok_or("the checkpoint has no such module")?;
    let down = pair.down.ok_or("the half A (down) is missing")?;
    let up = pair.up.ok_or("the half B (up) is missing")?;
    let shapes = (&*up.stored.shape, &*down.stored.shape, &*weight.stored.shape);
    let rank = match shapes {
        (&[out, rank], &[inner, width], &[rows, columns])
            if rank == inner && rank > 0 && (out, width) == (rows, columns) =>
        {
            rank as f64
        }
        (up, down, weight) => {
            return Err(format!("expected B·A of shape {weight:?}, got B {up:?} and A {down:?}"));
        }
    };
    let alpha = pair.alpha.map_or(Ok(rank), |alpha| number(alpha, path))?;
    Ok(Delta { down: down.clone(), up: up.clone(), scale: strength * alpha / rank })
}

/// The one number of a tensor.
fn number(entry: &Entry, path: &Path) -> std::result::Result<f64, String> {
    match entry.stored.number(&entry.source) {
        Ok(alpha) if alpha.is_finite() => Ok(alpha),
        Ok(alpha) => Err(format!("expected a finite alpha, got {alpha}")),
        Err(e) => Err(format!("alpha in {} cannot be read: {e}", path.display())),
    }
}
