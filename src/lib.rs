//! Prompts in, live video out: block-causal video diffusion with Block Cascading.
//!
//! A block-causal model makes a video block by block, a few latent frames at a time; each block is
//! denoised while it looks back at those before it. *Block Cascading* starts a block before the one
//! in front of it is clean, so that several are denoised at once.
//!
//! The parts, in the order in which a prompt passes them:
//!
//! - [`generator`]: prompts to frames, the part to use. Start at
//!   [`Generator`](generator::Generator) and [`GeneratorConfig`](generator::GeneratorConfig).
//! - [`cascade`]: several blocks at once, and the history that they look back at.
//! - [`model`]: what a family of networks implements. The seam between the two halves of the crate.
//! - [`wan`]: the one family there is, Wan 2.1: transformer, auto-encoders, text encoder.
//! - [`layers`]: what networks are built of: attention, convolution, norms, rotation.
//! - [`checkpoint`]: files of weights to tensors, the manifests that name them, and the embedded ones.
//! - [`device`]: what it all runs on.
//!
//! With the feature `gst` the library is also a GStreamer plugin; its element is
//! `blockcascadesrc`.
//!
//! # From a prompt to frames
//!
//! ```
#![doc = include_str!("../examples/frames.rs")]
//! ```

#![deny(missing_docs)]

pub mod cascade;
pub mod checkpoint;
pub mod device;
pub mod generator;
pub mod layers;
pub mod model;
#[cfg(feature = "gst")]
mod source;
pub mod wan;

/// A module of its own, because what the macro makes is public and has no documentation.
#[cfg(feature = "gst")]
mod plugin {
    use crate::source::register;

    gstreamer::plugin_define!(
        blockcascade,
        env!("CARGO_PKG_DESCRIPTION"),
        register,
        concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
        // GStreamer's name for the first of our two licences; it has none for the pair.
        "MIT/X11",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("BUILD_REL_DATE")
    );
}

/// Registers the plugin's element in this process, for programs that link the crate instead of
/// loading the plugin; GStreamer must be initialised.
#[cfg(feature = "gst")]
pub fn register_static() -> Result<(), glib::BoolError> {
    plugin::plugin_register_static()
}

/// Compiles and runs the README's snippets.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
