//! Prompts on their way to the blocks: encoded on their own thread, applied between ticks.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::Error as Cause;

use super::gate::Closed;
use super::transition::PromptChange;
use crate::model::TextEmbedding;

/// A prompt and when it takes effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// What to show; any text, also none.
    pub text: String,
    /// The first block to be generated under it; `None`, or one that has started, is as soon as it is
    /// encoded. A stream whose prompts all name a block that is to come is the same every time.
    pub from_block: Option<u64>,
    /// How it takes over; `None` is as the configuration says.
    pub change: Option<PromptChange>,
}

impl<T: Into<String>> From<T> for Prompt {
    fn from(text: T) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

/// Which of all prompts that a [`Controls`](super::Controls) was given, from 1 in their order; a
/// stream's first one counts, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PromptId(pub u64);

/// A prompt that frames were made under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedPrompt {
    /// As [`Controls::set_prompt`](super::Controls::set_prompt) returned it.
    pub id: PromptId,
    /// What it said.
    pub text: String,
    /// The newest prompt that is settled with it: it, one before it, or one that it overtook, which is never shown.
    pub settled: PromptId,
}

/// Prompts for blocks further ahead are encoded later: each encoding takes memory, and time of a device.
const AHEAD: u64 = 16;

/// Where prompts wait: first for their encoding, then for their block.
#[derive(Debug, Default)]
pub(super) struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The text of now: what another stream would start from.
    current: String,
    /// To be applied as soon as it is encoded; a newer one replaces it.
    soon: Option<Slot>,
    /// One that was replaced while it was encoded: shown until the newer one is ready, so that prompts that come faster
    /// than they are encoded are followed at all.
    replaced: Option<Slot>,
    /// By first block.
    scheduled: BTreeMap<u64, Slot>,
    /// The first block that has not started.
    started: u64,
    /// The first block that may not start yet.
    hold: Option<u64>,
    next_id: u64,
    /// The newest that was applied, or overtaken by one that was.
    settled: PromptId,
    closed: bool,
}

#[derive(Debug)]
struct Slot {
    id: PromptId,
    text: String,
    change: Option<PromptChange>,
    embedding: Option<Result<TextEmbedding, Cause>>,
}

/// A prompt that takes effect now.
pub(super) struct Due {
    pub(super) text: Result<TextEmbedding, Cause>,
    pub(super) prompt: AppliedPrompt,
    pub(super) change: Option<PromptChange>,
    /// Whether it names the block that is about to start.
    pub(super) scheduled: bool,
}

/// A text to encode.
pub(super) struct Job {
    id: PromptId,
    pub(super) text: String,
    change: Option<PromptChange>,
    /// Not for a certain block.
    is_soon: bool,
}

impl Desk {
    /// A desk whose streams start from `text`.
    pub(super) fn new(text: String) -> Self {
        let state = State { current: text, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn submit(&self, prompt: Prompt) -> PromptId {
        let mut state = self.lock();
        let slot = state.slot(prompt.text, prompt.change);
        let id = slot.id;
        match prompt.from_block.filter(|block| *block >= state.started) {
            None => {
                state.current.clone_from(&slot.text);
                state.soon = Some(slot);
            }
            Some(block) => {
                state.scheduled.insert(block, slot);
            }
        }
        self.changed.notify_all();
        id
    }

    /// Blocks from this one on do not start before they are let go; `None` lets all go.
    pub(super) fn hold(&self, block: Option<u64>) {
        self.lock().hold = block;
        self.changed.notify_all();
    }

    /// Schedules the text of now for the first block, unless another one is: that of a prompt that
    /// came just before, or that of a stream before this one.
    pub(super) fn start(&self) {
        let mut state = self.lock();
        if !state.scheduled.contains_key(&0) {
            let text = state.current.clone();
            let slot = state.soon.take().unwrap_or_else(|| state.slot(text, None));
            state.scheduled.insert(0, slot);
        }
        self.changed.notify_all();
    }

    /// Waits for a prompt that is not encoded yet.
    pub(super) fn next_job(&self) -> Result<Job, Closed> {
        let state = self.wait_while(|state| state.jobs().next().is_none() && !state.closed);
        if state.closed {
            return Err(Closed);
        }
        let is_soon = |id| state.soon.as_ref().is_some_and(|soon| soon.id == id);
        let job = |&Slot { id, ref text, change, .. }: &Slot| Job {
            id,
            text: text.clone(),
            change,
            is_soon: is_soon(id),
        };
        state.jobs().next().map(job).ok_or(Closed)
    }

    /// Leaves the encoding of a job; one for a block that was replaced meanwhile is forgotten.
    pub(super) fn encoded(&self, job: &Job, embedding: Result<TextEmbedding, Cause>) {
        let mut state = self.lock();
        let State { soon, scheduled, replaced, settled, .. } = &mut *state;
        let mut slots = soon.iter_mut().chain(scheduled.values_mut());
        if let Some(slot) = slots.find(|slot| slot.id == job.id) {
            slot.embedding = Some(embedding);
        } else if job.is_soon && job.id > *settled {
            let Job { id, ref text, change, .. } = *job;
            *replaced = Some(Slot { id, text: text.clone(), change, embedding: Some(embedding) });
        }
        self.changed.notify_all();
    }

    /// What a tick that starts `block` (`None`: no block) has to apply. It waits while the block is
    /// held, and for a prompt that is scheduled for it; a sooner one it takes only when ready.
    pub(super) fn due(&self, block: Option<u64>) -> Result<Option<Due>, Closed> {
        self.due_after(PromptId::default(), block)
    }

    /// The same, behind a cut by the prompt `newest`: what is older than it and was scheduled for a block
    /// that starts now is over, and overtakes nothing any more.
    pub(super) fn due_after(
        &self,
        newest: PromptId,
        block: Option<u64>,
    ) -> Result<Option<Due>, Closed> {
        let after = block.map_or(0, |block| block + 1);
        let waiting = |state: &mut State| {
            let held = state.hold.zip(block).is_some_and(|(hold, block)| block >= hold);
            let mut due = state.scheduled.range(..after);
            (held || due.any(|(_, slot)| slot.embedding.is_none())) && !state.closed
        };
        self.lock().scheduled.retain(|block, slot| *block >= after || slot.id > newest);
        let mut state = self.wait_while(waiting);
        if state.closed {
            return Err(Closed);
        }
        if after > state.started {
            state.started = after;
            self.changed.notify_all(); // other prompts are near now
        }
        let Some((slot, scheduled)) = state.choose(after) else { return Ok(None) };
        if state.soon.is_none() {
            state.current.clone_from(&slot.text); // what is still to come is newer
        }
        let Slot { id, text, change, embedding } = slot;
        let prompt = AppliedPrompt { id, text, settled: state.settled };
        Ok(embedding.map(|text| Due { text, prompt, change, scheduled }))
    }

    /// Forgets what waits, but not the text of now, and opens again.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        let current = std::mem::take(&mut state.current);
        *state = State { current, hold: state.hold, next_id: state.next_id, ..State::default() };
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn wait_while(&self, condition: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        let state = self.changed.wait_while(self.lock(), condition);
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn slot(&mut self, text: String, change: Option<PromptChange>) -> Slot {
        self.next_id += 1;
        Slot { id: PromptId(self.next_id), text, change, embedding: None }
    }

    /// What is to be applied when the blocks before `after` have started, and whether it was scheduled. What is
    /// scheduled holds from its block on: whatever was to be shown as soon as can be would have come before it, and is
    /// overtaken. Before the first block there is nothing: the newest is chosen for it.
    fn choose(&mut self, after: u64) -> Option<(Slot, bool)> {
        let later = self.scheduled.split_off(&after);
        let scheduled = std::mem::replace(&mut self.scheduled, later);
        let overtakes = after > 1 && !scheduled.is_empty();
        let soon = self.soon.take_if(|slot| overtakes || slot.embedding.is_some());
        let untimed = self.replaced.take().into_iter().chain(soon).map(|slot| (slot, false));
        let scheduled = scheduled.into_values().map(|slot| (slot, true));
        let due: Vec<_> = untimed.chain(scheduled).collect();
        self.settled = due.iter().map(|(slot, _)| slot.id).fold(self.settled, PromptId::max);
        self.soon.take_if(|slot| slot.id < self.settled);
        let newest = |(slot, _): &(Slot, bool)| slot.id;
        if overtakes { due.into_iter().last() } else { due.into_iter().max_by_key(newest) }
    }

    /// Slots to encode, in the order in which they are needed: a block may be waiting for the first ones.
    fn jobs(&self) -> impl Iterator<Item = &Slot> {
        let waited_for = self.scheduled.range(..=self.started);
        let near = self.scheduled.range(self.started + 1..self.started + AHEAD);
        let [waited_for, near] = [waited_for, near].map(|slots| slots.map(|(_, slot)| slot));
        waited_for.chain(&self.soon).chain(near).filter(|slot| slot.embedding.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn encode(desk: &Desk) {
        let job = desk.next_job().unwrap();
        let length = Tensor::new(job.text.len() as f32, &Device::Cpu).unwrap();
        desk.encoded(&job, Ok(TextEmbedding(length)));
    }

    /// The length of the text that is due.
    fn due(desk: &Desk, block: u64) -> Option<f32> {
        let due = desk.due(Some(block)).unwrap()?;
        Some(due.text.unwrap().0.to_scalar().unwrap())
    }

    fn at(block: u64, text: &str) -> Prompt {
        Prompt { from_block: Some(block), ..text.into() }
    }

    #[test]
    fn a_prompt_is_due_once_when_encoded() {
        let desk = Desk::default();
        desk.submit("one".into());
        assert_eq!(due(&desk, 5), None);
        encode(&desk);
        assert_eq!(due(&desk, 5), Some(3.0));
        assert_eq!(due(&desk, 5), None);
    }

    /// What is shown of prompts that come faster than they are encoded.
    #[test]
    fn a_prompt_that_was_replaced_is_shown_until_the_newer_one_is_ready() {
        let desk = Desk::default();
        for (older, newer, length) in [("one", "three", 3.0), ("fifteen", "two", 7.0)] {
            desk.submit(older.into());
            let job = desk.next_job().unwrap();
            desk.submit(newer.into());
            desk.encoded(&job, Ok(TextEmbedding(Tensor::new(length, &Device::Cpu).unwrap())));
            assert_eq!(due(&desk, 0), Some(length));
            assert_eq!(due(&desk, 0), None);
        }
        encode(&desk);
        assert_eq!(due(&desk, 0), Some(3.0));
    }

    /// Whether what was typed before it is encoded, or even applied, or not.
    #[test]
    fn a_scheduled_prompt_holds_from_its_block_on() {
        for (is_encoded, is_applied) in [(false, false), (true, false), (true, true)] {
            let desk = Desk::default();
            desk.submit(at(3, "cue"));
            encode(&desk);
            assert_eq!(due(&desk, 2), None);
            let typed = desk.submit("typed".into());
            let job = desk.next_job().unwrap();
            let five = || Ok(TextEmbedding(Tensor::new(5f32, &Device::Cpu).unwrap()));
            if is_encoded {
                desk.encoded(&job, five());
            }
            assert!(!is_applied || desk.due(None).unwrap().is_some());
            let cue = desk.due(Some(3)).unwrap().unwrap();
            assert_eq!((cue.prompt.text.as_str(), cue.scheduled), ("cue", true));
            assert_eq!(cue.prompt.settled, typed, "it is answered then");
            desk.encoded(&job, five());
            assert_eq!(due(&desk, 4), None, "what was overtaken does not come later");
        }
    }

    /// A cut may start a block that has an older cue, while a newer prompt is still to be encoded.
    #[test]
    fn a_cue_from_before_a_cut_overtakes_nothing() {
        let desk = Desk::default();
        desk.submit(at(3, "an older cue"));
        encode(&desk);
        desk.submit("the cut".into());
        let job = desk.next_job().unwrap();
        desk.submit("newer".into());
        desk.encoded(&job, Ok(TextEmbedding(Tensor::new(7f32, &Device::Cpu).unwrap())));
        let cut = desk.due(None).unwrap().unwrap();
        assert_eq!(cut.prompt.text, "the cut");
        assert!(desk.due_after(cut.prompt.id, Some(3)).unwrap().is_none());
        encode(&desk);
        assert_eq!(due(&desk, 4), Some(5.0));
    }

    #[test]
    fn what_a_stream_starts_from_is_the_newest_text() {
        let desk = Desk::default();
        desk.submit("older".into());
        let job = desk.next_job().unwrap();
        desk.submit("new".into());
        desk.encoded(&job, Ok(TextEmbedding(Tensor::new(5f32, &Device::Cpu).unwrap())));
        assert_eq!(due(&desk, 1), Some(5.0));
        desk.reset();
        desk.start();
        encode(&desk);
        assert_eq!(due(&desk, 0), Some(3.0));
    }

    #[test]
    fn a_block_that_waits_has_its_prompt_encoded_first() {
        let desk = Desk::default();
        for prompt in ["soon".into(), at(1, "later"), at(0, "now")] {
            desk.submit(prompt);
        }
        let jobs: Vec<_> = desk.lock().jobs().map(|slot| slot.text.clone()).collect();
        assert_eq!(jobs, ["now", "soon", "later"]);
    }

    #[test]
    fn scheduled_prompts_wait_for_their_block_and_the_latest_due_one_wins() {
        let desk = Desk::default();
        for prompt in [at(4, "four"), at(2, "x"), at(3, "yy")] {
            desk.submit(prompt);
        }
        (0..3).for_each(|_| encode(&desk));
        assert_eq!(due(&desk, 1), None);
        assert!(desk.due(None).unwrap().is_none());
        assert_eq!(due(&desk, 3), Some(2.0));
        assert_eq!(due(&desk, 9), Some(4.0));
    }

    /// What misses its block is no older than it is: it does not come after a newer one.
    #[test]
    fn a_prompt_for_a_block_that_has_started_is_for_now() {
        let desk = Desk::default();
        assert_eq!(due(&desk, 6), None);
        desk.submit(at(5, "late"));
        desk.submit("newest".into());
        encode(&desk);
        assert_eq!((due(&desk, 7), due(&desk, 8)), (Some(6.0), None));
        desk.submit(at(8, "late"));
        encode(&desk);
        assert!(!desk.due(None).unwrap().unwrap().scheduled);
    }

    #[test]
    fn far_prompts_are_encoded_when_they_are_near() {
        let desk = Desk::default();
        desk.submit(at(AHEAD, "far"));
        assert_eq!(desk.lock().jobs().count(), 0);
        std::thread::scope(|scope| {
            let encoder = scope.spawn(|| encode(&desk));
            assert_eq!(due(&desk, 0), None);
            encoder.join().unwrap();
        });
        assert_eq!(due(&desk, AHEAD), Some(3.0));
    }

    #[test]
    fn a_prompt_that_came_before_the_start_is_the_first_one() {
        let desk = Desk::new("of the configuration".into());
        let id = desk.submit("three".into());
        desk.start();
        encode(&desk);
        let first = desk.due(Some(0)).unwrap().unwrap();
        assert_eq!((first.prompt.id, first.prompt.text.as_str()), (id, "three"));
    }

    #[test]
    fn a_prompt_that_came_after_that_of_the_first_block_is_not_lost() {
        let desk = Desk::default();
        desk.submit(at(0, "x"));
        desk.submit("three".into());
        desk.start();
        assert_eq!(desk.lock().jobs().count(), 2);
        (0..2).for_each(|_| encode(&desk));
        assert_eq!(due(&desk, 0), Some(5.0));
    }

    #[test]
    fn a_held_block_waits_until_it_is_let_go() {
        let desk = Desk::default();
        desk.hold(Some(2));
        assert_eq!((due(&desk, 1), desk.due(None).unwrap().is_none()), (None, true));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| due(&desk, 2));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiting.is_finished());
            desk.submit(at(2, "late"));
            encode(&desk);
            desk.hold(None);
            assert_eq!(waiting.join().unwrap(), Some(4.0));
        });
    }

    #[test]
    fn a_block_waits_for_its_prompt_until_closed() {
        let desk = Desk::default();
        desk.submit(at(0, "never"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| desk.due(Some(0)).is_err());
            std::thread::sleep(std::time::Duration::from_millis(20));
            desk.close();
            assert!(waiting.join().unwrap());
        });
        assert!(desk.next_job().is_err());
    }
}
