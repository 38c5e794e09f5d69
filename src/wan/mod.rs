//! The Wan 2.1 family: block-causal DiT, causal video auto-encoder, umT5 text encoder.

pub mod text;
