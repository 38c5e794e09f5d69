//! `models`: what is known, what it needs, what of it is on disk.

use std::path::PathBuf;

use anyhow::Result;
use gstblockcascade::checkpoint::{Architecture, Located, Manifest, Place, Preset};
use gstblockcascade::wan::dit_config;
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use crate::{networks, print};

/// Lists the known models: licence, files, memory, and what is on disk.
#[derive(clap::Args)]
pub struct Args {
    /// Looks for files here too, besides the cache that Hugging Face tools share
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Prints JSON, sizes in bytes
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let models = Manifest::names().map(Manifest::named).collect::<Result<Vec<_>, _>>()?;
    let models = models.iter().map(|manifest| {
        let memory = Memory::of(manifest)?;
        Ok(Model { manifest, memory, files: manifest.locate(args.folder.as_deref()) })
    });
    let models: Vec<Model<'_>> = models.collect::<Result<_>>()?;
    if args.json {
        let list: Vec<_> = models.iter().map(Model::json).collect();
        return print(&format!("{:#}\n", Value::from(list)));
    }
    let texts: Vec<_> = models.iter().map(Model::text).collect();
    print(&texts.join("\n"))
}

struct Model<'a> {
    manifest: &'a Manifest,
    memory: Memory,
    files: Vec<Located<'a>>,
}

impl Model<'_> {
    /// Sizes of the files to fetch, as far as they are known; small decoders aside.
    fn sizes(&self) -> impl Iterator<Item = Option<u64>> {
        let files = self.files.iter().map(|located| located.file);
        let fetched = files.filter(|file| file.role.is_needed() && file.embedded().is_none());
        fetched.map(|file| file.size)
    }

    fn download(&self) -> u64 {
        self.sizes().flatten().sum()
    }

    fn text(&self) -> String {
        let Manifest { name, description, licence, preset, .. } = self.manifest;
        let Preset { width, height, fps, frames_per_block, window, sink, .. } = preset;
        let mut rows = vec![
            ("licence", licence.spdx.clone()),
            ("native", format!("{width}x{height} at {fps} frames per second")),
            (
                "history",
                format!("sink {sink}, window {window}, blocks of {frames_per_block} latents"),
            ),
            ("memory", self.memory.text()),
        ];
        if self.sizes().next().is_some() {
            let least = if self.sizes().any(|size| size.is_none()) { "more than " } else { "" };
            rows.push(("to fetch", format!("{least}{}", BinaryBytes(self.download()))));
        }
        rows.extend(self.files.iter().map(|located| (located.file.role.name(), place(located))));
        let rows = rows.iter().map(|(field, value)| format!("  {field:<13} {value}\n"));
        format!("{name}: {description}\n{}", rows.collect::<String>())
    }

    fn json(&self) -> Value {
        let Manifest { name, description, licence, preset, .. } = self.manifest;
        let Preset { width, height, fps, frames_per_block, window, sink, .. } = preset;
        let files: Vec<_> = self.files.iter().map(file_json).collect();
        json!({
            "name": name,
            "description": description,
            "licence": { "spdx": licence.spdx, "note": licence.note },
            "preset": {
                "width": width, "height": height, "fps": fps, "window": window, "sink": sink,
                "frames_per_block": frames_per_block, "denoising_steps": preset.denoising_steps,
            },
            "download": self.download(),
            "memory": {
                "transformer": { "parameters": self.memory.transformer },
                "text_encoder": { "parameters": self.memory.text_encoder },
                "decoder": { "parameters": self.memory.decoder },
                "kv_cache": { "numbers": self.memory.kv_cache },
            },
            "files": files,
        })
    }
}

fn file_json(located: &Located<'_>) -> Value {
    let (found, embedded) = match &located.found {
        Some(Place::Disk(path)) => (Some(path.to_string_lossy()), false),
        Some(Place::Embedded(_)) => (None, true),
        None => (None, false),
    };
    let wrong: Vec<_> = located
        .wrong_size
        .iter()
        .map(|(path, size)| json!([path.to_string_lossy(), size]))
        .collect();
    json!({
        "role": located.file.role.name(),
        "repo": located.file.repo,
        "path": located.file.path,
        "size": located.file.size,
        "embedded": embedded,
        "found": found,
        "wrong_size": wrong,
    })
}

/// Where a file is, or what is there instead.
fn place(located: &Located<'_>) -> String {
    let size = located.file.size.map_or("size unknown".to_owned(), |n| BinaryBytes(n).to_string());
    let state = match (&located.found, located.wrong_size.first()) {
        (Some(Place::Embedded(_)), _) => "embedded".to_owned(),
        (Some(Place::Disk(path)), _) => format!("found: {}", path.display()),
        (None, Some((path, got))) => format!("wrong size, {got} bytes: {}", path.display()),
        (None, None) => format!("missing: {}", located.file),
    };
    format!("{state} ({size})")
}

/// Numbers that a model keeps while it runs at its native size, one block in flight.
struct Memory {
    transformer: u64,
    text_encoder: u64,
    decoder: u64,
    kv_cache: u64,
}

impl Memory {
    fn of(manifest: &Manifest) -> Result<Self> {
        let Manifest { architecture, preset, .. } = manifest;
        Ok(Self {
            transformer: networks::transformer(*architecture)?.parameters(),
            text_encoder: networks::text_encoder(*architecture)?.parameters(),
            decoder: networks::decoder(*architecture)?.parameters(),
            kv_cache: kv_cache(*architecture, preset)?,
        })
    }

    /// In f32, and in bf16; the text encoder is in bf16 either way unless f32 is asked for.
    fn text(&self) -> String {
        let weights = |bytes| BinaryBytes(bytes * (self.transformer + self.decoder));
        let kv_cache = |bytes| BinaryBytes(bytes * self.kv_cache);
        format!(
            "f32 {} + KV cache {}, or bf16 {} + {}; text encoder {} in bf16",
            weights(4),
            kv_cache(4),
            weights(2),
            kv_cache(2),
            BinaryBytes(2 * self.text_encoder),
        )
    }
}

/// Keys and values of the sink, the window and the block being made.
fn kv_cache(architecture: Architecture, preset: &Preset) -> Result<u64> {
    let spec = dit_config(architecture).spec()?;
    let side = |pixels: u32| pixels as usize / spec.size_multiple();
    let tokens = side(preset.width) * side(preset.height) * preset.frames_per_block;
    let blocks = preset.sink + preset.window + 1;
    Ok((2 * spec.layers * spec.heads * spec.head_dim * tokens * blocks) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1560 tokens of 1536 numbers, keys and values, in 30 layers: 274.2 MiB for a latent frame in bf16.
    #[test]
    fn kv_cache_of_the_large_models() {
        let preset = |name| Manifest::named(name).unwrap().preset;
        let latent_frames = |blocks: f64| blocks * 3.0;
        let longlive = kv_cache(Architecture::T2v1_3b, &preset("longlive-1.3b")).unwrap();
        let frames = latent_frames(4.0);
        let mib = longlive as f64 * 2.0 / frames / f64::from(1 << 20);
        assert!((mib - 274.2).abs() < 0.05, "{mib} MiB");
    }
}
