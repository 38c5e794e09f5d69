//! Prompts in, live video out: block-causal video diffusion with Block Cascading.

#![deny(missing_docs)]

pub mod checkpoint;
pub mod layers;
pub mod model;
pub mod wan;
