//! Configuration to networks: the only place that names a family.

use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::Parts;
use super::config::{Decoder, Dtype, GeneratorConfig};
use super::error::{Error, Result};
use super::progress::Progress;
use super::room::{self, Share};
use super::weights::{Places, WeightsSource};
use crate::cascade::{HistoryPolicy, Timetable};
use crate::checkpoint::{self, Checkpoint, Place, Preset, TensorShape, requested};
use crate::device::{self, DeviceSpec};
use crate::model::{FrameDecoder, Interrupt, TextEncoder, VideoModel};
use crate::wan::text::{PromptEncoder, PromptTokenizer, RandomTextEncoder, Umt5Encoder};
use crate::wan::tiny_vae::{TinyDecoder, TinyEncoder, TinyFrameDecoder, TinyVaeConfig};
use crate::wan::vae::{WanDecoder, WanEncoder, WanFrameDecoder, WanVaeConfig};
use crate::wan::{WanConfig, WanDit, dit_config, text_config, vae_config};

/// Loads what `config` names; `interrupt` is honoured before each tensor.
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
    let weights = match &config.weights {
        &WeightsSource::Random { seed } => Weights::Random(seed),
        WeightsSource::Files(paths) => Weights::Files(paths.find(&config.model, config.decoder)?),
    };
    let device = opened[0].clone();
    let load = Load { config, weights: &weights, interrupt, progress, device };
    let networks = load.networks(&opened, &decoder_device)?;
    load.check_dtypes(&networks)?;
    progress.add_total(networks.iter().map(|network| network.numbers).sum());
    room::check(&[networks, load.histories(&opened)?].concat())?;
    let text = load.text()?.into();
    let replicas = opened.into_iter().map(|device| load.on(device).model());
    let replicas = replicas.collect::<Result<Vec<_>>>()?;
    let models = config.devices.iter().filter_map(|&device| on(device, &devices, &replicas));
    let models = models.collect();
    let decoder = load.on(decoder_device.clone()).decoder()?.into();
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
    weights: &'a Weights,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    /// Where networks go.
    device: Device,
}

/// Where all networks' tensors come from.
enum Weights {
    Random(u64),
    Files(Places),
}

/// Sizes of a decoder, of either kind.
enum DecoderConfig {
    Wan(WanVaeConfig),
    Tiny(TinyVaeConfig),
}

/// Where one network's tensors come from.
enum Source {
    Random(u64),
    Files(Checkpoint),
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
    fn networks(&self, devices: &[Device], decoder_device: &Device) -> Result<Vec<Share>> {
        let architecture = self.config.model.architecture;
        let (text, dit) = (text_config(architecture), dit_config(architecture));
        let share = |device: &Device, dtype, shapes: &[TensorShape]| {
            let numbers = |tensor: &TensorShape| tensor.shape.iter().product::<usize>();
            Share { device: device.clone(), numbers: shapes.iter().map(numbers).sum(), dtype }
        };
        let mut networks = Vec::new();
        if let Weights::Files(_) = self.weights {
            let shapes = self.shapes(|vb| Umt5Encoder::new(&text, vb))?;
            networks.push(share(&self.device, self.text_dtype(), &shapes));
        }
        let shapes = self.shapes(|vb| WanDit::new(&dit, vb))?;
        for device in devices {
            networks.push(share(device, self.on(device.clone()).dtype(), &shapes));
        }
        let dtype = self.on(decoder_device.clone()).decoder_dtype();
        networks.push(share(decoder_device, dtype, &self.decoder_shapes()?));
        Ok(networks)
    }

    /// Keys and values of sink, window and blocks in flight, once they are full.
    fn histories(&self, devices: &[Device]) -> Result<Vec<Share>> {
        let spec = dit_config(self.config.model.architecture).spec();
        let spec = spec.map_err(|cause| self.failed(cause))?;
        let Preset { window, sink, frames_per_block, .. } = self.config.model.preset;
        let size = self.config.frame_size();
        let tokens = |side: u32| side as usize / spec.size_multiple();
        let of_frame =
            2 * spec.layers * spec.heads * spec.head_dim * tokens(size.width) * tokens(size.height);
        let share = |(device, name): (&Device, DeviceSpec)| {
            let blocks = (sink + window) * self.histories_of(name) + self.config.cascade_width;
            let numbers = blocks * frames_per_block * of_frame;
            Share { device: device.clone(), numbers, dtype: self.on(device.clone()).dtype() }
        };
        Ok(devices.iter().zip(self.config.devices.distinct()).map(share).collect())
    }

    /// Histories that the workers of a device keep.
    fn histories_of(&self, device: DeviceSpec) -> usize {
        let GeneratorConfig { model, history_policy, devices, cascade_width, .. } = self.config;
        let steps = model.preset.denoising_steps.len();
        let timetable = Timetable::with_width(*history_policy, steps, *cascade_width);
        match history_policy {
            HistoryPolicy::Clean => 1, // several workers share keys and values
            HistoryPolicy::StageMatched => {
                let worker = |&step: &usize| timetable.worker_of(step, devices.len());
                (0..steps).filter(|step| devices.get(worker(step)) == Some(&device)).count()
            }
        }
    }

    fn decoder_shapes(&self) -> Result<Vec<TensorShape>> {
        match self.decoder_config() {
            DecoderConfig::Wan(config) => self.shapes(|vb| WanDecoder::new(&config, vb)),
            DecoderConfig::Tiny(config) => self.shapes(|vb| TinyDecoder::new(&config, vb)),
        }
    }

    /// Random weights have no language: their text encoder only tells words apart.
    fn text(&self) -> Result<Box<dyn TextEncoder>> {
        let WanConfig { text_dim: dim, text_len, .. } = dit_config(self.config.model.architecture);
        let places = match self.weights {
            Weights::Files(places) => places,
            &Weights::Random(seed) => {
                let (dtype, device) = (DType::F32, self.device.clone());
                return Ok(Box::new(RandomTextEncoder { dim, text_len, seed, dtype, device }));
            }
        };
        let tokenizer = PromptTokenizer::from_bytes(&places.tokenizer.read()?, text_len);
        let tokenizer = tokenizer.map_err(|cause| unusable(&places.tokenizer, &cause))?;
        let config = text_config(self.config.model.architecture);
        let source = Source::Files(Checkpoint::open(&places.text_encoder)?);
        let build = |vb| Umt5Encoder::new(&config, vb);
        let model = self.network(source, self.text_dtype(), &[], build)?;
        Ok(Box::new(PromptEncoder::new(tokenizer, model)))
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
        if self.device.is_cpu() { DType::F32 } else { self.dtype() }
    }

    /// A replica of the transformer.
    fn model(&self) -> Result<Arc<dyn VideoModel>> {
        let config = dit_config(self.config.model.architecture);
        let source = self.source(|places| {
            let dit = Checkpoint::open(&places.dit)?;
            places.loras.iter().try_fold(dit, |dit, lora| dit.with_lora(lora, LORA_STRENGTH))
        })?;
        let build = |vb| WanDit::new(&config, vb);
        Ok(Arc::new(self.network(source, self.dtype(), &[], build)?))
    }

    fn dtype(&self) -> DType {
        match self.config.dtype {
            Dtype::Auto if self.device.is_cpu() => DType::F32,
            Dtype::Auto | Dtype::Bf16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
        }
    }

    fn decoder(&self) -> Result<Box<dyn FrameDecoder>> {
        match self.decoder_config() {
            DecoderConfig::Wan(config) => self.wan_decoder(&config),
            DecoderConfig::Tiny(config) => self.tiny_decoder(&config),
        }
    }

    fn decoder_config(&self) -> DecoderConfig {
        match self.config.decoder {
            Decoder::Full => DecoderConfig::Wan(vae_config(self.config.model.architecture)),
            Decoder::Light => DecoderConfig::Wan(WanVaeConfig::light()),
            Decoder::Tiny => DecoderConfig::Tiny(TinyVaeConfig::taew2_1()),
            Decoder::LightTiny => DecoderConfig::Tiny(TinyVaeConfig::light()),
        }
    }

    fn wan_decoder(&self, config: &WanVaeConfig) -> Result<Box<dyn FrameDecoder>> {
        let encoder = self.shapes(|vb| WanEncoder::new(config, vb))?;
        let source = self.source(|places| Checkpoint::open(&places.decoder))?;
        let build = |vb| WanDecoder::new(config, vb);
        let decoder = self.network(source, self.decoder_dtype(), &encoder, build)?;
        Ok(Box::new(WanFrameDecoder::new(Arc::new(decoder))))
    }

    fn tiny_decoder(&self, config: &TinyVaeConfig) -> Result<Box<dyn FrameDecoder>> {
        let encoder = self.shapes(|vb| TinyEncoder::new(config, vb))?;
        let source = self.source(|places| Checkpoint::open(&places.decoder))?;
        let build = |vb| TinyDecoder::new(config, vb);
        let decoder = self.network(source, self.decoder_dtype(), &encoder, build)?;
        Ok(Box::new(TinyFrameDecoder::new(Arc::new(decoder))))
    }

    fn source(
        &self,
        open: impl FnOnce(&Places) -> checkpoint::Result<Checkpoint>,
    ) -> Result<Source> {
        Ok(match self.weights {
            Weights::Random(seed) => Source::Random(*seed),
            Weights::Files(places) => Source::Files(open(places)?),
        })
    }

    /// Builds a network from weights that have all its tensors and, besides, only `known` ones.
    fn network<T>(
        &self,
        source: Source,
        dtype: DType,
        known: &[TensorShape],
        build: impl Fn(VarBuilder<'static>) -> candle_core::Result<T>,
    ) -> Result<T> {
        let vb = match source {
            Source::Random(seed) => checkpoint::random(seed, dtype, &self.device),
            Source::Files(checkpoint) => {
                checkpoint.check(&self.shapes(&build)?, known)?;
                let checkpoint = checkpoint.with_interrupt(self.interrupt.clone());
                self.progress.count(checkpoint, dtype, &self.device)
            }
        };
        build(vb).map_err(|cause| self.failed(cause))
    }

    fn shapes<T>(
        &self,
        build: impl FnOnce(VarBuilder<'static>) -> candle_core::Result<T>,
    ) -> Result<Vec<TensorShape>> {
        requested(build).map_err(|cause| self.failed(cause))
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
    use super::*;
    use crate::checkpoint::Manifest;

    /// Blocks of keys and values on each device.
    fn blocks(policy: HistoryPolicy, cascade_width: usize, devices: &str) -> Vec<usize> {
        let mut config = GeneratorConfig::new(Manifest::named("pocket").unwrap());
        config.history_policy = policy;
        config.cascade_width = cascade_width;
        config.devices = devices.parse().unwrap();
        let (interrupt, progress) = (Interrupt::default(), Progress::new(|_| {}));
        let load = Load {
            config: &config,
            weights: &Weights::Random(0),
            interrupt: &interrupt,
            progress: &progress,
            device: Device::Cpu,
        };
        let devices = vec![Device::Cpu; config.devices.distinct().len()];
        let of_block = 2 * 6 * 128 * 3 * 84; // keys and values, layers, width, frames, tokens
        let shares = load.histories(&devices).unwrap();
        shares.iter().map(|share| share.numbers / of_block).collect()
    }

    #[test]
    fn histories_by_step_are_all_counted() {
        use HistoryPolicy::{Clean, StageMatched};
        assert_eq!(blocks(Clean, 1, "cpu"), [3]);
        assert_eq!(blocks(Clean, 5, "cpu,cuda:0,cuda:0"), [7, 7]);
        assert_eq!(blocks(StageMatched, 4, "cpu"), [4 * 2 + 4]);
        assert_eq!(blocks(StageMatched, 4, "cpu,cuda:0"), [2 * 2 + 4; 2]);
        assert_eq!(blocks(StageMatched, 4, "cpu,cuda:0,cuda:0,cuda:0"), [2 + 4, 3 * 2 + 4]);
    }
}
