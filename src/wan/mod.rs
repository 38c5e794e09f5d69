//! The Wan 2.1 family: block-causal DiT, causal video auto-encoder, umT5 text encoder.

mod config;
mod dit;
mod embed;
mod layer;

pub use config::WanConfig;
pub use dit::WanDit;
pub mod tiny_vae;
pub mod vae;
mod vae_layers;
pub mod text;
