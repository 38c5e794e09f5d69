//! `inspect`: what a checkpoint holds, and which network it is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

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
/// How the names of a LoRA's lower half end: PEFT's, and those of Kohya's trainers.
const LORA_ENDS: [&str; 3] = [".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight"];

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

    /// How the tensors are packed, by the names of the files that they are in.
    fn container(&self) -> String {
        let files: BTreeSet<_> = self.checkpoint.tensors().map(|tensor| tensor.file).collect();
        let is_torch = |name: &str| name.ends_with(".pt") || name.ends_with(".pth");
        let torch = files.iter().any(|file| is_torch(&file.to_string_lossy()));
        let format = if torch { "PyTorch" } else { "safetensors" };
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
            "path": self.checkpoint.path(),
            "container": self.container(),
            "bytes": self.bytes(),
            "dtypes": dtypes.collect::<serde_json::Map<_, _>>(),
            "tensors": tensors.collect::<Vec<_>>(),
            "fits": self.fit.json(),
        })
    }
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
    /// A LoRA for something else.
    OtherLora { pairs: usize },
    /// Not one tensor is any known network's.
    None,
}

impl Fit {
    fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let modules = lora_modules(checkpoint);
        if !modules.is_empty() {
            return Self::of_lora(&modules);
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

    fn of_lora(modules: &[(String, usize)]) -> Result<Self> {
        let pairs = modules.len();
        let fits = |network: &Network| {
            let mut modules = modules.iter();
            modules.all(|(module, inputs)| {
                let name = format!("{module}.weight");
                let weight = network.needed.iter().find(|tensor| tensor.name == name);
                weight.is_some_and(|weight| weight.shape.last() == Some(inputs))
            })
        };
        let network = networks::transformers()?.into_iter().find(fits);
        Ok(network.map_or(Self::OtherLora { pairs }, |network| Self::Lora { network, pairs }))
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
            Self::OtherLora { pairs } => {
                format!("  fits       nothing known: LoRA for another network, layers: {pairs}\n")
            }
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
            Self::OtherLora { pairs } => json!({ "lora_for": null, "pairs": pairs }),
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

/// The layers that a LoRA changes and how wide their inputs are; none for another checkpoint.
fn lora_modules(checkpoint: &Checkpoint) -> Vec<(String, usize)> {
    let module = |tensor: TensorInfo<'_>| {
        let module = LORA_ENDS.iter().find_map(|end| tensor.name.strip_suffix(end))?;
        let module = (!module.starts_with(CRITIC)).then_some(module)?;
        let layer = module.find(LAYERS).map_or(module, |start| &module[start..]);
        Some((layer.to_owned(), *tensor.shape.last()?))
    };
    checkpoint.tensors().filter_map(module).collect()
}
