//! `inspect`: what a checkpoint holds, and which network it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Result;
use gstblockcascade::checkpoint::{Checkpoint, Error, TensorInfo};
use indicatif::{BinaryBytes, HumanCount};
use serde_json::{Value, json};

use crate::networks::{self, Network};
use crate::print;

/// How many names are shown from either end of the list.
const SHOWN: usize = 4;
/// Where the names of what only the training of LongLive uses start.
const CRITIC: &str = "critic_lora.";
/// Where the names of a transformer's layers start.
const LAYERS: &str = "blocks.";
/// How the names of a LoRA's halves end, the lower and the upper one: PEFT's, and those of Kohya's trainers.
const HALVES: [(&str, &str); 3] = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),
];
/// How the name of a LoRA's own scale ends.
const ALPHA: &str = ".alpha";

/// Says what a checkpoint holds and which network it fits.
#[derive(clap::Args)]
pub struct Args {
    /// A .safetensors, .pt or .pth file, an index of several, or a folder with one of these
    file: PathBuf,
    /// Prints all names
    #[arg(long)]
    all: bool,
    /// Prints JSON, sizes in bytes
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.file)?;
    let report = Report { fit: Fit::of(&checkpoint)?, checkpoint };
    print(&if args.json { format!("{:#}\n", report.json()) } else { report.text(args.all) })
}

struct Report {
    checkpoint: Checkpoint,
    fit: Fit,
}

impl Report {
    fn bytes(&self) -> u64 {
        self.checkpoint.tensors().map(|tensor| bytes(&tensor)).sum()
    }

    /// Bytes and tensors by element type.
    fn dtypes(&self) -> BTreeMap<String, (usize, u64)> {
        let mut dtypes = BTreeMap::new();
        for tensor in self.checkpoint.tensors() {
            let (count, size) = dtypes.entry(tensor.dtype.to_string()).or_insert((0, 0));
            *count += 1;
            *size += bytes(&tensor);
        }
        dtypes
    }

    /// How the tensors are packed, by the files that they are in.
    fn container(&self) -> String {
        let files: BTreeSet<_> = self.checkpoint.tensors().map(|tensor| tensor.file).collect();
        let is_safetensors = files.iter().all(|file| has_json_header(file).unwrap_or(false));
        let format = if is_safetensors { "safetensors" } else { "PyTorch" };
        if files.len() == 1 { format.into() } else { format!("{format} in {} files", files.len()) }
    }

    fn text(&self, all: bool) -> String {
        let count = self.checkpoint.tensors().count();
        let dtypes = self.dtypes();
        let dtypes: Vec<_> = dtypes.iter().map(|(name, (n, _))| format!("{n} {name}")).collect();
        format!(
            "{}\n  container  {}\n  tensors    {count}: {}\n  size       {}\n{}{}",
            self.checkpoint.path().display(),
            self.container(),
            dtypes.join(", "),
            BinaryBytes(self.bytes()),
            self.names(all),
            self.fit.text(),
        )
    }

    /// A line for each tensor; without `all`, those of the middle are counted.
    fn names(&self, all: bool) -> String {
        let count = self.checkpoint.tensors().count();
        let hidden = if all || count <= 2 * SHOWN { 0..0 } else { SHOWN..count - SHOWN };
        let line = |(i, tensor): (usize, TensorInfo<'_>)| {
            let TensorInfo { name, dtype, shape, .. } = tensor;
            let shown = !hidden.contains(&i);
            let more = i == hidden.start && !shown;
            let text = more.then(|| format!("    ... {} more\n", hidden.len()));
            text.or_else(|| shown.then(|| format!("    {name} {dtype} {shape:?}\n")))
        };
        self.checkpoint.tensors().enumerate().filter_map(line).collect()
    }

    fn json(&self) -> Value {
        let dtypes = self
            .dtypes()
            .into_iter()
            .map(|(name, (tensors, bytes))| (name, json!({ "tensors": tensors, "bytes": bytes })));
        let tensors = self.checkpoint.tensors().map(|TensorInfo { name, dtype, shape, .. }| {
            json!({ "name": name, "dtype": dtype.to_string(), "shape": shape })
        });
        json!({
            "path": self.checkpoint.path().to_string_lossy(),
            "container": self.container(),
            "bytes": self.bytes(),
            "dtypes": dtypes.collect::<serde_json::Map<_, _>>(),
            "tensors": tensors.collect::<Vec<_>>(),
            "fits": self.fit.json(),
        })
    }
}

/// As safetensors have behind its length, whatever the file's name is.
fn has_json_header(file: &Path) -> io::Result<bool> {
    let mut start = [0; 9];
    File::open(file)?.read_exact(&mut start)?;
    Ok(start[8] == b'{')
}

fn bytes(tensor: &TensorInfo<'_>) -> u64 {
    let numbers: usize = tensor.shape.iter().product();
    (numbers * tensor.dtype.bitsize()).div_ceil(8) as u64
}

/// The known network that comes closest.
enum Fit {
    /// All tensors are the network's.
    Whole(Network),
    /// Some are, with what is wrong besides.
    Closest(Network, Error),
    /// Pairs of thin matrices for the layers of a transformer.
    Lora { network: Network, pairs: usize },
    /// A LoRA for something else, or with parts that are no pairs, one of which is named.
    OtherLora { pairs: usize, stray: Option<String> },
    /// Not one tensor is any known network's.
    None,
}

impl Fit {
    fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let modules = lora_modules(checkpoint);
        if !modules.is_empty() {
            return Self::of_lora(&modules, stray(checkpoint));
        }
        let mut best: Option<(usize, Network, Error)> = None;
        for network in networks::all()? {
            let Err(error) = checkpoint.check(&network.needed, &network.unused) else {
                return Ok(Self::Whole(network));
            };
            let shared = shared(&network, &error);
            if shared > best.as_ref().map_or(0, |(most, ..)| *most) {
                best = Some((shared, network, error));
            }
        }
        Ok(best.map_or(Self::None, |(_, network, error)| Self::Closest(network, error)))
    }

    fn of_lora(modules: &[Module], stray: Option<String>) -> Result<Self> {
        let pairs = modules.len();
        let fits = |network: &Network| {
            modules.iter().all(|(module, shape)| {
                let name = format!("{module}.weight");
                let weight = network.needed.iter().find(|tensor| tensor.name == name);
                weight.is_some_and(|weight| shape.is_some_and(|shape| weight.shape == shape))
            })
        };
        let network = networks::transformers()?.into_iter().find(fits);
        Ok(match network.filter(|_| stray.is_none()) {
            Some(network) => Self::Lora { network, pairs },
            None => Self::OtherLora { pairs, stray },
        })
    }

    fn text(&self) -> String {
        match self {
            Self::Whole(network) => {
                let numbers = HumanCount(network.parameters());
                format!("  fits       {network}: {numbers} parameters\n")
            }
            Self::Closest(network, error) => {
                let error = error.to_string();
                let reason = error.split_once(": ").map_or(error.as_str(), |(_, reason)| reason);
                format!("  fits       nothing known\n  closest    {network}: {reason}\n")
            }
            Self::Lora { network, pairs } => {
                format!("  fits       LoRA for the {network}, layers: {pairs}\n")
            }
            Self::OtherLora { pairs, stray: None } => {
                format!("  fits       nothing known: LoRA for another network, layers: {pairs}\n")
            }
            Self::OtherLora { pairs, stray: Some(stray) } => format!(
                "  fits       nothing known: LoRA with more than pairs, as {stray}, layers: {pairs}\n"
            ),
            Self::None => "  fits       nothing known\n".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Whole(network) => json!({ "network": network.name }),
            Self::Closest(network, error) => {
                json!({ "closest": network.name, "reason": error.to_string() })
            }
            Self::Lora { network, pairs } => json!({ "lora_for": network.name, "pairs": pairs }),
            Self::OtherLora { pairs, stray } => {
                json!({ "lora_for": null, "pairs": pairs, "stray": stray })
            }
            Self::None => Value::Null,
        }
    }
}

/// Tensors that the network needs and the checkpoint has under their names and in their shapes.
fn shared(network: &Network, error: &Error) -> usize {
    match error {
        Error::Mismatch { missing, wrong_shape, .. } => {
            network.needed.len() - missing.len() - wrong_shape.len()
        }
        _ => 0,
    }
}

/// A layer that a LoRA changes, and the shape of what is added to its weight, if both halves are there and
/// fit each other.
type Module = (String, Option<[usize; 2]>);

/// None for another checkpoint.
fn lora_modules(checkpoint: &Checkpoint) -> Vec<Module> {
    let shapes: BTreeMap<_, _> = parts(checkpoint).map(|part| (part.name, part.shape)).collect();
    let module = |(name, down): (&&str, &&[usize])| {
        let half = |(lower, upper): &(&str, &str)| {
            let module = name.strip_suffix(lower)?;
            Some((module, shapes.get(&*format!("{module}{upper}"))))
        };
        let (module, up) = HALVES.iter().find_map(half)?;
        let layer = module.find(LAYERS).map_or(module, |start| &module[start..]);
        let added = up.and_then(|up| match (*up, *down) {
            (&[outputs, rank], &[inner, inputs]) if rank == inner => Some([outputs, inputs]),
            _ => None,
        });
        Some((layer.to_owned(), added))
    };
    shapes.iter().filter_map(module).collect()
}

/// A tensor of a LoRA that is no part of a pair.
fn stray(checkpoint: &Checkpoint) -> Option<String> {
    let is_half = |name: &str| HALVES.iter().any(|(a, b)| name.ends_with(a) || name.ends_with(b));
    let mut names = parts(checkpoint).map(|part| part.name);
    names.find(|name| !is_half(name) && !name.ends_with(ALPHA)).map(str::to_owned)
}

/// The tensors of a LoRA, but for those of training alone.
fn parts(checkpoint: &Checkpoint) -> impl Iterator<Item = TensorInfo<'_>> {
    checkpoint.tensors().filter(|tensor| !tensor.name.starts_with(CRITIC))
}
