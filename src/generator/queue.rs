//! A bounded queue between two threads whose reader can be cancelled.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::gate::Closed;

/// Holds at most `capacity` items: the writer waits for room, the reader for an item.
#[derive(Debug)]
pub(super) struct Queue<T> {
    capacity: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    ended: bool,
    closed: bool,
    cancelled: bool,
    /// How often it was: a reader that waits may wake after that was taken back.
    cancels: u64,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self { items: VecDeque::new(), ended: false, closed: false, cancelled: false, cancels: 0 }
    }
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Popped<T> {
    Item(T),
    /// The writer is done and nothing is left.
    End,
    /// Reading is cancelled; items stay where they are.
    Cancelled,
}

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { capacity: capacity.max(1), state, changed }
    }

    pub(super) fn push(&self, item: T) -> Result<(), Closed> {
        let full = |state: &mut State<T>| state.items.len() >= self.capacity && !state.closed;
        let mut state = self.wait_while(full);
        if state.closed {
            return Err(Closed);
        }
        state.items.push_back(item);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until an item can be pushed at once.
    pub(super) fn wait_for_room(&self) -> Result<(), Closed> {
        let full = |state: &mut State<T>| state.items.len() >= self.capacity && !state.closed;
        if self.wait_while(full).closed { Err(Closed) } else { Ok(()) }
    }

    pub(super) fn pop(&self) -> Popped<T> {
        let state = self.lock();
        let before = state.cancels;
        let is_turned_away = |s: &State<T>| s.cancelled || s.cancels != before;
        let waits =
            |s: &mut State<T>| s.items.is_empty() && !s.ended && !s.closed && !is_turned_away(s);
        let state = self.changed.wait_while(state, waits);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if is_turned_away(&state) {
            return Popped::Cancelled;
        }
        let item = state.items.pop_front();
        self.changed.notify_all();
        item.map_or(Popped::End, Popped::Item)
    }

    /// Waits until a reader would not have to, at most so long; whether that is so.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let waits = |s: &mut State<T>| s.items.is_empty() && !s.ended && !s.closed && !s.cancelled;
        let state = self.changed.wait_timeout_while(self.lock(), timeout, waits);
        !state.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    pub(super) fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// No further item will come.
    pub(super) fn end(&self) {
        self.change(|state| state.ended = true);
    }

    /// Drops what is left and turns the writer away.
    pub(super) fn close(&self) {
        self.change(|state| {
            state.closed = true;
            state.items.clear();
        });
    }

    /// Empty and open, for another stream; its reader is as cancelled as it was.
    pub(super) fn reset(&self) {
        self.change(|state| {
            let State { cancelled, cancels, .. } = *state;
            *state = State { cancelled, cancels, ..State::default() };
        });
    }

    /// Turns the reader away, or lets it in again.
    pub(super) fn cancel(&self, cancelled: bool) {
        self.change(|state| {
            state.cancelled = cancelled;
            state.cancels += u64::from(cancelled);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State<T>)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait_while(&self, condition: impl FnMut(&mut State<T>) -> bool) -> MutexGuard<'_, State<T>> {
        let state = self.changed.wait_while(self.lock(), condition);
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const MOMENT: Duration = Duration::from_millis(20);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn items_keep_their_order_and_the_writer_waits_for_room() {
        let queue = Queue::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..100).for_each(|item| queue.push(item).unwrap());
                queue.end();
            });
            for expected in 0..100 {
                assert!(queue.lock().items.len() <= 2);
                assert_eq!(queue.pop(), Popped::Item(expected));
            }
            assert_eq!(queue.pop(), Popped::End);
        });
    }

    #[test]
    fn a_waiting_reader_is_cancelled_and_loses_nothing() {
        let queue = Queue::new(2);
        thread::scope(|scope| {
            let reader = scope.spawn(|| queue.pop());
            thread::sleep(MOMENT);
            queue.cancel(true);
            assert_eq!(reader.join().unwrap(), Popped::Cancelled);
            queue.push(1).unwrap();
            assert_eq!(queue.pop(), Popped::Cancelled);
            queue.cancel(false);
            assert_eq!(queue.pop(), Popped::Item(1));
        });
    }

    #[test]
    fn a_waiting_reader_hears_of_a_cancel_that_is_taken_back_at_once() {
        let queue = Queue::new(2);
        thread::scope(|scope| {
            let reader = scope.spawn(|| queue.pop());
            // It may not wait yet. Few turns, in each of which a cancel may be seen by chance.
            let mut pause = MOMENT;
            while !reader.is_finished() && pause < PATIENCE {
                queue.cancel(true);
                queue.cancel(false);
                thread::sleep(pause);
                pause *= 2;
            }
            queue.push(1).unwrap(); // what it would wait for else
            assert_eq!(reader.join().unwrap(), Popped::Cancelled);
            assert_eq!(queue.pop(), Popped::Item(1));
        });
    }

    #[test]
    fn waiting_ends_with_an_item_or_in_time() {
        let queue = Queue::new(1);
        assert!(!queue.wait(MOMENT));
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(MOMENT);
                queue.push(1).unwrap();
            });
            assert!(queue.wait(PATIENCE));
        });
        assert_eq!((queue.len(), queue.pop()), (1, Popped::Item(1)));
        queue.end();
        assert!(queue.wait(MOMENT));
    }

    #[test]
    fn closing_wakes_a_waiting_writer() {
        let queue = Queue::new(1);
        queue.push(1).unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| queue.push(2));
            thread::sleep(MOMENT);
            queue.close();
            assert!(writer.join().unwrap().is_err());
        });
        assert_eq!(queue.pop(), Popped::End);
    }
}
