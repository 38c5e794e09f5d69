//! Configuration to networks: the only place that names a family.

use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::Parts;
use super::config::{Decoder, Dtype, GeneratorConfig};
use super::error::{Error, Result};
use super::progress::Progress;
use super::weights::{Places, WeightsSource};
use crate::checkpoint::{self, Checkpoint, Place, TensorShape, requested};
use crate::model::{FrameDecoder, Interrupt, TextEncoder};
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
    let device = config.device.open();
    let device =
        device.map_err(|source| Error::Device { device: config.device.to_string(), source })?;
    let weights = match &config.weights {
        &WeightsSource::Random { seed } => Weights::Random(seed),
        WeightsSource::Files(paths) => Weights::Files(paths.find(&config.model, config.decoder)?),
    };
    let dtype = dtype(config.dtype, &device);
    let load = Load { config, weights, interrupt, progress, dtype, device };
    load.count_all()?;
    let (text, model) = (load.text()?, Arc::new(load.model()?));
    Ok(Parts { text: text.into(), model, decoder: load.decoder()?.into() })
}

fn dtype(asked: Dtype, device: &Device) -> DType {
    match asked {
        Dtype::Auto if device.is_cpu() => DType::F32,
        Dtype::Auto | Dtype::Bf16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
    }
}

struct Load<'a> {
    config: &'a GeneratorConfig,
    weights: Weights,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    device: Device,
    dtype: DType,
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
    /// Says how much there will be to load.
    fn count_all(&self) -> Result<()> {
        let architecture = self.config.model.architecture;
        let (text, dit) = (text_config(architecture), dit_config(architecture));
        let networks = [
            self.shapes(|vb| Umt5Encoder::new(&text, vb))?,
            self.shapes(|vb| WanDit::new(&dit, vb))?,
            self.decoder_shapes()?,
        ];
        let numbers = |tensor: &TensorShape| tensor.shape.iter().product::<usize>();
        self.progress.add_total(networks.iter().flatten().map(numbers).sum());
        Ok(())
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
        let places = match &self.weights {
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
        if self.device.is_cpu() { DType::F32 } else { self.dtype }
    }

    fn model(&self) -> Result<WanDit> {
        let config = dit_config(self.config.model.architecture);
        let source = self.source(|places| {
            let dit = Checkpoint::open(&places.dit)?;
            places.loras.iter().try_fold(dit, |dit, lora| dit.with_lora(lora, LORA_STRENGTH))
        })?;
        self.network(source, self.dtype, &[], |vb| WanDit::new(&config, vb))
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
        Ok(match &self.weights {
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
            Ok(()) => Error::Device { device: self.config.device.to_string(), source },
        }
    }
}

/// LoRAs that belong to a model are part of it.
const LORA_STRENGTH: f64 = 1.0;

fn unusable(place: &Place, cause: &candle_core::Error) -> Error {
    let (path, reason) = (place.to_string().into(), cause.to_string());
    Error::Weights(checkpoint::Error::Format { path, reason })
}
