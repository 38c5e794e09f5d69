//! The GStreamer half of the crate: where elements are registered.
//!
//! There is no element yet; the plugin loads and is empty.

use glib::BoolError;
use gstreamer as gst;

/// Registers the plugin's elements: none so far.
pub(crate) fn register(_plugin: &gst::Plugin) -> Result<(), BoolError> {
    Ok(())
}
