//! Prompts in, live video out: block-causal video diffusion with Block Cascading.

#![deny(missing_docs)]

pub mod cascade;
pub mod checkpoint;
pub mod device;
pub mod generator;
pub mod layers;
pub mod model;
pub mod wan;
