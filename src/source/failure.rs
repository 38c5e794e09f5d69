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
        Error::Weights(checkpoint::Error::Manifest { .. }) => {
            gst::error_msg!(gst::ResourceError::Settings, ("{text}"))
        }
        Error::Weights(_) => gst::error_msg!(gst::ResourceError::OpenRead, ("{text}")),
        // As a device says it, when it is loaded to and when it computes.
        Error::Device { .. } | Error::Worker { .. } if text.contains("out of memory") => {
            gst::error_msg!(gst::ResourceError::NoSpaceLeft, ("{text}"))
        }
        Error::Device { .. } if text.contains("no such device") => {
            gst::error_msg!(gst::ResourceError::NotFound, ("{text}"))
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
        checkpoint::Error::UnknownModel { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use gst::prelude::*;

    use super::*;
    use crate::checkpoint::Manifest;

    /// The error as an application gets it.
    fn told(error: &Error) -> gst::glib::Error {
        gst::init().unwrap();
        let element = gst::Pipeline::new();
        element.post_error_message(message(error).unwrap());
        let told = element.bus().unwrap().pop_filtered(&[gst::MessageType::Error]).unwrap();
        let gst::MessageView::Error(told) = told.view() else { unreachable!() };
        told.error()
    }

    #[test]
    fn a_model_that_is_not_there_is_no_manifest_that_is_wrong() {
        let unknown = Manifest::named("none").unwrap_err();
        let wrong = Manifest::parse("m.toml".as_ref(), "name = 7").unwrap_err();
        let kind = |error: checkpoint::Error| told(&error.into()).kind::<gst::ResourceError>();
        assert_eq!(kind(unknown), Some(gst::ResourceError::NotFound));
        assert_eq!(kind(wrong), Some(gst::ResourceError::Settings));
    }

    #[test]
    fn what_a_device_lacks_has_a_kind_of_its_own() {
        let device = |reason: &str| {
            let (device, source) = ("cuda:1".to_owned(), io::Error::other(reason).into());
            told(&Error::Device { device, source })
        };
        let kind = |error: gst::glib::Error| error.kind::<gst::ResourceError>();
        let full = "out of memory: weights or history take 9 GB";
        assert_eq!(kind(device(full)), Some(gst::ResourceError::NoSpaceLeft));
        let absent = "no such device: got number 1, there are 1";
        assert_eq!(kind(device(absent)), Some(gst::ResourceError::NotFound));
        let other = device("the driver is too old").kind::<gst::LibraryError>();
        assert_eq!(other, Some(gst::LibraryError::Init));
        let worker = |reason: &str| {
            told(&Error::Worker {
                work: "denoising".into(),
                source: io::Error::other(reason).into(),
            })
        };
        let full = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert_eq!(kind(worker(full)), Some(gst::ResourceError::NoSpaceLeft));
        let failed = worker("another worker failed").kind::<gst::StreamError>();
        assert_eq!(failed, Some(gst::StreamError::Failed));
    }
}
