//! The networks that this program knows, by the tensors that they ask for.

use std::fmt;

use anyhow::Result;
use candle_nn::VarBuilder;
use gstblockcascade::checkpoint::{Architecture, Manifest, TensorShape, requested};
use gstblockcascade::wan::text::Umt5Encoder;
use gstblockcascade::wan::tiny_vae::{TinyDecoder, TinyEncoder, TinyVaeConfig};
use gstblockcascade::wan::vae::{WanDecoder, WanEncoder, WanVaeConfig};
use gstblockcascade::wan::{WanDit, dit_config, text_config, vae_config};

/// All architectures and their names.
const ARCHITECTURES: [(Architecture, &str); 3] = [
    (Architecture::Pocket, "pocket"),
    (Architecture::T2v1_3b, "t2v-1.3b"),
    (Architecture::T2v14b, "t2v-14b"),
];

/// A network and the tensors that a checkpoint of it holds.
pub struct Network {
    /// What it is, and which models have it.
    pub name: String,
    /// Tensors that it cannot do without.
    pub needed: Vec<TensorShape>,
    /// Tensors of the half that is not used here: the encoder of an auto-encoder.
    pub unused: Vec<TensorShape>,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Network {
    fn new<T>(
        name: impl Into<String>,
        build: impl FnOnce(VarBuilder<'static>) -> candle_core::Result<T>,
    ) -> Result<Self> {
        Ok(Self { name: name.into(), needed: requested(build)?, unused: Vec::new() })
    }

    fn with_unused<T>(
        mut self,
        build: impl FnOnce(VarBuilder<'static>) -> candle_core::Result<T>,
    ) -> Result<Self> {
        self.unused = requested(build)?;
        Ok(self)
    }

    /// Numbers that it computes with.
    pub fn parameters(&self) -> u64 {
        self.needed.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
    }
}

/// The transformer of an architecture.
pub fn transformer(architecture: Architecture) -> Result<Network> {
    let config = dit_config(architecture);
    Network::new(format!("transformer of {}", models(architecture)), |vb| WanDit::new(&config, vb))
}

/// The text encoder of an architecture.
pub fn text_encoder(architecture: Architecture) -> Result<Network> {
    let config = text_config(architecture);
    let name = match architecture {
        Architecture::Pocket => "text encoder of pocket",
        Architecture::T2v1_3b | Architecture::T2v14b => "umT5-XXL text encoder",
    };
    Network::new(name, |vb| Umt5Encoder::new(&config, vb))
}

/// The decoder of an architecture.
pub fn decoder(architecture: Architecture) -> Result<Network> {
    let name = match architecture {
        Architecture::Pocket => "auto-encoder of pocket",
        Architecture::T2v1_3b | Architecture::T2v14b => "Wan 2.1 auto-encoder",
    };
    vae(name, &vae_config(architecture))
}

fn vae(name: &str, config: &WanVaeConfig) -> Result<Network> {
    let network = Network::new(name, |vb| WanDecoder::new(config, vb))?;
    network.with_unused(|vb| WanEncoder::new(config, vb))
}

/// The small decoders, which stand in for the Wan 2.1 auto-encoder.
fn small_decoders() -> Result<[Network; 2]> {
    let tiny = TinyVaeConfig::taew2_1();
    let network = Network::new("TAEHV or LightTAE", |vb| TinyDecoder::new(&tiny, vb))?;
    let light = vae("LightVAE", &WanVaeConfig::light())?;
    Ok([network.with_unused(|vb| TinyEncoder::new(&tiny, vb))?, light])
}

/// The transformer of every architecture: what a LoRA may fit.
pub fn transformers() -> Result<Vec<Network>> {
    ARCHITECTURES.into_iter().map(|(architecture, _)| transformer(architecture)).collect()
}

/// Every network once.
pub fn all() -> Result<Vec<Network>> {
    let mut networks = transformers()?;
    // The two large architectures share the rest.
    for architecture in [Architecture::Pocket, Architecture::T2v1_3b] {
        networks.extend([decoder(architecture)?, text_encoder(architecture)?]);
    }
    networks.extend(small_decoders()?);
    Ok(networks)
}

/// An architecture's name, and the models that have it.
fn models(architecture: Architecture) -> String {
    let name = ARCHITECTURES.iter().find(|(other, _)| *other == architecture);
    let name = name.map_or("another architecture", |(_, name)| name);
    let manifests = Manifest::names().filter_map(|name| Manifest::named(name).ok());
    let models = manifests.filter(|model| model.architecture == architecture);
    let models: Vec<_> = models.map(|model| model.name).collect();
    if models == [name] { name.to_owned() } else { format!("{name} ({})", models.join(", ")) }
}
