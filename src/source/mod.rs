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
    /// `blockcascadesrc`: turns prompts into raw video, live or as fast as the model goes.
    ///
    /// ```text
    /// gst-launch-1.0 blockcascadesrc prompt="a red ball bounces on a beach" ! videoconvert ! autovideosink
    /// gst-launch-1.0 blockcascadesrc is-live=true underrun-policy=repeat ! queue ! videoconvert ! autovideosink
    /// gst-launch-1.0 blockcascadesrc seed=7 cascade-width=3 ! video/x-raw,format=NV12,framerate=30/1 ! fakesink
    /// gst-launch-1.0 blockcascadesrc devices=cpu,cpu cascade-width=2 prompt-policy=recache ! fakesink
    /// ```
    ///
    /// Timestamps follow the buffer's `offset` and never drift. A frame's meta `GstBlockCascadeMeta` has `frame`,
    /// `block`, `prompt-id` and `seed` (u64): a frame that is repeated keeps its own, a slate has `prompt-id` 0. Tags
    /// name the program, and the first prompt as the title.
    ///
    /// # Loading
    ///
    /// The model is loaded while the state changes, on a thread of its own. PROGRESS messages
    /// (`loading`) tell how it goes, and `gst-launch-1.0` waits for them before it plays. Elements of a
    /// process that ask for the same networks share them; each keeps them until NULL, `keep-loaded`
    /// longer than that, and `preload` has them from READY on. With `startup-policy=slate`, a live
    /// source shows a bar meanwhile, so that whoever receives the stream does not give up; element
    /// messages `blockcascade/loading` with `percent` and `text` tell of it then.
    ///
    /// # Prompts
    ///
    /// All ways end in one queue. A prompt takes effect at a block's first frame; who does not name a
    /// time gets the next one that can still be changed.
    ///
    /// - the property `prompt`;
    /// - the action signal `set-prompt (text, options)`;
    /// - the upstream event `blockcascade/prompt`, from any element or by `send_event`;
    /// - the request pad `prompt`, `text/x-raw`: `filesrc ! subparse ! queue ! src.prompt`. Unless the
    ///   source is live, no block is made before the text for it is known, so that the same text gives
    ///   the same frames.
    ///
    /// Options of the signal and fields of the event: `text`, `running-time` (when), `id` (given back),
    /// and `prompt-policy`, `transition-blocks` and `transition-method` in place of the properties of
    /// these names. A prompt for a time to come begins with a block, whatever the policy; one for a time that is
    /// past, or for a block that has started, is taken as one without.
    ///
    /// Element messages and downstream events `blockcascade/prompt-applied` and `-dropped` answer each that was
    /// taken, with `text`, `id` and `latency`: one that was applied with the `frame` and `block` of the meta, the
    /// `offset` of the buffer and its `pts`, one that was dropped with the `reason`, and without an event when
    /// that is the stream's end. What is refused (text over 16 KiB, an unknown field, more than 16384 that wait) is
    /// told by a WARNING. Encoders are asked for a key frame, unless `force-key-unit-on-prompt=false`.
    ///
    /// # When it is too slow
    ///
    /// `realtime-factor` of `stats` is seconds of video made in a second: below 1, a live source runs late.
    /// What happens then is `underrun-policy`; the element message `blockcascade/underrun` tells when it
    /// does, with the `offset` and `pts` of the buffer that was due, how `late` it is and the `policy`, once for several
    /// in a row.
    ///
    /// # Statistics
    ///
    /// `stats` has `state` (stopped, loading, ready, generating, paused, error), `model`, `seed`, `devices` and
    /// `load-time`; counts `frames`, `blocks`, `slates`, `repeated`, `gaps`, `underruns`, `prompts-queued`,
    /// `prompts-applied`, `prompts-dropped`, `duplicate-events`; `queue-level`, frames that wait decoded; and times in
    /// ns: `prompt-latency-last`, `block-time-last`, `-avg` and `-p95`, `decode-time-avg`, over the last 64 blocks.
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
