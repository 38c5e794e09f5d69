//! The networks: checked, loaded, held and let go; and what is said when that fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_base::prelude::*;

use super::failure;
use super::imp::{BlockCascadeSrc, CAT, lock};
use super::settings::StartupPolicy;
use super::stream::{LoadState, Stream};
use crate::generator::{Error, GeneratorConfig, Loading, LoadingState};

/// Code of the PROGRESS messages.
const LOADING: &str = "loading";

impl BlockCascadeSrc {
    /// Before anything starts: are the settings sound, are all files there?
    pub(super) fn get_ready(&self) -> Result<(), gst::StateChangeError> {
        self.failed.store(false, Ordering::SeqCst);
        let settings = lock(&self.settings).clone(); // not locked while files are looked at
        let ready = settings.config().and_then(|config| {
            config.check_weights().map_err(|error| as_asked(error, &settings.model))?;
            if settings.preload { self.hold_networks(&config).map(|_| ()) } else { Ok(()) }
        });
        ready.map_err(|error| {
            let _ = self.fail(&error); // a flow that there is not
            gst::StateChangeError
        })
    }

    /// Takes hold of the networks that a configuration asks for, and lets go of others.
    pub(super) fn hold_networks(&self, config: &GeneratorConfig) -> Result<Arc<Loading>, Error> {
        let networks = Arc::new(Loading::start(config)?);
        let others = lock(&self.networks).replace(networks.clone());
        drop(others); // not before: they may be the same ones
        Ok(networks)
    }

    /// Lets go of the networks, at once or when `keep-loaded` is over.
    pub(super) fn let_go(&self) {
        let Some(networks) = lock(&self.networks).take() else { return };
        let keep = lock(&self.settings).keep_loaded;
        if keep == 0 || !networks.is_done() {
            return;
        }
        let clock = gst::SystemClock::obtain();
        let end = clock.time() + gst::ClockTime::from_mseconds(keep.into());
        if let Err(error) = clock.new_single_shot_id(end).wait_async(|_, _, _| drop(networks)) {
            gst::warning!(CAT, imp = self, "the model is not kept: {error}");
        }
    }

    /// Tells how far loading is, if there is something to load.
    pub(super) fn watch_loading(&self) {
        let (id, loading) = {
            let stream = lock(&self.stream);
            let Some(stream) = stream.as_ref().filter(|stream| stream.is_loading()) else { return };
            (stream.id, stream.loading.clone())
        };
        self.tell(id, gst::ProgressType::Start, "loading the model", 0);
        let (element, begun) = (self.obj().downgrade(), Instant::now());
        loading.watch(move |state| {
            if let Some(element) = element.upgrade() {
                element.imp().loads(id, state, begun);
            }
        });
    }

    /// Called on the loading thread, for a stream that may be over.
    fn loads(&self, id: gst::Seqnum, state: LoadingState<'_>, begun: Instant) {
        let load_state = match state {
            LoadingState::Percent(percent) => LoadState::Percent(percent),
            LoadingState::Ready => LoadState::Done(begun.elapsed()),
            LoadingState::Failed(_) => LoadState::Failed,
        };
        {
            let mut stream = lock(&self.stream);
            match stream.as_mut().filter(|stream| stream.id == id) {
                Some(stream) => stream.load_state = load_state,
                None => return,
            }
        }
        match state {
            LoadingState::Percent(percent) => {
                let text = format!("{percent} % of the model are loaded");
                self.tell(id, gst::ProgressType::Continue, &text, percent);
            }
            LoadingState::Ready => {
                self.tell(id, gst::ProgressType::Complete, "the model is loaded", 100);
            }
            LoadingState::Failed(error) => {
                let _ = self.fail(error); // create() returns its own
                self.tell(id, gst::ProgressType::Error, &error.to_string(), 0);
            }
        }
    }

    /// The stream ends before it has its networks. Who wanted them before it still does.
    pub(super) fn cancel_loading(&self, stream: &Stream) {
        if !lock(&self.settings).preload {
            let networks = lock(&self.networks).take();
            drop(networks);
        }
        self.tell(stream.id, gst::ProgressType::Canceled, "loading was cancelled", 0);
    }

    /// Says how loading goes. A live source's slate would not be seen if PROGRESS messages held the pipeline in
    /// PAUSED, as gst-launch-1.0 does; so element messages tell of it then.
    fn tell(&self, id: gst::Seqnum, kind: gst::ProgressType, text: &str, percent: u32) {
        let has_slate = lock(&self.settings).startup_policy == StartupPolicy::Slate;
        if has_slate && self.obj().is_live() {
            let fields = gst::Structure::builder("blockcascade/loading");
            let fields = fields.field("text", text).field("percent", percent);
            return self.post_element_message(fields.build());
        }
        let element = self.obj();
        let message = gst::message::Progress::builder(kind, LOADING, text)
            .src(&*element)
            .seqnum(id)
            .other_field("percent", percent.cast_signed());
        let _ = element.post_message(message.build()); // false only without a bus
    }

    pub(super) fn post_element_message(&self, fields: gst::Structure) {
        let element = self.obj();
        let message = gst::message::Element::builder(fields).src(&*element).build();
        let _ = element.post_message(message); // false only without a bus
    }

    /// Posts an error, if it is one.
    pub(super) fn fail(&self, error: &Error) -> gst::FlowError {
        let Some(message) = failure::message(error) else { return gst::FlowError::Flushing };
        gst::error!(CAT, imp = self, "{error}");
        self.post_error_message(message);
        gst::FlowError::Error
    }
}

/// Names a manifest by its file, as `blockcascade fetch` has to be told, too.
fn as_asked(error: Error, asked: &str) -> Error {
    match error {
        Error::MissingWeights { missing, roles, .. } if asked.ends_with(".toml") => {
            Error::MissingWeights { model: asked.into(), missing, roles }
        }
        error => error,
    }
}
