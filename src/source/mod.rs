//! The GStreamer half of the crate: the element `blockcascadesrc`.
//!
//! It is thin: it turns properties into a [`GeneratorConfig`](crate::generator::GeneratorConfig),
//! frames into buffers and errors into messages, and knows when each frame is due.

mod caps;
mod failure;
mod frames;
mod imp;
mod networks;
mod pace;
mod picture;
mod prompting;
mod prompts;
mod properties;
mod settings;
mod slate;
mod stream;
mod text;

use glib::BoolError;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_base as gst_base;

/// Name of the custom meta that each frame carries: `frame`, `block`, `prompt-id` and `seed`, u64.
const FRAME_META: &str = "GstBlockCascadeMeta";

glib::wrapper! {
    #[doc = include_str!("../../pipelines/ELEMENT.md")]
    pub struct BlockCascadeSrc(ObjectSubclass<imp::BlockCascadeSrc>)
        @extends gst_base::PushSrc, gst_base::BaseSrc, gst::Element, gst::Object,
        @implements gst::Preset;
}

/// Registers the plugin's element. Runs when the plugin is scanned: touches no device.
pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), BoolError> {
    if !gst::meta::CustomMeta::is_registered(FRAME_META) {
        gst::meta::CustomMeta::register(FRAME_META, &[]);
    }
    let (name, rank) = ("blockcascadesrc", gst::Rank::NONE);
    gst::Element::register(Some(plugin), name, rank, BlockCascadeSrc::static_type())
}
