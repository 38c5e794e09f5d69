//! Configuration to networks.

use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::Parts;
use super::config::{Decoder, Dtype, GeneratorConfig};
use super::error::{Error, Result};
use super::progress::Progress;
use super::room::{self, Share};
use super::weights::WeightsSource;
use crate::checkpoint::{self, Checkpoint, Place, TensorShape, requested};
use crate::device::{self, DeviceSpec};
use crate::model::{FrameDecoder, Interrupt, TextEncoder, VideoModel};
use crate::wan::text::{PromptEncoder, PromptTokenizer, RandomTextEncoder, Umt5Encoder};
use crate::wan::tiny_vae::{TinyDecoder, TinyEncoder, TinyFrameDecoder, TinyVaeConfig};
use crate::wan::vae::{WanDecoder, WanEncoder, WanFrameDecoder, WanVaeConfig};
use crate::wan::{WanConfig, WanDit, dit_config, text_config, vae_config};

/// Loads what `config` names, where there is room for it, and for a stream's history if `config` gives its size;
/// `interrupt` is honoured before each tensor.
pub(super) fn parts(
    config: &GeneratorConfig,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Parts> {
    config.validate()?;
    let devices = config.devices.distinct();
    let opened = devices.iter().map(|&device| open(device)).collect::<Result<Vec<_>>>()?;
    let decoder_device = match config.decoder_device {
        Some(device) => on(device, &devices, &opened).map_or_else(|| open(device), Ok)?,
        None => opened[0].clone(),
    };
    // Denoising is queued far ahead: frames would come behind a tick that they have nothing to do with.
    let decoder_device =
        device::beside(&decoder_device).map_err(|source| failed(&decoder_device, source))?;
    let load = Load { config, interrupt, progress, device: opened[0].clone() };
    let shapes = Shapes::of(config).map_err(|cause| load.failed(cause))?;
    let sources = Sources::open(config, &shapes)?;
    let networks = load.networks(&shapes, &opened, &decoder_device);
    load.check_dtypes(&networks)?;
    progress.add_total(networks.iter().map(|network| network.numbers).sum());
    room::check(&[networks, load.history(&opened)?].concat(), &|| interrupt.is_raised())?;
    let text = load.text(sources.text)?.into();
    let replicas = opened.into_iter().map(|device| load.on(device).model(sources.dit.clone()));
    let replicas = replicas.collect::<Result<Vec<_>>>()?;
    let models = config.devices.iter().filter_map(|&device| on(device, &devices, &replicas));
    let models = models.collect();
    let decoder = load.on(decoder_device.clone()).decoder(sources.decoder)?.into();
    for device in replicas.iter().map(|model| model.device()).chain([&decoder_device]) {
        device::keep_memory(device).map_err(|source| failed(device, source))?;
    }
    Ok(Parts { text, models, decoder })
}

fn open(device: DeviceSpec) -> Result<Device> {
    device.open().map_err(|source| Error::Device { device: device.to_string(), source })
}

fn failed(device: &Device, source: candle_core::Error) -> Error {
    Error::Device { device: DeviceSpec::from(device).to_string(), source }
}

/// What there is on one of the devices.
fn on<T: Clone>(device: DeviceSpec, devices: &[DeviceSpec], there: &[T]) -> Option<T> {
    devices.iter().position(|other| *other == device).and_then(|place| there.get(place).cloned())
}

struct Load<'a> {
    config: &'a GeneratorConfig,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    /// Where networks go.
    device: Device,
}

/// Sizes of a decoder, of either kind.
enum DecoderConfig {
    Wan(WanVaeConfig),
    Tiny(TinyVaeConfig),
}

impl DecoderConfig {
    fn of(config: &GeneratorConfig) -> Self {
        match config.decoder {
            Decoder::Full => Self::Wan(vae_config(config.model.architecture)),
            Decoder::Light => Self::Wan(WanVaeConfig::light()),
            Decoder::Tiny => Self::Tiny(TinyVaeConfig::taew2_1()),
            Decoder::LightTiny => Self::Tiny(TinyVaeConfig::light()),
        }
    }
}

/// What the networks ask for.
struct Shapes {
    text: Vec<TensorShape>,
    dit: Vec<TensorShape>,
    decoder: Vec<TensorShape>,
    /// What lies in the decoder's file for nobody.
    encoder: Vec<TensorShape>,
}

impl Shapes {
    fn of(config: &GeneratorConfig) -> candle_core::Result<Self> {
        let architecture = config.model.architecture;
        let (text, dit) = (text_config(architecture), dit_config(architecture));
        let (decoder, encoder) = match DecoderConfig::of(config) {
            DecoderConfig::Wan(config) => (
                requested(|vb| WanDecoder::new(&config, vb))?,
                requested(|vb| WanEncoder::new(&config, vb))?,
            ),
            DecoderConfig::Tiny(config) => (
                requested(|vb| TinyDecoder::new(&config, vb))?,
                requested(|vb| TinyEncoder::new(&config, vb))?,
            ),
        };
        let text = match config.weights {
            WeightsSource::Random { .. } => Vec::new(),
            WeightsSource::Files(_) => requested(|vb| Umt5Encoder::new(&text, vb))?,
        };
        Ok(Self { text, dit: requested(|vb| WanDit::new(&dit, vb))?, decoder, encoder })
    }

    /// Kernels of the tiny decoder that grow frames; stored for more frames, the last ones count.
    fn growing(&self) -> impl Iterator<Item = &TensorShape> {
        let grows = |name: &str| name.starts_with("decoder.") && name.ends_with(".conv.weight");
        self.decoder.iter().filter(move |tensor| grows(&tensor.name))
    }
}

/// Where all networks' tensors come from; of what is large, no more than headers have been read.
struct Sources {
    text: Text,
    dit: Source,
    decoder: Source,
}

/// Random weights have no language.
enum Text {
    Random(u64),
    Files(Box<PromptTokenizer>, Checkpoint),
}

/// Where one network's tensors come from.
#[derive(Clone)]
enum Source {
    Random(u64),
    Files(Checkpoint),
}

impl Sources {
    /// Refuses files that are not the networks' before the first of them is read.
    fn open(config: &GeneratorConfig, shapes: &Shapes) -> Result<Self> {
        let paths = match &config.weights {
            &WeightsSource::Random { seed } => {
                let source = Source::Random(seed);
                return Ok(Self { text: Text::Random(seed), dit: source.clone(), decoder: source });
            }
            WeightsSource::Files(paths) => paths,
        };
        let places = paths.find(&config.model, config.decoder)?;
        places.remarks.iter().for_each(|remark| log::warn!("{remark}"));
        let text_len = dit_config(config.model.architecture).text_len;
        let tokenizer = PromptTokenizer::from_bytes(&places.tokenizer.read()?, text_len);
        let tokenizer = tokenizer.map_err(|cause| unusable(&places.tokenizer, &cause))?;
        let text_encoder = Checkpoint::open(&places.text_encoder)?;
        text_encoder.check(&shapes.text, &[])?;
        let dit = Checkpoint::open(&places.dit)?;
        dit.check(&shapes.dit, &[])?;
        let mut loras = places.loras.iter();
        let dit = loras.try_fold(dit, |dit, lora| dit.with_lora(lora, LORA_STRENGTH))?;
        let decoder = Checkpoint::open(&places.decoder)?.with_last_rows(shapes.growing());
        decoder.check(&shapes.decoder, &shapes.encoder)?;
        let text = Text::Files(tokenizer.into(), text_encoder);
        Ok(Self { text, dit: Source::Files(dit), decoder: Source::Files(decoder) })
    }
}

impl Load<'_> {
    /// The same on another device.
    fn on(&self, device: Device) -> Self {
        Self { device, ..*self }
    }

    /// Devices have to know the numbers that they are to compute with.
    fn check_dtypes(&self, networks: &[Share]) -> Result<()> {
        for Share { device, .. } in networks.iter().filter(|share| share.dtype == DType::BF16) {
            let lack = device::lacks_bf16(device);
            if let Some(lack) = lack.map_err(|source| failed(device, source))? {
                let dtype = self.config.dtype;
                let reason = format!("got {dtype:?}, expected F32: bf16 needs 8.0, and {lack}");
                return Err(Error::config("dtype", reason));
            }
        }
        Ok(())
    }

    /// Weights: random ones have no text encoder.
    fn networks(&self, shapes: &Shapes, devices: &[Device], decoder_device: &Device) -> Vec<Share> {
        let share = |device: &Device, dtype, shapes: &[TensorShape]| {
            let numbers = |tensor: &TensorShape| tensor.shape.iter().product::<usize>();
            Share { device: device.clone(), numbers: shapes.iter().map(numbers).sum(), dtype }
        };
        let has_text = !shapes.text.is_empty();
        let text = has_text.then(|| share(&self.device, self.text_dtype(), &shapes.text));
        let dit = |device: &Device| share(device, self.on(device.clone()).dtype(), &shapes.dit);
        let dtype = self.on(decoder_device.clone()).decoder_dtype();
        let decoder = share(decoder_device, dtype, &shapes.decoder);
        text.into_iter().chain(devices.iter().map(dit)).chain([decoder]).collect()
    }

    /// That of the stream which this is loaded for, where its frames' size is known.
    fn history(&self, devices: &[Device]) -> Result<Vec<Share>> {
        if self.config.size.is_none() {
            return Ok(Vec::new());
        }
        let spec = dit_config(self.config.model.architecture).spec();
        let spec = spec.map_err(|cause| self.failed(cause))?;
        Ok(room::history(self.config, &spec, devices))
    }

    /// That of random weights only tells words apart.
    fn text(&self, text: Text) -> Result<Box<dyn TextEncoder>> {
        let architecture = self.config.model.architecture;
        match text {
            Text::Random(seed) => {
                let WanConfig { text_dim: dim, text_len, .. } = dit_config(architecture);
                let (dtype, device) = (DType::F32, self.device.clone());
                Ok(Box::new(RandomTextEncoder { dim, text_len, seed, dtype, device }))
            }
            Text::Files(tokenizer, checkpoint) => {
                let (config, source) = (text_config(architecture), Source::Files(checkpoint));
                let build = |vb| Umt5Encoder::new(&config, vb);
                let model = self.network(source, self.text_dtype(), build)?;
                Ok(Box::new(PromptEncoder::new(*tokenizer, model)))
            }
        }
    }

    /// Upstream runs its large encoder in bf16 everywhere, and in f32 it would take 23 GB.
    fn text_dtype(&self) -> DType {
        match self.config.dtype {
            Dtype::F32 => DType::F32,
            _ => DType::BF16,
        }
    }

    /// Convolutions in 16-bit floats are for GPUs only.
    fn decoder_dtype(&self) -> DType {
        match DecoderConfig::of(self.config) {
            _ if self.device.is_cpu() => DType::F32,
            DecoderConfig::Wan(config) => config.dtype(self.dtype()),
            DecoderConfig::Tiny(config) => config.dtype(self.dtype()),
        }
    }

    /// A replica of the transformer.
    fn model(&self, source: Source) -> Result<Arc<dyn VideoModel>> {
        let config = dit_config(self.config.model.architecture);
        let build = |vb| WanDit::new(&config, vb);
        Ok(Arc::new(self.network(source, self.dtype(), build)?))
    }

    fn dtype(&self) -> DType {
        self.config.dtype_on(&self.device)
    }

    fn decoder(&self, source: Source) -> Result<Box<dyn FrameDecoder>> {
        let dtype = self.decoder_dtype();
        match DecoderConfig::of(self.config) {
            DecoderConfig::Wan(config) => {
                let decoder = self.network(source, dtype, |vb| WanDecoder::new(&config, vb))?;
                Ok(Box::new(WanFrameDecoder::new(Arc::new(decoder))))
            }
            DecoderConfig::Tiny(config) => {
                let decoder = self.network(source, dtype, |vb| TinyDecoder::new(&config, vb))?;
                Ok(Box::new(TinyFrameDecoder::new(Arc::new(decoder))))
            }
        }
    }

    fn network<T>(
        &self,
        source: Source,
        dtype: DType,
        build: impl FnOnce(VarBuilder<'static>) -> candle_core::Result<T>,
    ) -> Result<T> {
        let vb = match source {
            Source::Random(seed) => checkpoint::random(seed, dtype, &self.device),
            Source::Files(checkpoint) => {
                let checkpoint = checkpoint.with_interrupt(self.interrupt.clone());
                self.progress.count(checkpoint, dtype, &self.device)
            }
        };
        build(vb).map_err(|cause| self.failed(cause))
    }

    fn failed(&self, source: candle_core::Error) -> Error {
        match self.interrupt.check() {
            Err(_) => Error::Cancelled,
            Ok(()) => failed(&self.device, source),
        }
    }
}

/// LoRAs that belong to a model are part of it.
const LORA_STRENGTH: f64 = 1.0;

fn unusable(place: &Place, cause: &candle_core::Error) -> Error {
    let (path, reason) = (place.to_string().into(), cause.to_string());
    Error::Weights(checkpoint::Error::Format { path, reason })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};
    use std::sync::mpsc;

    use candle_core::Tensor;

    use super::*;
    use crate::checkpoint::Manifest;
    use crate::generator::WeightPaths;

    fn pocket() -> GeneratorConfig {
        GeneratorConfig::new(Manifest::named("pocket").unwrap())
    }

    fn write(path: PathBuf, tensors: impl Iterator<Item = (String, Tensor)>) -> PathBuf {
        candle_core::safetensors::save(&tensors.collect::<HashMap<_, _>>(), &path).unwrap();
        path
    }

    fn zeros(path: PathBuf, tensors: &[TensorShape]) -> PathBuf {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
        write(path, tensors.iter().map(|tensor| (tensor.name.clone(), zeros(&tensor.shape))))
    }

    /// Why they are refused, and how many reports of progress come before.
    fn refusal(paths: WeightPaths) -> (String, usize) {
        let config = GeneratorConfig { weights: WeightsSource::Files(paths), ..pocket() };
        let (told, news) = mpsc::channel();
        let progress = Progress::new(move |percent| told.send(percent).unwrap());
        let parts = parts(&config, &Interrupt::default(), &progress).map(|_| ());
        (parts.unwrap_err().to_string(), news.try_iter().count())
    }

    #[test]
    fn files_that_do_not_fit_are_refused_before_any_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let shapes = Shapes::of(&pocket()).unwrap();
        let dit = zeros(path("dit.safetensors"), &shapes.dit);
        let part = zeros(path("part.safetensors"), &shapes.dit[1..]);
        let named = |dit: &Path, decoder: Option<&Path>| {
            let (dit, decoder) = (Some(dit.into()), decoder.map(Path::to_owned));
            WeightPaths { dit, decoder, ..WeightPaths::default() }
        };
        let none = path("none.pt");
        let lora = WeightPaths { loras: vec![none.clone()], ..named(&dit, None) };
        for (paths, reason) in [
            (named(&none, None), "none.pt: cannot be read"),
            (named(&part, None), "part.safetensors: 1 tensor missing ("),
            (lora, "none.pt: cannot be read"),
            (named(&dit, Some(&none)), "none.pt: cannot be read"),
            (named(&dit, Some(&dit)), "dit.safetensors: "),
        ] {
            let (error, reports) = refusal(paths);
            assert!(error.contains(reason), "expected {reason}, got {error}");
            assert_eq!(reports, 0, "{error}");
        }
    }

    /// What a stream's first latents become by the tiny decoder in a file.
    fn tiny_frames(dit: &Path, decoder: &Path) -> Result<Vec<f32>> {
        let (dit, decoder) = (Some(dit.into()), Some(decoder.into()));
        let weights = WeightsSource::Files(WeightPaths { dit, decoder, ..WeightPaths::default() });
        let config = GeneratorConfig { weights, decoder: Decoder::Tiny, ..pocket() };
        let (interrupt, progress) = (Interrupt::default(), Progress::new(|_| {}));
        let device = Device::Cpu;
        let load = Load { config: &config, interrupt: &interrupt, progress: &progress, device };
        let sources = Sources::open(&config, &Shapes::of(&config).unwrap())?;
        let latents = checkpoint::random(2, DType::F32, &Device::Cpu).get((2, 16, 2, 3), "latents");
        let frames = load.decoder(sources.decoder)?.step(&latents.unwrap(), &interrupt);
        Ok(frames.unwrap().flatten_all().unwrap().to_vec1().unwrap())
    }

    #[test]
    fn kernels_stored_for_more_frames_give_the_last_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let shapes = Shapes::of(&GeneratorConfig { decoder: Decoder::Tiny, ..pocket() }).unwrap();
        let dit = zeros(path("dit.safetensors"), &shapes.dit);
        let names: Vec<_> = shapes.growing().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, [7, 13, 19].map(|layer| format!("decoder.{layer}.conv.weight")));
        let vb = checkpoint::random(1, DType::F32, &Device::Cpu);
        let get = |tensor: &TensorShape, name: &str| {
            vb.get(tensor.shape.as_slice(), name).unwrap().to_dtype(DType::F16).unwrap()
        };
        let tensors =
            shapes.decoder.iter().map(|tensor| (tensor.name.clone(), get(tensor, &tensor.name)));
        let plain = write(path("plain.safetensors"), tensors.clone());
        let tensors = tensors.map(|(name, kept)| {
            let tensor = shapes.growing().find(|tensor| tensor.name == name);
            let more = tensor.map(|tensor| Tensor::cat(&[&get(tensor, "more"), &kept], 0).unwrap());
            (name, more.unwrap_or(kept))
        });
        let more = write(path("more.safetensors"), tensors);
        let frames = tiny_frames(&dit, &plain).unwrap();
        assert!(frames == tiny_frames(&dit, &more).unwrap());
        assert!(frames.iter().any(|x| *x != 0.0));
        let error = tiny_frames(&dit, &dit).unwrap_err().to_string();
        assert!(error.contains("not expected"), "{error}");
    }
}
