//! A model without matrices in which everything counts: place and order of every key, timestep and
//! text of every frame.
//!
//! A token is a frame of 16 numbers, two heads of 8. The first two pairs of a key say its frame, as
//! the angles that Wan's rotation gives a head of 8; the rest of it is content.

use candle_core::{Device, IndexOp, Result, Tensor};
use gstblockcascade::model::{
    DenoiseInput, Kv, KvExchange, TextContext, TextEmbedding, VideoModel, VideoSpec, Visible,
};

use super::oracle::numbers;

const LAYERS: usize = 3;
const HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const TOKEN: usize = HEADS * HEAD_DIM;
/// Angles per frame of a key's first two pairs.
const FREQUENCIES: [f64; 2] = [1.0, 0.01];
pub const LATENT_SIZE: (usize, usize) = (2, 4);

#[derive(Debug)]
pub struct Toy(VideoSpec);

type Token = [f32; TOKEN];

impl Toy {
    pub fn new() -> Self {
        Self(VideoSpec {
            latent_channels: TOKEN / (LATENT_SIZE.0 * LATENT_SIZE.1),
            spatial_stride: 1,
            patch: 1,
            layers: LAYERS,
            heads: HEADS,
            head_dim: HEAD_DIM,
        })
    }
}

impl VideoModel for Toy {
    fn spec(&self) -> &VideoSpec {
        &self.0
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    /// A text is one number; every layer reads another one from it.
    fn text_context(&self, text: &TextEmbedding) -> Result<TextContext> {
        let layer = |layer: usize| {
            let k = (&text.0 * (layer + 1) as f64)?;
            Ok(Kv { v: k.clone(), k })
        };
        Ok(TextContext { layers: (0..LAYERS).map(layer).collect::<Result<_>>()?, last_count: 1 })
    }

    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        kv: &mut dyn KvExchange,
    ) -> Result<Vec<Tensor>> {
        let mut states = blocks.iter().map(tokens).collect::<Result<Vec<_>>>()?;
        for layer in 0..LAYERS {
            let lists = match kv.exchange(layer, own(blocks, &states, layer)?)? {
                Visible::Shared(keys) => vec![keys; blocks.len()],
                Visible::Each(lists) => lists,
            };
            for ((block, state), keys) in blocks.iter().zip(&mut states).zip(&lists) {
                mix(block, state, keys, layer)?;
            }
        }
        let flow = |(block, state): (&DenoiseInput<'_>, &Vec<Token>)| {
            let state =
                Tensor::from_slice(state.as_flattened(), block.latent.shape(), &Device::Cpu)?;
            (block.latent * 0.4)? + state
        };
        blocks.iter().zip(&states).map(flow).collect()
    }
}

fn tokens(block: &DenoiseInput<'_>) -> Result<Vec<Token>> {
    let numbers = numbers(block.latent)?;
    let tokens = numbers.as_chunks::<TOKEN>().0.to_vec();
    assert_eq!(tokens.len(), block.timesteps.len(), "a token and a timestep a frame");
    Ok(tokens)
}

/// K/V of all blocks as views into one tensor, as the concatenated forward of a network has them.
fn own(blocks: &[DenoiseInput<'_>], states: &[Vec<Token>], layer: usize) -> Result<Vec<Kv>> {
    let (mut k, mut v) = (Vec::new(), Vec::new());
    for (block, state) in blocks.iter().zip(states) {
        for (frame, token) in state.iter().enumerate() {
            k.extend(key(token, block.first_frame + frame));
            v.extend((0..TOKEN).map(|i| 0.8 * token[(i + 3) % TOKEN] + 0.1 * layer as f32));
        }
    }
    let shape = (1, k.len() / TOKEN, HEADS, HEAD_DIM);
    let k = Tensor::from_vec(k, shape, &Device::Cpu)?;
    let v = Tensor::from_vec(v, shape, &Device::Cpu)?;
    let mut start = 0;
    let part = |state: &Vec<Token>| {
        let range = start..start + state.len();
        start = range.end;
        Ok(Kv { k: k.i((.., range.clone()))?, v: v.i((.., range))? })
    };
    states.iter().map(part).collect()
}

fn key(token: &Token, frame: usize) -> Token {
    let mut key = token.map(|x| 0.3 * x.tanh());
    for head in key.chunks_mut(HEAD_DIM) {
        for (pair, frequency) in head.chunks_mut(2).zip(FREQUENCIES) {
            let (sin, cos) = (frame as f64 * frequency).sin_cos();
            pair.copy_from_slice(&[cos as f32, sin as f32]);
        }
    }
    key
}

/// Frames by which a key of one token is older than `frame`, within half a turn of 628.
pub fn distance(key: &[f32], frame: usize) -> f64 {
    let turn = 2.0 * std::f64::consts::PI;
    let angle = frame as f64 * FREQUENCIES[1] - f64::from(key[3]).atan2(f64::from(key[2]));
    (angle / turn - (angle / turn).round()) * turn / FREQUENCIES[1]
}

/// Later keys of the list count less, whatever they say, and near ones count more.
fn mix(block: &DenoiseInput<'_>, state: &mut [Token], keys: &[Kv], layer: usize) -> Result<()> {
    let text = block.text.layers[layer].k.to_scalar::<f32>()?;
    let seen = |part: fn(&Kv) -> &Tensor| -> Result<Vec<f32>> {
        Ok(keys.iter().map(|kv| numbers(part(kv))).collect::<Result<Vec<_>>>()?.concat())
    };
    let (k, v) = (seen(|kv| &kv.k)?, seen(|kv| &kv.v)?);
    for (frame, token) in state.iter_mut().enumerate() {
        let q = key(token, block.first_frame + frame);
        let (mut sum, mut total) = ([0f32; TOKEN], 0f32);
        let pairs = k.chunks(TOKEN).zip(v.chunks(TOKEN));
        for (place, (k, v)) in pairs.enumerate() {
            let order = 1.0 / (place + 3) as f32;
            let near: f32 = q.iter().zip(k).map(|(q, k)| q * k).sum();
            sum.iter_mut().zip(v).for_each(|(sum, v)| *sum += order * (2.0 + near) * v);
            total += order;
        }
        let timestep = block.timesteps[frame] as f32 / 1000.0;
        for (x, sum) in token.iter_mut().zip(sum) {
            *x = 0.5 * *x + 0.1 * sum / total + 0.3 * (*x + text + 2.0 * timestep).sin();
        }
    }
    Ok(())
}
