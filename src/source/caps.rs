//! What frames may look like: the template, and the choice among what downstream takes.

use gstreamer as gst;
use gstreamer_video as gst_video;

use crate::generator::{FrameSize, VideoFormat};

/// Formats in the order in which they are offered: the first ones need no conversion to be encoded.
const FORMATS: [&str; 6] = ["I420", "NV12", "RGBA", "RGBx", "BGRx", "RGB"];
/// Width and height of every model's frames are multiples of this.
const STEP: i32 = 16;
const MAX_SIDE: i32 = 8192;
const MAX_RATE: i32 = 240;

/// Everything that some model can make.
pub fn template() -> gst::Caps {
    let sides = gst::IntRange::with_step(STEP, MAX_SIDE, STEP);
    gst::Caps::builder("video/x-raw")
        .field("format", gst::List::new(FORMATS))
        .field("width", sides)
        .field("height", sides)
        .field("framerate", gst::FractionRange::new(rate(1), rate(MAX_RATE)))
        .build()
}

/// What prompts come as.
pub fn text() -> gst::Caps {
    let formats = gst::List::new(["utf8", "pango-markup"]);
    gst::Caps::builder("text/x-raw").field("format", formats).build()
}

/// Those of a size.
pub fn of_size(mut caps: gst::Caps, size: FrameSize) -> gst::Caps {
    for structure in caps.make_mut().iter_mut() {
        structure.set("width", side(size.width));
        structure.set("height", side(size.height));
    }
    caps
}

/// One of several: the model's own size and rate, or the nearest to them.
pub fn fixated(mut caps: gst::Caps, native: VideoFormat) -> gst::Caps {
    caps.truncate();
    let Some(structure) = caps.make_mut().structure_mut(0) else { return caps };
    let FrameSize { width, height } = native.size;
    structure.fixate_field_nearest_int("width", side(width));
    structure.fixate_field_nearest_int("height", side(height));
    let frames_per_second = i32::try_from(native.frames_per_second).unwrap_or(MAX_RATE);
    structure.fixate_field_nearest_fraction("framerate", rate(frames_per_second));
    if structure.has_field("pixel-aspect-ratio") {
        structure.fixate_field_nearest_fraction("pixel-aspect-ratio", rate(1));
    } else {
        structure.set("pixel-aspect-ratio", rate(1));
    }
    if structure.has_field("interlace-mode") {
        structure.fixate_field_str("interlace-mode", "progressive");
    } else {
        structure.set("interlace-mode", "progressive");
    }
    caps.fixate();
    with_colorimetry(caps)
}

/// Says in so many words what [`VideoInfo`](gst_video::VideoInfo) would take frames for.
fn with_colorimetry(mut caps: gst::Caps) -> gst::Caps {
    let Ok(info) = gst_video::VideoInfo::from_caps(&caps) else { return caps };
    let Some(structure) = caps.make_mut().structure_mut(0) else { return caps };
    if !structure.has_field("colorimetry") {
        structure.set("colorimetry", info.colorimetry().to_string());
    }
    // Chroma is the mean of four pixels, so it sits between them.
    if info.is_yuv() && !structure.has_field("chroma-site") {
        structure.set("chroma-site", "jpeg");
    }
    caps
}

fn rate(frames_per_second: i32) -> gst::Fraction {
    gst::Fraction::new(frames_per_second, 1)
}

fn side(pixels: u32) -> i32 {
    i32::try_from(pixels).unwrap_or(MAX_SIDE)
}

/// The size that was agreed on.
pub fn size(info: &gst_video::VideoInfo) -> FrameSize {
    FrameSize { width: info.width(), height: info.height() }
}
