//! Several workers: whoever fails, in whatever way, wakes all others, and is the one that is named.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use candle_core::{Result, bail};
use gstblockcascade::cascade::{AttentionMode, BlockCost, Cascade, CleanBlock, PromptPolicy};
use gstblockcascade::model::Interrupt;

use super::case::{Case, FRAMES, STEPS, Subject, Switch};
use super::oracle::{self, Beat, numbers};
use super::probe::Probed;
use super::{cascade, compare, run, toy};

/// Far more than the work takes; a worker that waits for ever is told by it.
const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Error,
    Panic,
    Interrupted,
}

const FAULTS: [Fault; 3] = [Fault::Error, Fault::Panic, Fault::Interrupted];

fn case(workers: usize, attention: AttentionMode) -> Case {
    Case { steps: STEPS[1], workers, attention, blocks: 4, ..Case::default() }.limited(1, 1)
}

/// Fails the test if `work` hangs.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || sender.send(work()));
    match receiver.recv_timeout(TIMEOUT) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("nothing was sent"),
        },
    }
}

/// `subject`, at fault before its `at`-th exchange, or when it `has_seen` what that gives, and then never again.
fn faulty(
    subject: Subject,
    fault: Fault,
    (at, has_seen): (usize, bool),
    interrupt: &Interrupt,
) -> Subject {
    let interrupt = interrupt.clone();
    Probed::subject(subject, move |moment| {
        if moment.exchange == at && moment.seen.is_some() == has_seen {
            match fault {
                Fault::Error => bail!("deliberate"),
                Fault::Panic => panic!("deliberate"),
                Fault::Interrupted => interrupt.raise(),
            }
        }
        Ok(())
    })
}

/// A tick whose panic is an error like others.
fn tick(cascade: &mut Cascade, interrupt: &Interrupt) -> Result<Option<CleanBlock>> {
    match catch_unwind(AssertUnwindSafe(|| cascade.tick(interrupt))) {
        Ok(done) => done,
        Err(panic) => bail!("panicked: {:?}", panic.downcast_ref::<&str>()),
    }
}

/// The stream's latents, every failing tick tried again, and what the failures were.
fn stubborn(mut cascade: Cascade, interrupt: &Interrupt) -> (Vec<Vec<f32>>, Vec<String>) {
    let (mut latents, mut failures) = (Vec::new(), Vec::new());
    while !cascade.is_finished() {
        match tick(&mut cascade, interrupt) {
            Ok(block) => latents.extend(block.map(|block| numbers(&block.latent).unwrap())),
            Err(error) => {
                interrupt.clear();
                failures.push(error.to_string());
            }
        }
    }
    (latents, failures)
}

/// Exchanges of an undisturbed stream, on all workers.
fn exchanges(case: &Case) -> usize {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let subject = Probed::subject(toy(), move |moment| {
        counted.fetch_add(usize::from(moment.seen.is_none()), Ordering::SeqCst);
        Ok(())
    });
    run(&subject, case).unwrap();
    count.load(Ordering::SeqCst)
}

#[test]
fn a_worker_that_fails_at_any_layer_stops_all_and_nothing_is_lost() {
    for (workers, attention) in [(2, AttentionMode::Bidirectional), (3, AttentionMode::Causal)] {
        let case = case(workers, attention);
        let (expected, _) = stubborn(cascade(&toy(), &case), &Interrupt::default());
        let moments = (0..exchanges(&case)).flat_map(|at| [(at, false), (at, true)]);
        for (at, fault) in moments.flat_map(|at| FAULTS.map(|fault| (at, fault))) {
            if fault == Fault::Interrupted && at.1 {
                continue; // it shows before the next exchange, if there is one
            }
            let (case, expected) = (case.clone(), expected.clone());
            in_time(move || {
                let interrupt = Interrupt::default();
                let subject = faulty(toy(), fault, at, &interrupt);
                let (latents, failures) = stubborn(cascade(&subject, &case), &interrupt);
                let cause = if fault == Fault::Interrupted { "interrupted" } else { "deliberate" };
                assert_eq!(failures.len(), 1, "{fault:?} at {at:?}: {failures:?}");
                assert!(failures[0].contains(cause), "{fault:?} at {at:?}: {failures:?}");
                assert!(latents == expected, "{fault:?} at {at:?} changed the stream");
            });
        }
    }
}

/// Also where workers give each other nothing.
#[test]
fn a_failure_ends_the_layers_of_others() {
    let workers = 3;
    let case = Case { steps: STEPS[2], workers, blocks: 3, ..Case::default() }.stage_matched();
    let begun = Arc::new(AtomicUsize::new(0));
    let (together, count) = (Barrier::new(workers), begun.clone());
    let subject = Probed::subject(toy(), move |moment| {
        let in_flight = moment.exchange >= exchanges_before_all(workers);
        if in_flight && moment.seen.is_none() && count.fetch_add(1, Ordering::SeqCst) < workers {
            together.wait();
            if moment.first_frames == [0] {
                bail!("deliberate");
            }
            thread::sleep(Duration::from_secs(1)); // until that is known
        }
        Ok(())
    });
    let mut cascade = cascade(&subject, &case);
    let outcomes = (0..workers).map(|_| cascade.tick(&Interrupt::default()).is_ok());
    assert_eq!(outcomes.collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(begun.load(Ordering::SeqCst), workers, "others went on");
}

/// Those of the ticks in which fewer blocks than `workers` are in flight.
fn exchanges_before_all(workers: usize) -> usize {
    (1..workers).sum::<usize>() * toy().model.spec().layers
}

#[test]
fn a_slow_worker_is_waited_for() {
    let case = case(3, AttentionMode::Bidirectional);
    let (expected, _) = stubborn(cascade(&toy(), &case), &Interrupt::default());
    let sleeps = Arc::new(AtomicUsize::new(0));
    let count = sleeps.clone();
    let latents = in_time(move || {
        let slow = Probed::subject(toy(), move |moment| {
            if moment.first_frames == [3] {
                count.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        stubborn(cascade(&slow, &case), &Interrupt::default()).0
    });
    assert!(latents == expected && sleeps.load(Ordering::SeqCst) > 0);
}

/// One worker caches a block while the other fails; then both start anew.
#[test]
fn what_a_failed_tick_left_is_forgotten_at_a_cut() {
    let switch = Switch { policy: PromptPolicy::Cut, tick: 2 };
    let case = Case { switch: Some(switch), ..case(2, AttentionMode::Bidirectional) };
    let expected = oracle::run(&toy(), &case).unwrap();
    let (layers, exchanges) = (toy().model.spec().layers, AtomicUsize::new(0));
    // Block 1 is in its second tick, in its last layer.
    let subject = Probed::subject(toy(), move |moment| {
        let is_its = moment.first_frames == [FRAMES] && moment.seen.is_some();
        if is_its && exchanges.fetch_add(1, Ordering::SeqCst) + 1 == 2 * layers {
            bail!("deliberate");
        }
        Ok(())
    });
    let (mut cascade, interrupt) = (cascade(&subject, &case), Interrupt::default());
    let mut got = Vec::new();
    while !cascade.is_finished() {
        if got.len() == 2 {
            assert!(cascade.tick(&interrupt).is_err());
            cascade.set_text(subject.text(1, 2), switch.policy);
        }
        let admits = cascade.admits();
        let clean = cascade.tick(&interrupt).unwrap().map(|block| (block.index, block.latent));
        got.push(Beat { admits, clean });
    }
    compare(&got, &expected, &case);
}

/// Blocks at passes that are a stagger apart are never on one worker while another has none.
#[test]
fn passes_of_a_tick_are_spread_over_the_workers() {
    for (stagger, workers) in [(2, 2), (1, 4)] {
        let case = Case { steps: STEPS[3], stagger, workers, ..Case::default() }.stage_matched();
        let subject = Probed::subject(toy(), |moment| {
            assert_eq!(moment.first_frames.len(), 1, "blocks of one forward");
            Ok(())
        });
        run(&subject, &case).unwrap();
    }
}

/// Each block's keys and values go to every other worker, once a layer.
#[test]
fn bytes_that_are_exchanged_follow_the_formula() {
    let blocks = 4;
    for (workers, others) in [(1, 0), (4, 3)] {
        let case = Case { workers, blocks, ..Case::default() };
        let mut cascade = cascade(&toy(), &case);
        // The first tick in which as many blocks are in flight as there are passes.
        for _ in 0..case.passes() - 1 {
            cascade.tick(&Interrupt::default()).unwrap();
        }
        let cost = cascade.tick(&Interrupt::default()).unwrap().unwrap().cost;
        let spec = toy().model.spec().clone();
        let kv = 2 * case.config(&toy()).frames_per_block * spec.heads * spec.head_dim * 4;
        let expected = (case.passes() * others * spec.layers * kv) as u64;
        let expected = BlockCost { ticks: case.stagger as u64, exchanged_bytes: expected };
        assert_eq!(cost, expected, "{workers} workers");
    }
    let matched = Case { workers: 3, blocks, ..Case::default() }.stage_matched();
    let mut cascade = cascade(&toy(), &matched);
    while !cascade.is_finished() {
        let clean = cascade.tick(&Interrupt::default()).unwrap();
        let bytes = clean.map_or(0, |block| block.cost.exchanged_bytes);
        assert_eq!(bytes, 0, "only latents go from pass to pass");
    }
}
