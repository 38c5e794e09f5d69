//! The Wan 2.1 family: block-causal DiT, causal video auto-encoder, umT5 text encoder.

mod config;
mod dit;
mod embed;
mod layer;
pub mod text;
pub mod tiny_vae;
pub mod vae;
mod vae_layers;

pub use config::{WanConfig, dit_config, text_config, vae_config};
pub use dit::WanDit;
