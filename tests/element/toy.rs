//! Networks that are quick, slow or broken as a test wants it, in place of a model's own.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{Device, Result, Tensor};
use gstblockcascade::checkpoint::Manifest;
use gstblockcascade::generator::{GeneratorConfig, Loading, Parts};
use gstblockcascade::model::{
    DenoiseInput, FrameDecoder, Interrupt, KvExchange, TextContext, TextEmbedding, VideoModel,
    VideoSpec,
};

use super::arithmetic::{self, LAYERS, SPEC};

/// What the transformer does at every forward.
#[derive(Clone, Copy, Debug, Default)]
pub enum Behaviour {
    #[default]
    Work,
    Panic,
    /// Every layer takes so long.
    Slow(Duration),
}

/// Networks under a name of their own; the element finds them by its property `model`.
pub struct Toy {
    behaviour: Arc<Mutex<Behaviour>>,
    model: Arc<dyn VideoModel>,
    manifest: PathBuf,
    _folder: tempfile::TempDir,
    _networks: Loading,
}

impl Toy {
    pub fn new(behaviour: Behaviour) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("toy.toml");
        let text = include_str!("../../models/pocket.toml");
        let unique = format!("description = \"a toy in {}, ", folder.path().display());
        std::fs::write(&manifest, text.replacen("description = \"", &unique, 1)).unwrap();
        let behaviour = Arc::new(Mutex::new(behaviour));
        let model: Arc<dyn VideoModel> =
            Arc::new(Mean { behaviour: behaviour.clone(), spec: SPEC });
        let parts = Parts {
            text: Arc::new(arithmetic::Lengths),
            models: vec![model.clone()],
            decoder: Arc::new(Grey::default()),
        };
        let config = GeneratorConfig::new(Manifest::read(&manifest).unwrap());
        let networks = Loading::given(&config, parts);
        Self { behaviour, model, manifest, _folder: folder, _networks: networks }
    }

    /// The property that names these networks.
    pub fn model(&self) -> String {
        format!("model={}", self.manifest.display())
    }

    /// Whoever holds the transformer, streams among them.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.model)
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }
}

/// Clean latents are the prompt's length.
#[derive(Debug)]
struct Mean {
    behaviour: Arc<Mutex<Behaviour>>,
    spec: VideoSpec,
}

impl VideoModel for Mean {
    fn spec(&self) -> &VideoSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn text_context(&self, text: &TextEmbedding) -> Result<TextContext> {
        Ok(arithmetic::text_context(text))
    }

    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        kv: &mut dyn KvExchange,
    ) -> Result<Vec<Tensor>> {
        for layer in 0..LAYERS {
            kv.exchange(layer, vec![arithmetic::kv()?; blocks.len()])?;
            let behaviour = *self.behaviour.lock().unwrap();
            match behaviour {
                Behaviour::Work => {}
                Behaviour::Panic => panic!("the toy is broken"),
                Behaviour::Slow(time) => std::thread::sleep(time),
            }
        }
        blocks.iter().map(arithmetic::flow).collect()
    }
}

/// Frames as bright as their latents.
#[derive(Debug, Default)]
struct Grey {
    has_begun: bool,
}

impl FrameDecoder for Grey {
    fn step(&mut self, latents: &Tensor, interrupt: &Interrupt) -> Result<Tensor> {
        interrupt.check()?;
        let frames = if std::mem::replace(&mut self.has_begun, true) { 4 } else { 1 };
        let (_, _, rows, columns) = latents.dims4()?;
        let shape = (frames, rows * 8, columns * 8, 3);
        latents.mean_all()?.reshape((1, 1, 1, 1))?.broadcast_as(shape)?.contiguous()
    }

    fn fresh(&self) -> Box<dyn FrameDecoder> {
        Box::new(Self::default())
    }
}
