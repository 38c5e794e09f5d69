//! Prompts as they come in, and what became of each.

use std::collections::VecDeque;
use std::time::Instant;

use glib::prelude::*;
use glib::value::FromValue;
use gstreamer as gst;

use super::settings::{PromptPolicy, TransitionMethod};
use crate::generator::{AppliedPrompt, PromptChange, PromptId};

/// Name of the upstream event that changes the prompt.
pub const EVENT: &str = "blockcascade/prompt";
/// Longest prompt, in bytes.
const MAX_TEXT: usize = 16 << 10;
/// Most prompts that wait for their frame.
pub const MAX_WAITING: usize = 16 << 10;
/// Most blocks of a transition.
pub const MAX_TRANSITION: u32 = 1024;
/// Events whose numbers are remembered, to know them when they come by another branch.
const MAX_SEEN: usize = 64;

/// A prompt that somebody asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub text: String,
    /// When it shall take effect; else as soon as it can.
    pub running_time: Option<gst::ClockTime>,
    /// Given back in every answer.
    pub id: Option<String>,
    /// How it takes over, where that is not as the element's properties say.
    pub policy: Option<PromptPolicy>,
    pub transition_blocks: Option<u32>,
    pub transition_method: Option<TransitionMethod>,
}

impl Request {
    /// Any text that is not too long.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("a prompt of {} bytes, expected at most {MAX_TEXT}", text.len()));
        }
        Ok(Self { text: text.into(), ..Self::default() })
    }

    /// From the fields of an event or a signal: those of [`FIELDS`], no others.
    pub fn parse(fields: &gst::StructureRef) -> Result<Self, String> {
        let unknown = fields.fields().find(|name| !FIELDS.contains(&name.as_str()));
        if let Some(name) = unknown {
            return Err(format!("field {name}, expected one of {}", FIELDS.join(", ")));
        }
        let text = fields.get::<&str>("text").map_err(|error| error.to_string())?;
        Ok(Self {
            running_time: time(fields, "running-time")?,
            id: optional(fields, "id")?,
            policy: choice(fields, "prompt-policy")?,
            transition_blocks: number(fields, "transition-blocks")?,
            transition_method: choice(fields, "transition-method")?,
            ..Self::new(text)?
        })
    }

    /// Its time, unless it is no later than `past`.
    pub fn time_to_come(&self, past: Option<gst::ClockTime>) -> Option<gst::ClockTime> {
        self.running_time.filter(|time| past.is_none_or(|past| *time > past))
    }

    /// How it takes over; as `usual` in what it does not say.
    pub fn change(&self, usual: PromptChange) -> PromptChange {
        PromptChange {
            policy: self.policy.map_or(usual.policy, Into::into),
            blocks: self.transition_blocks.unwrap_or(usual.blocks).min(MAX_TRANSITION),
            method: self.transition_method.map_or(usual.method, Into::into),
        }
    }
}

const FIELDS: [&str; 6] =
    ["text", "running-time", "id", "prompt-policy", "transition-blocks", "transition-method"];

fn optional<'a, T: FromValue<'a>>(
    fields: &'a gst::StructureRef,
    name: &str,
) -> Result<Option<T>, String> {
    fields.get_optional(name).map_err(|error| error.to_string())
}

/// In ns; GST_CLOCK_TIME_NONE is a value, too, and means the same as no field.
fn time(fields: &gst::StructureRef, name: &str) -> Result<Option<gst::ClockTime>, String> {
    let time: Option<u64> = number(fields, name)?;
    Ok(time.filter(|time| *time != u64::MAX).map(gst::ClockTime::from_nseconds))
}

/// Of any type: of a number whose type is not said, a structure's text makes an int, or a double where it is larger,
/// and Python an int or a long.
fn number<'a, T>(fields: &'a gst::StructureRef, name: &str) -> Result<Option<T>, String>
where
    T: FromValue<'a> + TryFrom<i64>,
{
    let other = fields.value(name).ok().and_then(whole);
    match other.and_then(|number| T::try_from(number).ok()) {
        None => optional(fields, name),
        number => Ok(number),
    }
}

fn whole(value: &glib::SendValue) -> Option<i64> {
    use glib::Type;
    const TYPES: [Type; 6] =
        [Type::I32, Type::U32, Type::I64, Type::U64, Type::I_LONG, Type::U_LONG];
    if TYPES.contains(&value.type_()) {
        return value.transform::<i64>().ok()?.get().ok();
    }
    let is_whole = |number: &f64| number.fract() == 0.0 && number.abs() < 1e15;
    value.get::<f64>().ok().filter(is_whole).map(|number| number as i64)
}

/// A value of an enumeration, as such or by its nick.
fn choice<T>(fields: &gst::StructureRef, name: &str) -> Result<Option<T>, String>
where
    T: StaticType + for<'a> FromValue<'a>,
{
    let Ok(value) = fields.value(name) else { return Ok(None) };
    let Ok(nick) = value.get::<&str>() else { return optional(fields, name) };
    let class = glib::EnumClass::with_type(T::static_type()).ok_or("no enumeration")?;
    let value = class.to_value_by_nick(nick).and_then(|value| value.get::<T>().ok());
    let nicks = class.values().iter().map(|value| value.nick().to_owned()).collect::<Vec<_>>();
    value.map(Some).ok_or(format!("{name}: got {nick:?}, expected one of {}", nicks.join(", ")))
}

/// A prompt that was handed to the generator.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub prompt: PromptId,
    pub request: Request,
    /// The block that it names.
    pub from_block: Option<u64>,
    pub since: Instant,
}

/// What became of a prompt.
#[derive(Clone, Debug)]
pub struct Answer {
    pub request: Request,
    pub since: Instant,
    pub applied: bool,
}

/// What a frame that is shown says of prompts.
#[derive(Debug, Default)]
pub struct Shown {
    /// It is the first one of its prompt.
    pub is_first: bool,
    pub answers: Vec<Answer>,
}

/// The prompts that wait for their first frame, and which is shown.
#[derive(Debug, Default)]
pub struct Book {
    waiting: VecDeque<Waiting>,
    shown: Option<PromptId>,
    block: Option<u64>,
    seen: VecDeque<gst::Seqnum>,
    pub applied: u64,
    pub dropped: u64,
    pub duplicates: u64,
}

impl Book {
    /// Whether an event was seen before: it comes through every branch behind a tee.
    pub fn is_duplicate(&mut self, number: gst::Seqnum) -> bool {
        if self.seen.contains(&number) {
            self.duplicates += 1;
            return true;
        }
        self.seen.push_back(number);
        if self.seen.len() > MAX_SEEN {
            self.seen.pop_front();
        }
        false
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn wait(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    /// Whether another one is for the same block, and for a later time.
    pub fn is_too_early(&self, block: Option<u64>, time: Option<gst::ClockTime>) -> bool {
        let is_later =
            |other: &Waiting| other.from_block == block && other.request.running_time > time;
        block.is_some() && self.waiting.iter().any(is_later)
    }

    /// Whether a frame is the first of its prompt, and what it settles: the first of a block settles what
    /// was for it, or for an earlier one, and is not shown.
    pub fn show(&mut self, prompt: &AppliedPrompt, block: u64) -> Shown {
        let is_first = self.shown.replace(prompt.id) != Some(prompt.id);
        let is_next = self.block.replace(block) != Some(block);
        if !is_first && !is_next {
            return Shown::default();
        }
        let is_past = |from_block: Option<u64>| from_block.is_none_or(|from| from <= block);
        let is_over = |waiting: &Waiting| {
            let is_settled = waiting.prompt <= prompt.settled && is_past(waiting.from_block);
            is_settled || waiting.prompt == prompt.id
        };
        let (over, waiting) = self.waiting.drain(..).partition(is_over);
        self.waiting = waiting;
        let over: VecDeque<Waiting> = over;
        let answer = |Waiting { prompt: id, request, since, .. }| Answer {
            request,
            since,
            applied: id == prompt.id,
        };
        let answers: Vec<_> = over.into_iter().map(answer).collect();
        let applied = answers.iter().filter(|answer| answer.applied).count();
        self.applied += applied as u64;
        self.dropped += (answers.len() - applied) as u64;
        Shown { is_first, answers }
    }

    /// Everything that still waits, when the stream ends.
    pub fn close(&mut self, early: impl IntoIterator<Item = (Request, Instant)>) -> Vec<Answer> {
        (self.shown, self.block) = (None, None);
        let waiting = self.waiting.drain(..).map(|waiting| (waiting.request, waiting.since));
        let answer = |(request, since)| Answer { request, since, applied: false };
        let answers: Vec<_> = waiting.chain(early).map(answer).collect();
        self.dropped += answers.len() as u64;
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cascade, generator};

    fn waiting(id: u64, from_block: Option<u64>) -> Waiting {
        let request = Request { id: Some(id.to_string()), ..Request::default() };
        Waiting { prompt: PromptId(id), request, from_block, since: Instant::now() }
    }

    /// Whether a frame is its prompt's first one, and the answers to others.
    fn shown(book: &mut Book, id: u64, block: u64) -> (bool, Vec<(String, bool)>) {
        shown_with(book, id, id, block)
    }

    /// The same, `settled` with it.
    fn shown_with(
        book: &mut Book,
        id: u64,
        settled: u64,
        block: u64,
    ) -> (bool, Vec<(String, bool)>) {
        let (id, settled) = (PromptId(id), PromptId(settled));
        let prompt = AppliedPrompt { id, settled, ..AppliedPrompt::default() };
        let Shown { is_first, answers } = book.show(&prompt, block);
        let answer = |answer: Answer| (answer.request.id.unwrap(), answer.applied);
        (is_first, answers.into_iter().map(answer).collect())
    }

    fn parsed(fields: &str) -> Result<Request, String> {
        gst::init().unwrap();
        Request::parse(&fields.parse::<gst::Structure>().unwrap())
    }

    #[test]
    fn what_a_prompt_does_not_say_is_as_usual() {
        let usual = PromptChange { blocks: 4, ..PromptChange::default() };
        assert_eq!(parsed("p, text=a").unwrap().change(usual), usual);
        let fields = "p, text=a, prompt-policy=next-block, transition-blocks=(uint)2, \
                      transition-method=slerp";
        let change = PromptChange {
            policy: cascade::PromptPolicy::NextBlock,
            blocks: 2,
            method: generator::TransitionMethod::Slerp,
        };
        assert_eq!(parsed(fields).unwrap().change(usual), change);
    }

    #[test]
    fn a_time_may_be_none() {
        let time = |time: u64| format!("p, text=a, running-time=(guint64){time}");
        let second = Some(gst::ClockTime::SECOND);
        assert_eq!(parsed(&time(1_000_000_000)).unwrap().running_time, second);
        assert_eq!(parsed(&time(u64::MAX)).unwrap().running_time, None);
        assert_eq!(parsed("p, text=a").unwrap().running_time, None);
    }

    #[test]
    fn numbers_may_be_of_any_type() {
        let double = "8589934592"; // what fits 32 bits is an int, of whatever sign
        for (written, nanoseconds) in
            [("1000", 1000), ("(gint64)1000", 1000), ("(uint)1000", 1000), (double, 1 << 33)]
        {
            let request = parsed(&format!("p, text=a, running-time={written}"));
            let time = request.unwrap_or_else(|error| panic!("{written}: {error}")).running_time;
            assert_eq!(time, Some(gst::ClockTime::from_nseconds(nanoseconds)), "{written}");
        }
        for written in ["2", "(gint64)2", "(uint)2", "(guint64)2"] {
            let request = parsed(&format!("p, text=a, transition-blocks={written}")).unwrap();
            assert_eq!(request.transition_blocks, Some(2), "{written}");
        }
        let mut fields = gst::Structure::builder("p").field("text", "a").build();
        fields.set("running-time", glib::ILong(5));
        assert_eq!(
            Request::parse(&fields).unwrap().running_time,
            Some(gst::ClockTime::from_nseconds(5))
        );
    }

    #[test]
    fn wrong_fields_are_named_with_what_is_expected() {
        for (fields, expected) in [
            ("p", "text"),
            ("p, text=(int)7", "text"),
            ("p, text=a, mode=cut", "expected one of text, running-time"),
            (
                "p, text=a, prompt-policy=never",
                "got \"never\", expected one of in-flight, next-block, recache",
            ),
            ("p, text=a, transition-method=(int)1", "transition-method"),
            ("p, text=a, transition-blocks=(int)-1", "transition-blocks"),
            ("p, text=a, running-time=(int)-1", "running-time"),
            ("p, text=a, running-time=2.5", "running-time"),
            ("p, text=a, id=(int)1", "id"),
        ] {
            let error = parsed(fields).unwrap_err();
            assert!(error.contains(expected), "{fields}: {error}");
        }
    }

    #[test]
    fn a_prompt_is_answered_once_and_settles_those_before_it() {
        let mut book = Book::default();
        for (id, from_block) in [(2, None), (3, Some(9)), (4, None)] {
            book.wait(waiting(id, from_block));
        }
        assert_eq!(shown(&mut book, 1, 0), (true, vec![]));
        assert_eq!(shown(&mut book, 1, 1), (false, vec![]));
        let both = vec![("2".into(), false), ("4".into(), true)];
        assert_eq!(shown(&mut book, 4, 2), (true, both));
        assert_eq!(shown(&mut book, 3, 9), (true, vec![("3".into(), true)]));
        assert_eq!((book.applied, book.dropped, book.len()), (2, 1, 0));
    }

    /// A newer one that named a time already past is shown later than what was being made.
    #[test]
    fn only_what_is_older_is_over() {
        let mut book = Book::default();
        for (id, from_block) in [(2, Some(5)), (3, Some(7)), (4, Some(6))] {
            book.wait(waiting(id, from_block));
        }
        let both = vec![("2".into(), false), ("3".into(), true)];
        assert_eq!(shown(&mut book, 3, 8), (true, both));
        assert_eq!(shown(&mut book, 4, 9), (true, vec![("4".into(), true)]));
    }

    /// A newer prompt was shown before the block that it was for.
    #[test]
    fn what_missed_its_block_is_answered_then() {
        let mut book = Book::default();
        for (id, from_block) in [(2, Some(7)), (3, Some(7)), (4, None)] {
            book.wait(waiting(id, from_block));
        }
        assert_eq!(shown(&mut book, 4, 6), (true, vec![("4".into(), true)]));
        let both = vec![("2".into(), false), ("3".into(), false)];
        assert_eq!(shown(&mut book, 4, 7), (false, both));
    }

    /// It came after the one that was for this block, and was to be shown before it.
    #[test]
    fn what_was_overtaken_is_answered() {
        let mut book = Book::default();
        for (id, from_block) in [(2, Some(5)), (3, None), (4, Some(9))] {
            book.wait(waiting(id, from_block));
        }
        let both = vec![("2".into(), true), ("3".into(), false)];
        assert_eq!(shown_with(&mut book, 2, 3, 5), (true, both));
        assert_eq!(book.len(), 1);
    }

    #[test]
    fn of_two_for_one_block_the_later_time_counts() {
        let mut book = Book::default();
        let time = |seconds| Some(gst::ClockTime::from_seconds(seconds));
        let mut later = waiting(2, Some(5));
        later.request.running_time = time(4);
        book.wait(later);
        assert!(book.is_too_early(Some(5), time(3)));
        for (block, seconds) in [(Some(5), 4), (Some(5), 5), (Some(4), 3), (None, 3)] {
            assert!(!book.is_too_early(block, time(seconds)));
        }
    }

    #[test]
    fn what_waits_at_the_end_is_dropped() {
        let mut book = Book::default();
        book.wait(waiting(1, Some(99)));
        let early = waiting(2, None);
        let answers = book.close([(early.request, early.since)]);
        let ids: Vec<_> = answers.into_iter().map(|answer| answer.request.id.unwrap()).collect();
        assert_eq!(ids, ["1", "2"]);
        assert_eq!((book.applied, book.dropped, book.len()), (0, 2, 0));
    }

    #[test]
    fn an_event_is_new_once() {
        let mut book = Book::default();
        let number = gst::Seqnum::next();
        assert_eq!([0, 1, 2].map(|_| book.is_duplicate(number)), [false, true, true]);
        assert!(!book.is_duplicate(gst::Seqnum::next()));
        assert_eq!(book.duplicates, 2);
    }
}
