//! The DiT from outside: what one forward of several blocks must not change, and what it refuses.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests, which clippy does not see

use candle_core::{DType, Device, Result, Tensor};
use gstblockcascade::checkpoint;
use gstblockcascade::model::{
    DenoiseInput, Kv, KvExchange, TextContext, TextEmbedding, VideoModel, Visible,
};
use gstblockcascade::wan::{WanConfig, WanDit};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

const CHANNELS: usize = 4;
const TEXT_DIM: usize = 8;
const TEXT_LEN: usize = 9;
const TOLERANCE: f32 = 1e-5;

fn config() -> WanConfig {
    WanConfig {
        dim: 48,
        ffn_dim: 64,
        num_heads: 4,
        num_layers: 3,
        freq_dim: 32,
        text_dim: TEXT_DIM,
        text_len: TEXT_LEN,
        in_dim: CHANNELS,
        ..WanConfig::pocket()
    }
}

fn dit(dtype: DType) -> WanDit {
    WanDit::new(&config(), checkpoint::random(3, dtype, &Device::Cpu)).unwrap()
}

fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let values = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(seed));
    let values: Vec<f32> = values.take(shape.iter().product()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn latent(seed: u64, frames: usize) -> Tensor {
    randn(seed, &[frames, CHANNELS, 4, 6])
}

fn text(model: &WanDit, seed: u64, tokens: usize) -> TextContext {
    model.text_context(&TextEmbedding(randn(seed, &[tokens, TEXT_DIM]))).unwrap()
}

/// Every block sees itself only; keeps what was offered.
#[derive(Default)]
struct Apart(Vec<Vec<Kv>>);

impl KvExchange for Apart {
    fn offer(&mut self, _: usize, own: Vec<Kv>) -> Result<Visible<Option<Kv>>> {
        self.0.push(own.clone());
        Ok(Visible::Each(own.into_iter().map(|kv| vec![kv]).collect()).into())
    }
}

/// One block under one text, from frame 0.
fn flow(model: &WanDit, latent: &Tensor, timesteps: &[f64], text: &TextContext) -> Result<Tensor> {
    let block = DenoiseInput { latent, first_frame: 0, timesteps, text };
    Ok(model.predict_flow(&[block], &mut Apart::default())?.remove(0))
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn difference(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    let (got, expected) = (numbers(got), numbers(expected));
    let largest = expected.iter().fold(1f32, |largest, x| largest.max(x.abs()));
    let differences = got.iter().zip(&expected).map(|(a, b)| (a - b).abs() / largest);
    differences.map(|x| if x.is_nan() { f32::INFINITY } else { x }).fold(0.0, f32::max)
}

fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (numbers(a), numbers(b));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[test]
fn padding_by_hand_changes_nothing() {
    let model = dit(DType::F32);
    let latent = latent(1, 2);
    for tokens in 0..=TEXT_LEN {
        let short = randn(7, &[tokens.max(1), TEXT_DIM]).narrow(0, 0, tokens).unwrap();
        let padded = short.pad_with_zeros(0, 0, TEXT_LEN - tokens).unwrap();
        let flow = |rows| {
            let text = model.text_context(&TextEmbedding(rows)).unwrap();
            (flow(&model, &latent, &[700.0; 2], &text).unwrap(), text)
        };
        let ((folded, text), (unfolded, whole)) = (flow(short), flow(padded));
        assert!(difference(&folded, &unfolded) <= TOLERANCE, "{tokens} tokens");
        let keys = |text: &TextContext| text.layers[0].k.dims()[1];
        assert_eq!((keys(&text), keys(&whole)), ((tokens + 1).min(TEXT_LEN), TEXT_LEN));
    }
}

/// Blocks of different lengths, places, times and texts, two of which are the same one.
#[test]
fn one_forward_of_several_blocks_is_several_forwards() {
    let model = dit(DType::F32);
    let (near, far) = (text(&model, 1, 3), text(&model, 2, TEXT_LEN));
    let latents: Vec<Tensor> = [2, 1, 3, 2].iter().zip(1..).map(|(&n, s)| latent(s, n)).collect();
    let timesteps = [vec![0.0; 2], vec![625.0], vec![1000.0, 937.5, 0.0], vec![500.0; 2]];
    let texts = [&near, &far, &far, &near];
    let blocks: Vec<DenoiseInput<'_>> = [0, 40, 2, 5000]
        .into_iter()
        .zip(&latents)
        .zip(timesteps.iter().zip(texts))
        .map(|((first_frame, latent), (timesteps, text))| DenoiseInput {
            latent,
            first_frame,
            timesteps,
            text,
        })
        .collect();
    let together = model.predict_flow(&blocks, &mut Apart::default()).unwrap();
    assert_eq!(together.len(), blocks.len());
    for (block, together) in blocks.iter().zip(&together) {
        let alone = model.predict_flow(&[*block], &mut Apart::default()).unwrap().remove(0);
        assert!(difference(together, &alone) <= TOLERANCE, "block at {}", block.first_frame);
        assert_eq!(together.dtype(), DType::F32);
    }
}

/// A timestep modulates its own frame: the first layer's K/V of the other frames stay.
#[test]
fn every_frame_has_its_own_timestep() {
    let model = dit(DType::F32);
    let (latent, text) = (latent(1, 3), text(&model, 1, 4));
    let first_layer = |timesteps: [f64; 3]| {
        let mut seen = Apart::default();
        let block =
            DenoiseInput { latent: &latent, first_frame: 0, timesteps: &timesteps, text: &text };
        let flow = model.predict_flow(&[block], &mut seen).unwrap().remove(0);
        (seen.0[0][0].k.reshape((3, ())).unwrap(), flow)
    };
    let (k, flow) = first_layer([800.0; 3]);
    for frame in 0..3 {
        let mut timesteps = [800.0; 3];
        timesteps[frame] = 300.0;
        let (other, other_flow) = first_layer(timesteps);
        for at in 0..3 {
            let moved = difference(&k.get(at).unwrap(), &other.get(at).unwrap());
            assert_eq!(moved > 0.01, at == frame, "frame {at} moved {moved} with {frame}");
        }
        assert!(difference(&flow, &other_flow) > 0.01);
    }
}

/// Keys are turned by their absolute frame, flows depend on distances only.
#[test]
fn places_in_the_stream() {
    let model = dit(DType::F32);
    let (latent, text) = (latent(1, 2), text(&model, 1, 4));
    let at = |first_frame| {
        let mut seen = Apart::default();
        let block =
            DenoiseInput { latent: &latent, first_frame, timesteps: &[400.0; 2], text: &text };
        let flow = model.predict_flow(&[block], &mut seen).unwrap().remove(0);
        (flow, seen.0.remove(0).remove(0))
    };
    let (flow, origin) = at(0);
    for first_frame in [1, 7, 1024, 100_000] {
        let (moved, kv) = at(first_frame);
        assert!(difference(&moved, &flow) < 1e-4, "flow at {first_frame}");
        assert_eq!(difference(&kv.v, &origin.v), 0.0);
        assert!(difference(&kv.k, &turned(&origin.k, first_frame)) < TOLERANCE, "{first_frame}");
    }
}

/// `k e^(i frames w_j)` on the frame's complex pairs.
fn turned(k: &Tensor, frames: usize) -> Tensor {
    let d = k.dim(3).unwrap();
    let width = d - 4 * (d / 6);
    let mut values = numbers(k);
    for head in values.chunks_mut(d) {
        for (j, pair) in head[..width].chunks_mut(2).enumerate() {
            let angle = frames as f64 * 10_000f64.powf(-((2 * j) as f64) / width as f64);
            let (sin, cos) = angle.sin_cos();
            let (re, im) = (f64::from(pair[0]), f64::from(pair[1]));
            pair[0] = (re * cos - im * sin) as f32;
            pair[1] = (re * sin + im * cos) as f32;
        }
    }
    Tensor::from_vec(values, k.shape(), &Device::Cpu).unwrap()
}

#[test]
fn bf16_follows_f32() {
    let [full, half] = [DType::F32, DType::BF16].map(dit);
    let latent = latent(1, 3);
    for timestep in [0.0, 625.0, 937.5, 1000.0] {
        let run =
            |model: &WanDit| flow(model, &latent, &[timestep; 3], &text(model, 1, 4)).unwrap();
        let (expected, got) = (run(&full), run(&half));
        assert_eq!(got.dtype(), DType::F32);
        let cosine = cosine(&got, &expected);
        assert!(cosine >= 0.999, "timestep {timestep}: {cosine}");
        assert!(difference(&got, &expected) > 1e-5, "bf16 was not used");
    }
}

/// The error of a forward of one block.
fn refused(latent: &Tensor, timesteps: usize, text: &TextContext) -> String {
    let timesteps = vec![500.0; timesteps];
    flow(&dit(DType::F32), latent, &timesteps, text).unwrap_err().to_string()
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let model = dit(DType::F32);
    let text = text(&model, 1, 4);
    let cases = [
        (&[2, CHANNELS + 1, 4, 6][..], 2, "5 channels, the model expects 4"),
        (&[2, CHANNELS, 5, 6], 2, "2x5x6"),
        (&[2, CHANNELS, 4, 7], 2, "2x4x7"),
        (&[2, CHANNELS, 0, 6], 2, "2x0x6"),
        (&[0, CHANNELS, 4, 6], 0, "0x4x6"),
        (&[2, CHANNELS, 4, 6], 3, "3 timesteps for 2"),
        (&[2, CHANNELS, 4, 6], 0, "0 timesteps for 2"),
        (&[CHANNELS, 4, 6], 4, "rank"),
    ];
    for (shape, timesteps, said) in cases {
        let error = refused(&randn(1, shape), timesteps, &text);
        assert!(error.contains(said), "{shape:?}: {error}");
    }
    let error = model.predict_flow(&[], &mut Apart::default()).unwrap_err().to_string();
    assert!(error.contains("at least one block"), "{error}");
    let [small, large] = [randn(1, &[1, CHANNELS, 2, 2]), latent(1, 1)];
    let blocks = [&small, &large].map(|latent| DenoiseInput {
        latent,
        first_frame: 0,
        timesteps: &[500.0],
        text: &text,
    });
    let error = model.predict_flow(&blocks, &mut Apart::default()).unwrap_err().to_string();
    assert!(error.contains("1x4x6") && error.contains("2x2"), "{error}");
}

#[test]
fn texts_that_do_not_fit_are_named() {
    let model = dit(DType::F32);
    for shape in [&[TEXT_LEN + 1, TEXT_DIM][..], &[4, TEXT_DIM + 1], &[4, TEXT_DIM - 1]] {
        let error = model.text_context(&TextEmbedding(randn(1, shape))).unwrap_err().to_string();
        let [tokens, width] = [shape[0], shape[1]];
        assert!(error.contains(&format!("{tokens}x{width}")), "{error}");
        assert!(error.contains(&format!("{TEXT_LEN}x{TEXT_DIM}")), "{error}");
    }
    assert!(model.text_context(&TextEmbedding(randn(1, &[TEXT_DIM]))).is_err());
    let whole = text(&model, 1, 4);
    for layers in [0, 2, 4] {
        let layers = whole.layers.iter().cycle().take(layers).cloned().collect();
        let error = refused(&latent(1, 1), 1, &TextContext { layers, ..whole.clone() });
        assert!(error.contains("layers"), "{error}");
    }
    assert!(!refused(&latent(1, 1), 1, &TextContext { last_count: 0, ..whole }).is_empty());
}

/// An exchange may answer anything.
#[test]
fn keys_that_do_not_fit_are_refused() {
    struct Answer(Visible);
    impl KvExchange for Answer {
        fn offer(&mut self, _: usize, _: Vec<Kv>) -> Result<Visible<Option<Kv>>> {
            Ok(self.0.clone().into())
        }
    }
    let model = dit(DType::F32);
    let (latent, text) = (latent(1, 1), text(&model, 1, 4));
    let kv = |k: &[usize], v: &[usize]| Kv { k: randn(1, k), v: randn(2, v) };
    let fits = kv(&[1, 5, 4, 12], &[1, 5, 4, 12]);
    let run = |visible| {
        let block =
            DenoiseInput { latent: &latent, first_frame: 0, timesteps: &[500.0], text: &text };
        model.predict_flow(&[block], &mut Answer(visible))
    };
    assert!(run(Visible::Shared(vec![fits.clone()])).is_ok());
    for visible in [
        Visible::Shared(vec![]),
        Visible::Each(vec![]),
        Visible::Each(vec![vec![fits.clone()], vec![fits.clone()]]),
        Visible::Shared(vec![kv(&[1, 5, 4, 12], &[1, 6, 4, 12])]),
        Visible::Shared(vec![fits, kv(&[1, 5, 3, 12], &[1, 5, 3, 12])]),
    ] {
        let said = format!("{visible:?}").chars().take(60).collect::<String>();
        assert!(run(visible).is_err(), "{said}");
    }
}

#[test]
fn sizes_that_make_no_network_are_refused() {
    type Change = fn(&mut WanConfig);
    let changes: [Change; 5] = [
        |c| c.num_heads = 0,
        |c| c.num_heads = 5,
        |c| c.num_heads = 16,
        |c| c.freq_dim = 7,
        |c| c.freq_dim = 0,
    ];
    for change in changes {
        let mut config = config();
        change(&mut config);
        let vb = checkpoint::random(3, DType::F32, &Device::Cpu);
        assert!(WanDit::new(&config, vb).is_err(), "{config:?}");
    }
}
