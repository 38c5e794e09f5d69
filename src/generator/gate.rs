//! Stopping and going on: what cancel, resume and the end of a stream mean to its threads.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::model::Interrupt;

/// Shared by a stream's threads. While it is shut, long computations are interrupted and tried
/// again once it opens; when it is closed, threads end.
#[derive(Debug, Default)]
pub(super) struct Gate {
    interrupt: Interrupt,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    shut: bool,
    closed: bool,
    /// How often it was shut: tells an interrupted computation from a failed one.
    shuts: u64,
}

/// The stream is over.
#[derive(Debug)]
pub(super) struct Closed;

impl Gate {
    pub(super) fn shut(&self) {
        let mut state = self.lock();
        state.shut = true;
        state.shuts += 1;
        self.interrupt.raise();
    }

    pub(super) fn open(&self) {
        let mut state = self.lock();
        state.shut = false;
        if !state.closed {
            self.interrupt.clear();
        }
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.interrupt.raise();
        self.changed.notify_all();
    }

    /// Not closed, for another stream; as shut as it was.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        *state = State { shut: state.shut, ..State::default() };
        if !state.shut {
            self.interrupt.clear();
        }
    }

    /// The flag that long computations look at.
    pub(super) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Runs `work`, again when it was interrupted, until it succeeds, fails by itself or the gate
    /// closes.
    pub(super) fn persist<T>(
        &self,
        mut work: impl FnMut(&Interrupt) -> candle_core::Result<T>,
    ) -> Result<candle_core::Result<T>, Closed> {
        loop {
            let before = self.wait_open()?;
            let result = work(&self.interrupt);
            let interrupted = self.lock().shuts != before || self.interrupt.is_raised();
            if result.is_ok() || !interrupted {
                return Ok(result);
            }
        }
    }

    /// Waits while shut; returns how often the gate was shut so far.
    fn wait_open(&self) -> Result<u64, Closed> {
        let state = self.changed.wait_while(self.lock(), |state| state.shut && !state.closed);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        if state.closed { Err(Closed) } else { Ok(state.shuts) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
