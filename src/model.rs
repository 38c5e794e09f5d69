//! What a family of networks implements: the seam between the cascade and the arithmetic.
//!
//! Weights are immutable and shared (`&self`); whatever changes from call to call comes in as an
//! argument. Shapes: a latent is `(frames, channels, height, width)`, keys and values are
//! `(1, tokens, heads, head_dim)`, decoded pixels are `(frames, height, width, 3)` in `[0, 1]`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Result, Tensor, bail};

/// Here, those of one layer of one block, `(1, tokens, heads, head_dim)`: keys are rotated to their
/// positions, values never are.
pub use crate::layers::attention::Kv;

/// What the blocks of one forward may attend to at one layer, oldest first.
#[derive(Clone, Debug)]
pub enum Visible<T = Kv> {
    /// Every block sees the same keys, so one attention call serves all queries.
    Shared(Vec<T>),
    /// One list for each block, in the order of the blocks.
    Each(Vec<Vec<T>>),
}

/// What self-attention asks of the world, once per layer: [`offer`](Self::offer) first, then
/// [`receive`](Self::receive), and in between whatever needs no other keys.
pub trait KvExchange {
    /// Offers the K/V of the blocks computed here, in their order, and returns what they see:
    /// nothing in the place of what is still on its way.
    fn offer(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible<Option<Kv>>>;

    /// Waits for what was on its way; to be asked for only where something was.
    fn receive(&mut self, layer: usize) -> Result<Visible> {
        bail!("nothing is on its way at layer {layer}")
    }

    /// Both at once: all that the blocks see.
    fn exchange(&mut self, layer: usize, own: Vec<Kv>) -> Result<Visible> {
        self.offer(layer, own)?.filled(|| self.receive(layer))
    }
}

impl From<Visible> for Visible<Option<Kv>> {
    /// With nothing on its way.
    fn from(visible: Visible) -> Self {
        let known = |list: Vec<Kv>| list.into_iter().map(Some).collect();
        match visible {
            Visible::Shared(list) => Self::Shared(known(list)),
            Visible::Each(lists) => Self::Each(lists.into_iter().map(known).collect()),
        }
    }
}

impl Visible<Option<Kv>> {
    /// Whether nothing is on its way.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Shared(list) => list.iter().all(Option::is_some),
            Self::Each(lists) => lists.iter().flatten().all(Option::is_some),
        }
    }

    /// All of it: what was on its way, if something was, is received and put in its place.
    pub fn filled(self, receive: impl FnOnce() -> Result<Visible>) -> Result<Visible> {
        let rest = if self.is_complete() { self.nothing() } else { receive()? };
        Ok(match (self, rest) {
            (Self::Shared(list), Visible::Shared(rest)) => Visible::Shared(filled(list, rest)?),
            (Self::Each(lists), Visible::Each(rests)) if lists.len() == rests.len() => {
                let lists = lists.into_iter().zip(rests);
                Visible::Each(lists.map(|(list, rest)| filled(list, rest)).collect::<Result<_>>()?)
            }
            (_, rest) => bail!("other blocks wait for keys than {rest:?} are for"),
        })
    }

    /// For as many blocks.
    fn nothing(&self) -> Visible {
        match self {
            Self::Shared(_) => Visible::Shared(Vec::new()),
            Self::Each(lists) => Visible::Each(vec![Vec::new(); lists.len()]),
        }
    }
}

fn filled(list: Vec<Option<Kv>>, rest: Vec<Kv>) -> Result<Vec<Kv>> {
    let missing = list.iter().filter(|kv| kv.is_none()).count();
    if missing != rest.len() {
        bail!("{missing} keys were on their way, and {} came", rest.len());
    }
    let mut rest = rest.into_iter();
    Ok(list.into_iter().filter_map(|kv| kv.or_else(|| rest.next())).collect())
}

/// A prompt as the text encoder leaves it: `(tokens, text_dim)`, real tokens only.
#[derive(Clone, Debug)]
pub struct TextEmbedding(pub Tensor);

/// Cross-attention keys and values of one prompt for each layer, computed once.
#[derive(Clone, Debug)]
pub struct TextContext {
    /// One entry a layer; tokens are the prompt's and, last, one for all padding rows.
    pub layers: Vec<Kv>,
    /// How many equal padding rows the last key stands for; 1 when there is nothing to fold.
    pub last_count: usize,
}

/// One block's share of a forward.
#[derive(Clone, Copy, Debug)]
pub struct DenoiseInput<'a> {
    /// `(frames, channels, height, width)`.
    pub latent: &'a Tensor,
    /// Place of the first latent frame in the stream: the origin of its rotation.
    pub first_frame: usize,
    /// One timestep in `0..=1000` for each latent frame.
    pub timesteps: &'a [f64],
    /// What the block is conditioned on.
    pub text: &'a TextContext,
}

/// Sizes that the rest of the program needs to know of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VideoSpec {
    /// Channels of a latent frame.
    pub latent_channels: usize,
    /// Pixels that one latent row or column stands for.
    pub spatial_stride: usize,
    /// Latent rows and columns that make one token.
    pub patch: usize,
    /// Transformer layers: how often `offer` is called in a forward.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl VideoSpec {
    /// Both sides of a frame, in pixels, must be multiples of this.
    pub fn size_multiple(&self) -> usize {
        self.spatial_stride * self.patch
    }
}

/// A family of block-causal video networks.
pub trait VideoModel: Send + Sync + fmt::Debug {
    /// Sizes, fixed at load.
    fn spec(&self) -> &VideoSpec;
    /// Where the weights are, and where latents are best kept.
    fn device(&self) -> &Device;
    /// Cross-attention keys and values of a prompt.
    fn text_context(&self, text: &TextEmbedding) -> Result<TextContext>;
    /// One forward of all `blocks`: their tokens are concatenated, so every linear runs once.
    /// Returns the flow (`noise - x0`) of each block, shaped like its latent, in f32.
    fn predict_flow(
        &self,
        blocks: &[DenoiseInput<'_>],
        kv: &mut dyn KvExchange,
    ) -> Result<Vec<Tensor>>;
}

/// Turns a prompt into an embedding.
pub trait TextEncoder: Send + Sync + fmt::Debug {
    /// Encodes one prompt; `interrupt` is honoured once a layer.
    fn encode(&self, prompt: &str, interrupt: &Interrupt) -> Result<TextEmbedding>;
}

/// Turns latents into pixels, one latent frame after the other: weights, shared, and a stream's state.
pub trait FrameDecoder: Send + Sync + fmt::Debug {
    /// Decodes the stream's next latent frames, `(frames, channels, h, w)`, to
    /// `(frames out, height, width, 3)` in `[0, 1]`: 1 for the stream's first, 4 for each later one.
    /// After an error, an interrupt included, the state is what it was before the call.
    fn step(&mut self, latents: &Tensor, interrupt: &Interrupt) -> Result<Tensor>;
    /// A decoder at the start of another stream, over the same weights.
    fn fresh(&self) -> Box<dyn FrameDecoder>;
}

/// A request to stop early, checked by long computations once a layer.
///
/// Clones share the request. The networks see only this flag; who raises it is not their business.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks every computation that holds a clone to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Takes the request back.
    pub fn clear(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether a stop is asked for.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// An error when a stop is asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_raised() { bail!("interrupted") } else { Ok(()) }
    }
}
