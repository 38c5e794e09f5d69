//! Loading on a thread of its own, for callers that may not wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use candle_core::Error as Cause;

use super::config::GeneratorConfig;
use super::error::{Error, Result};
use super::queue::{Popped, Queue};
use super::stream::panic_message;
use super::{Interrupt, Parts};

/// Networks on their way from disk to a device. Dropping it cancels what is not done, at the next
/// tensor, and waits for nothing.
#[derive(Debug)]
pub struct Loading {
    result: Arc<Queue<Result<Parts>>>,
    interrupt: Interrupt,
}

impl Loading {
    /// Starts to load; `done` is called on the loading thread, before [`wait`](Self::wait) returns.
    pub fn start(
        config: GeneratorConfig,
        done: impl FnOnce(Result<(), &Error>) + Send + 'static,
    ) -> Result<Self> {
        let loading = Self { result: Arc::new(Queue::new(1)), interrupt: Interrupt::default() };
        let (result, interrupt) = (loading.result.clone(), loading.interrupt.clone());
        let work = move || {
            let load = || Parts::load(&config, &interrupt);
            let parts = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| {
                Err(Error::worker("loading", Cause::msg(panic_message(&*panic))))
            });
            done(parts.as_ref().map(|_| ()));
            // Nobody waits any more if it cannot be left.
            let _ = result.push(parts);
            result.end();
        };
        let thread = Builder::new().name("blockcascade-load".into()).spawn(work);
        thread.map_err(|error| Error::worker("starting a thread", Cause::wrap(error)))?;
        Ok(loading)
    }

    /// The networks, once; waits for them. [`Error::Cancelled`] after [`wake`](Self::wake).
    pub fn wait(&self) -> Result<Parts> {
        match self.result.pop() {
            Popped::Item(parts) => parts,
            Popped::Cancelled => Err(Error::Cancelled),
            Popped::End => Err(Error::worker("loading", Cause::msg("its result is gone"))),
        }
    }

    /// Whether [`wait`](Self::wait) would return at once.
    pub fn is_done(&self) -> bool {
        self.result.wait(Duration::ZERO)
    }

    /// Turns whoever waits away until [`resume`](Self::resume); loading goes on.
    pub fn wake(&self) {
        self.result.cancel(true);
    }

    /// Takes a wake back.
    pub fn resume(&self) {
        self.result.cancel(false);
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.interrupt.raise();
        self.result.close();
    }
}
