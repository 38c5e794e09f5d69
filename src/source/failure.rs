//! Errors of the generator as GStreamer tells them.

use gstreamer as gst;

use crate::checkpoint;
use crate::generator::Error;

/// The message for an error; `None` for a cancel, which is none.
pub fn message(error: &Error) -> Option<gst::ErrorMessage> {
    let text = error.to_string();
    let message = match error {
        Error::Cancelled => return None,
        Error::Config { .. } => gst::error_msg!(gst::ResourceError::Settings, ("{text}")),
        Error::MissingWeights { .. } => gst::error_msg!(gst::ResourceError::NotFound, ("{text}")),
        Error::Weights(cause) if is_missing(cause) => {
            gst::error_msg!(gst::ResourceError::NotFound, ("{text}"))
        }
        Error::Weights(_) => gst::error_msg!(gst::ResourceError::OpenRead, ("{text}")),
        Error::Device { .. } if text.contains("out of memory") => {
            gst::error_msg!(gst::ResourceError::NoSpaceLeft, ("{text}"))
        }
        Error::Device { .. } | Error::MissingFeature(_) => {
            gst::error_msg!(gst::LibraryError::Init, ("{text}"))
        }
        Error::Worker { .. } => gst::error_msg!(gst::StreamError::Failed, ("{text}")),
    };
    Some(message)
}

fn is_missing(error: &checkpoint::Error) -> bool {
    match error {
        checkpoint::Error::Open { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        checkpoint::Error::Manifest { .. } => true,
        _ => false,
    }
}
