//! Prompts to frames.

pub mod flow;
pub mod noise;
