//! The auto-encoders on their plain path, and the law that a stream may be cut anywhere.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, safetensors};
use candle_nn::VarBuilder;
use gstblockcascade::checkpoint;
use gstblockcascade::model::{FrameDecoder, Interrupt};
use gstblockcascade::wan::tiny_vae::{TinyDecoder, TinyEncoder, TinyFrameDecoder, TinyVaeConfig};
use gstblockcascade::wan::vae::{WanDecoder, WanEncoder, WanFrameDecoder, WanVaeConfig};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Largest difference from the golden tensor, relative to its largest number.
const TOLERANCE: f32 = 1e-4;

/// Largest difference between two ways to cut a stream: only the order of a sum may change.
const SPLIT_TOLERANCE: f32 = 2e-6;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn expected(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(safetensors::load(fixture(name).join("expected.safetensors"), &Device::Cpu)?)
}

fn config(name: &str) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(fixture(name).join("config.json"))?)?)
}

/// Largest difference, relative to the largest expected number where that exceeds one.
fn difference(got: &Tensor, expected: &Tensor) -> Result<f32> {
    ensure!(got.dims() == expected.dims(), "got {:?} expected {:?}", got.shape(), expected.shape());
    let scale = expected.abs()?.max_all()?.to_scalar::<f32>()?.max(1.0);
    let difference = (got - expected)?.abs()?.flatten_all()?.to_vec1::<f32>()?;
    // A NaN is a difference, which a plain maximum may hide.
    let difference = difference.into_iter().map(|x| if x.is_nan() { f32::INFINITY } else { x });
    Ok(difference.fold(0.0, f32::max) / scale)
}

#[test]
fn a_nan_is_a_difference() -> Result<()> {
    let tensor = |xs: [f32; 3]| Tensor::new(&xs, &Device::Cpu);
    let (good, bad) = (tensor([1.0, 2.0, 3.0])?, tensor([1.0, f32::NAN, 3.0])?);
    assert_eq!(difference(&good, &good)?, 0.0);
    assert!(difference(&bad, &good)? > 1.0 && difference(&good, &bad)? > 1.0);
    Ok(())
}

/// `(frames, height, width, 3)` as the fixtures have it.
fn channels_first(frames: &Tensor) -> Result<Tensor> {
    Ok(frames.permute((0, 3, 1, 2))?.contiguous()?)
}

fn channels_last(frames: &Tensor) -> Result<Tensor> {
    Ok(frames.permute((0, 2, 3, 1))?.contiguous()?)
}

fn wan(dtype: DType) -> Result<(WanDecoder, WanEncoder)> {
    let config: WanVaeConfig = serde_json::from_value(config("vae")?)?;
    let weights = safetensors::load(fixture("vae").join("model.safetensors"), &Device::Cpu)?;
    let vb = VarBuilder::from_tensors(weights, dtype, &Device::Cpu);
    Ok((WanDecoder::new(&config, vb.clone())?, WanEncoder::new(&config, vb)?))
}

/// The embedded model's sizes, on random weights: channels double at every size.
fn pocket() -> Result<(WanDecoder, WanEncoder)> {
    let config = WanVaeConfig::pocket();
    let vb = checkpoint::random(0, DType::F32, &Device::Cpu);
    Ok((WanDecoder::new(&config, vb.clone())?, WanEncoder::new(&config, vb)?))
}

/// The weights that the fixture's `config.json` describes.
fn tiny_weights() -> Result<HashMap<String, Tensor>> {
    let config = config("taehv")?;
    let order: Vec<(String, Vec<usize>)> = serde_json::from_value(config["tensor_order"].clone())?;
    let tensor = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let len: usize = shape.iter().product();
        let amp = if shape.len() > 1 { 1.6 / ((len / shape[0]) as f64).sqrt() } else { 0.05 };
        let wave = |k: f64| amp * (0.731 * k + 1.37 * i as f64 + 0.5 * (0.0173 * k).sin()).sin();
        let data: Vec<f32> = (0..len).map(|k| wave(k as f64) as f32).collect();
        Ok((name, Tensor::from_vec(data, shape, &Device::Cpu)?))
    };
    order.into_iter().enumerate().map(tensor).collect()
}

fn tiny(config: &TinyVaeConfig) -> Result<(TinyDecoder, TinyEncoder)> {
    let vb = VarBuilder::from_tensors(tiny_weights()?, DType::F32, &Device::Cpu);
    Ok((TinyDecoder::new(config, vb.clone())?, TinyEncoder::new(config, vb)?))
}

/// Numbers in `-1..1`, the same each time.
fn numbers(shape: &[usize]) -> Result<Tensor> {
    let len: usize = shape.iter().product();
    let data: Vec<f32> = (0..len).map(|i| (i as f64 * 0.7391).sin() as f32).collect();
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// Feeds `xs` to `step` in pieces of the given lengths, the rest last, and joins what comes out.
fn in_pieces(
    xs: &Tensor,
    pieces: &[usize],
    mut step: impl FnMut(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Tensor> {
    let (mut start, mut out) = (0, Vec::new());
    for &piece in pieces.iter().chain(std::iter::once(&usize::MAX)) {
        let len = piece.min(xs.dim(0)? - start);
        if len > 0 {
            out.push(step(&xs.narrow(0, start, len)?)?);
            start += len;
        }
    }
    Ok(Tensor::cat(&out, 0)?)
}

fn decode(decoder: &WanDecoder, latents: &Tensor, pieces: &[usize]) -> Result<Tensor> {
    let mut state = decoder.state();
    in_pieces(latents, pieces, |xs| decoder.step(&mut state, xs, &Interrupt::default()))
}

fn encode(encoder: &WanEncoder, frames: &Tensor, pieces: &[usize]) -> Result<Tensor> {
    let mut state = encoder.state();
    in_pieces(frames, pieces, |xs| encoder.step(&mut state, xs, &Interrupt::default()))
}

/// The plain path: f64 takes it on any machine.
#[test]
fn wan_vae_matches_golden_tensors_on_the_plain_path() -> Result<()> {
    let expected = expected("vae")?;
    let (decoder, encoder) = wan(DType::F64)?;
    let latents = expected["latents"].to_dtype(DType::F64)?;
    let pixels = channels_first(&decode(&decoder, &latents, &[1, 2])?)?.to_dtype(DType::F32)?;
    let rgb = channels_last(&expected["rgb"])?; // in f32: the encoder makes of it what it computes in
    let encoded = encode(&encoder, &rgb, &[])?.to_dtype(DType::F32)?;
    let decoded = difference(&pixels, &expected["pixels_unclamped"])?;
    let encoded = difference(&encoded, &expected["encoded"])?;
    assert!(decoded <= TOLERANCE && encoded <= TOLERANCE, "{decoded:e} {encoded:e}");
    Ok(())
}

/// The transformer leaves f32, whatever the decoder computes in.
#[test]
fn decoders_take_latents_of_another_dtype() -> Result<()> {
    let latents = numbers(&[3, 16, 2, 3])?;
    let run = |mut decoder: Box<dyn FrameDecoder>| -> Result<Tensor> {
        let frames = decoder.step(&latents, &Interrupt::default())?;
        ensure!(frames.dtype() == DType::F32, "frames are {:?}", frames.dtype());
        Ok(frames)
    };
    let wan =
        |dtype| -> Result<Tensor> { run(Box::new(WanFrameDecoder::new(Arc::new(wan(dtype)?.0)))) };
    let tiny = |dtype| -> Result<Tensor> {
        let vb = VarBuilder::from_tensors(tiny_weights()?, dtype, &Device::Cpu);
        let decoder = TinyDecoder::new(&TinyVaeConfig::light(), vb)?;
        run(Box::new(TinyFrameDecoder::new(Arc::new(decoder))))
    };
    assert!(difference(&wan(DType::F64)?, &wan(DType::F32)?)? < TOLERANCE);
    assert!(difference(&tiny(DType::F64)?, &tiny(DType::F32)?)? < TOLERANCE);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn wan_decoder_may_be_cut_anywhere(pieces in prop::collection::vec(1usize..4, 0..6)) {
        let run = |(decoder, _): (WanDecoder, WanEncoder)| -> Result<f32> {
            let latents = numbers(&[7, 16, 3, 5])?;
            difference(&decode(&decoder, &latents, &pieces)?, &decode(&decoder, &latents, &[])?)
        };
        for network in [wan(DType::F32), pocket()] {
            let difference = network.and_then(run);
            let difference = difference.map_err(|e| TestCaseError::fail(format!("{e:#}")))?;
            prop_assert!(difference <= SPLIT_TOLERANCE, "{difference:e}");
        }
    }

    #[test]
    fn wan_encoder_may_be_cut_at_any_latent(pieces in prop::collection::vec(1usize..4, 0..4)) {
        let run = |(_, encoder): (WanDecoder, WanEncoder)| -> Result<f32> {
            let frames = numbers(&[21, 24, 40, 3])?;
            let first = pieces.first().map(|n| 4 * n - 3);
            let pieces: Vec<_> =
                first.into_iter().chain(pieces.iter().skip(1).map(|n| 4 * n)).collect();
            difference(&encode(&encoder, &frames, &pieces)?, &encode(&encoder, &frames, &[])?)
        };
        for network in [wan(DType::F32), pocket()] {
            let difference = network.and_then(run);
            let difference = difference.map_err(|e| TestCaseError::fail(format!("{e:#}")))?;
            prop_assert!(difference <= SPLIT_TOLERANCE, "{difference:e}");
        }
    }

    #[test]
    fn tiny_vae_may_be_cut_at_any_latent(pieces in prop::collection::vec(1usize..3, 0..4)) {
        let run = || -> Result<(f32, f32)> {
            let (decoder, encoder) = tiny(&TinyVaeConfig::taew2_1())?;
            let (latents, frames) = (numbers(&[4, 16, 3, 5])?, numbers(&[16, 16, 24, 3])?);
            let decode = |pieces: &[usize]| {
                let mut state = decoder.state();
                in_pieces(&latents, pieces, |xs| decoder.step(&mut state, xs, &Interrupt::default()))
            };
            let encode = |pieces: &[usize]| {
                let pieces: Vec<_> = pieces.iter().map(|n| 4 * n).collect();
                let mut state = encoder.state();
                in_pieces(&frames, &pieces, |xs| encoder.step(&mut state, xs, &Interrupt::default()))
            };
            let decoded = difference(&decode(&pieces)?, &decode(&[])?)?;
            Ok((decoded, difference(&encode(&pieces)?, &encode(&[])?)?))
        };
        let (decoded, encoded) = run().map_err(|e| TestCaseError::fail(format!("{e:#}")))?;
        prop_assert!(decoded.max(encoded) <= SPLIT_TOLERANCE, "{decoded:e} {encoded:e}");
    }
}

/// One frame for a stream's first latent, four for each later one, in range; again after a reset.
#[test]
fn frame_counts_follow_the_latents() -> Result<()> {
    let mut decoder = WanFrameDecoder::new(Arc::new(wan(DType::F32)?.0));
    let mut pocket = WanFrameDecoder::new(Arc::new(pocket()?.0));
    let mut tiny = TinyFrameDecoder::new(Arc::new(tiny(&TinyVaeConfig::light())?.0));
    for decoder in [&mut decoder as &mut dyn FrameDecoder, &mut pocket, &mut tiny] {
        for (latents, frames) in [(1, 1), (1, 4), (2, 8)] {
            let ys = decoder.step(&numbers(&[latents, 16, 2, 3])?, &Interrupt::default())?;
            assert_eq!(ys.dims(), [frames, 16, 24, 3]);
            let (low, high) =
                (ys.min_all()?.to_scalar::<f32>()?, ys.max_all()?.to_scalar::<f32>()?);
            assert!((0.0..=1.0).contains(&low) && (0.0..=1.0).contains(&high), "{low} {high}");
        }
        let mut another = decoder.fresh();
        let ys = another.step(&numbers(&[3, 16, 2, 3])?, &Interrupt::default())?;
        assert_eq!(ys.dim(0)?, 9);
    }
    Ok(())
}

/// A shortcut is there where a layer changes the number of channels, and nowhere else.
#[test]
fn channels_that_double_at_every_size_come_up_without_shortcuts() -> Result<()> {
    let shortcuts = |config: &WanVaeConfig| -> Result<Vec<String>> {
        let tensors = checkpoint::requested(|vb| WanDecoder::new(config, vb))?;
        let names = tensors.into_iter().map(|tensor| tensor.name);
        Ok(names.filter(|name| name.ends_with("shortcut.weight")).collect())
    };
    assert_eq!(shortcuts(&WanVaeConfig::wan21())?, ["decoder.upsamples.4.shortcut.weight"]);
    assert_eq!(shortcuts(&WanVaeConfig::pocket())?, [""; 0]);
    Ok(())
}

/// Decodes a stream, interrupting each call once at a fraction of the time that it takes.
fn interrupted(decoder: &mut dyn FrameDecoder, latents: &Tensor) -> Result<(Tensor, usize)> {
    let (mut frames, mut errors) = (Vec::new(), 0);
    for i in 0..latents.dim(0)? {
        let latent = latents.narrow(0, i, 1)?;
        let interrupt = Interrupt::default();
        if i == 0 {
            interrupt.raise(); // one is sure to be stopped, whatever the machine's speed
        }
        let begun = Instant::now();
        let first = std::thread::scope(|scope| {
            let raise = interrupt.clone();
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(i as u64));
                raise.raise();
            });
            decoder.step(&latent, &interrupt)
        });
        let frame = match first {
            Ok(frame) => frame,
            Err(error) => {
                errors += 1;
                ensure!(error.to_string().contains("interrupted"), "{error} {:?}", begun.elapsed());
                decoder.step(&latent, &Interrupt::default())?
            }
        };
        frames.push(frame);
    }
    Ok((Tensor::cat(&frames, 0)?, errors))
}

#[test]
fn an_interrupted_call_leaves_no_trace() -> Result<()> {
    let latents = numbers(&[6, 16, 8, 8])?;
    let (wan, tiny) = (Arc::new(wan(DType::F32)?.0), Arc::new(tiny(&TinyVaeConfig::taew2_1())?.0));
    let decoders: [(Box<dyn FrameDecoder>, Box<dyn FrameDecoder>); 2] = [
        (Box::new(WanFrameDecoder::new(wan.clone())), Box::new(WanFrameDecoder::new(wan))),
        (Box::new(TinyFrameDecoder::new(tiny.clone())), Box::new(TinyFrameDecoder::new(tiny))),
    ];
    for (mut calm, mut stopped) in decoders {
        let expected = in_pieces(&latents, &[1; 6], |xs| calm.step(xs, &Interrupt::default()))?;
        let (got, errors) = interrupted(stopped.as_mut(), &latents)?;
        assert!(errors > 0, "no call was interrupted");
        assert_eq!(difference(&got, &expected)?, 0.0);
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_errors() -> Result<()> {
    let (decoder, encoder) = wan(DType::F32)?;
    let (tiny_decoder, tiny_encoder) = tiny(&TinyVaeConfig::taew2_1())?;
    let interrupt = Interrupt::default();
    for shape in [[1, 15, 2, 2], [1, 16, 0, 2], [0, 16, 2, 2]] {
        let latents = Tensor::zeros(&shape, DType::F32, &Device::Cpu)?;
        assert!(decoder.step(&mut decoder.state(), &latents, &interrupt).is_err());
        assert!(tiny_decoder.step(&mut tiny_decoder.state(), &latents, &interrupt).is_err());
    }
    for shape in [[4, 16, 16, 3], [1, 16, 17, 3], [1, 16, 16, 4], [0, 16, 16, 3], [1, 0, 16, 3]] {
        let frames = Tensor::zeros(&shape, DType::F32, &Device::Cpu)?;
        assert!(encoder.step(&mut encoder.state(), &frames, &interrupt).is_err(), "{shape:?}");
    }
    for shape in [[3, 16, 16, 3], [4, 16, 17, 3], [4, 16, 16, 4], [0, 16, 16, 3], [4, 0, 16, 3]] {
        let frames = Tensor::zeros(&shape, DType::F32, &Device::Cpu)?;
        let mut state = tiny_encoder.state();
        assert!(tiny_encoder.step(&mut state, &frames, &interrupt).is_err(), "{shape:?}");
    }
    let (latent, foreign) = (numbers(&[1, 16, 2, 2])?, &mut encoder.state());
    let error = decoder.step(foreign, &latent, &interrupt).unwrap_err().to_string();
    assert!(error.contains("expected the state of 15 layers, got one of 11"), "{error}");
    let zeros = || VarBuilder::zeros(DType::F32, &Device::Cpu);
    assert!(WanDecoder::new(&WanVaeConfig::light(), zeros()).is_ok());
    let uneven = WanVaeConfig { mean: vec![0.0; 3], ..WanVaeConfig::light() };
    let error = WanDecoder::new(&uneven, zeros()).unwrap_err().to_string();
    assert!(error.contains("expected 16 means and deviations, got 3 and 16"), "{error}");
    Ok(())
}
