//! A tick that fails, anywhere, can be tried again as if it had not been.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Result, Tensor, bail};
use gstblockcascade::cascade::{AttentionMode, Cascade, PromptPolicy};
use gstblockcascade::generator::flow::FlowSchedule;
use gstblockcascade::generator::noise::{Draw, Noise};
use gstblockcascade::model::Interrupt;

use super::case::{Case, Numbers, SHIFT, STEPS, Subject, Switch};
use super::oracle::{self, numbers};
use super::probe::Probed;
use super::{cascade, compare, run, toy, wan};

/// How one exchange goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Before,
    After,
    Interrupted,
}

/// A short stream in which every kind of pass, eviction and a moved sink occur.
fn case(attention: AttentionMode) -> Case {
    Case { steps: STEPS[1], attention, blocks: 4, ..Case::default() }.limited(1, 1)
}

/// `subject`, at fault in its `at`-th exchange and then never again.
fn faulty(subject: Subject, fault: Fault, at: usize, interrupt: &Interrupt) -> Subject {
    let interrupt = interrupt.clone();
    Probed::subject(subject, move |moment| {
        match (fault, moment.seen.is_some()) {
            _ if moment.exchange != at => {}
            (Fault::Before, false) | (Fault::After, true) => bail!("deliberate"),
            (Fault::Interrupted, false) => interrupt.raise(),
            _ => {}
        }
        Ok(())
    })
}

/// The stream's latents, every failing tick tried again, and how many did fail.
fn stubborn(mut cascade: Cascade, interrupt: &Interrupt) -> (Vec<Vec<f32>>, usize) {
    let (mut latents, mut failures) = (Vec::new(), 0);
    while !cascade.is_finished() {
        let admits = cascade.admits();
        match cascade.tick(interrupt) {
            Ok(block) => latents.extend(block.map(|block| numbers(&block.latent).unwrap())),
            Err(_) => {
                interrupt.clear();
                failures += 1;
                assert_eq!(cascade.admits(), admits);
            }
        }
    }
    (latents, failures)
}

fn undisturbed(subject: &Subject, case: &Case) -> (Vec<Vec<f32>>, usize) {
    let ticks = run(subject, case).unwrap();
    let exchanges = ticks.len() * subject.model.spec().layers;
    let latents = ticks.into_iter().filter_map(|beat| beat.clean);
    (latents.map(|(_, latent)| numbers(&latent).unwrap()).collect(), exchanges)
}

fn check(subject: &Subject, attention: AttentionMode) {
    let case = case(attention);
    let (expected, exchanges) = undisturbed(subject, &case);
    assert_eq!(expected.len(), 4);
    for fault in [Fault::Before, Fault::After, Fault::Interrupted] {
        for at in 0..exchanges {
            let interrupt = Interrupt::default();
            let faulty = faulty(subject.clone(), fault, at, &interrupt);
            let (latents, failures) = stubborn(cascade(&faulty, &case), &interrupt);
            assert_eq!(failures, 1, "{fault:?} in exchange {at}");
            assert!(latents == expected, "{fault:?} in exchange {at} changed the stream");
        }
    }
}

#[test]
fn toy_in_any_layer_of_any_tick() {
    check(&toy(), AttentionMode::Bidirectional);
    check(&toy(), AttentionMode::Causal);
}

#[test]
fn wan_in_any_layer_of_any_tick() {
    check(&wan(), AttentionMode::Bidirectional);
    check(&wan(), AttentionMode::Causal);
}

/// Noise whose `at`-th draw fails, once.
#[derive(Debug)]
struct Refusing {
    draws: AtomicUsize,
    at: usize,
}

impl Noise for Refusing {
    fn draw(&self, block: u64, draw: Draw, shape: &[usize]) -> Result<Tensor> {
        if self.draws.fetch_add(1, Ordering::SeqCst) == self.at {
            bail!("deliberate");
        }
        Numbers.draw(block, draw, shape)
    }
}

#[test]
fn in_any_draw_of_noise() {
    let (subject, case) = (toy(), case(AttentionMode::Bidirectional));
    let (expected, _) = undisturbed(&subject, &case);
    let draws = case.blocks as usize * case.steps.len(); // one to start with, one between steps
    for at in 0..draws {
        let noise = Arc::new(Refusing { draws: AtomicUsize::new(0), at });
        let schedule = FlowSchedule::new(case.steps, SHIFT).unwrap();
        let (workers, text) = (subject.workers(1), subject.text(0, 1));
        let config = case.config(&subject);
        let cascade = Cascade::new(workers, schedule, noise, text, config).unwrap();
        let (latents, failures) = stubborn(cascade, &Interrupt::default());
        assert_eq!(failures, 1, "draw {at}");
        assert!(latents == expected, "draw {at} changed the stream");
    }
}

/// A text that changes between a failed tick and its repetition counts from the repetition on.
#[test]
fn with_another_text_the_second_time() {
    let subject = toy();
    for policy in
        [PromptPolicy::InFlight, PromptPolicy::NextBlock, PromptPolicy::Recache, PromptPolicy::Cut]
    {
        for tick in 0..6 {
            let switch = Some(Switch { policy, tick });
            let case = Case { switch, ..case(AttentionMode::Bidirectional) };
            let expected = oracle::run(&subject, &case).unwrap();
            let mut cascade = cascade(&subject, &case);
            let interrupt = Interrupt::default();
            let mut got = Vec::new();
            while !cascade.is_finished() {
                if got.len() as u64 == tick {
                    interrupt.raise();
                    assert!(cascade.tick(&interrupt).is_err());
                    interrupt.clear();
                    cascade.set_text(subject.text(1, 1), policy);
                }
                let admits = cascade.admits();
                let clean = cascade.tick(&interrupt).unwrap();
                let clean = clean.map(|block| (block.index, block.latent));
                got.push(oracle::Beat { admits, clean });
            }
            compare(&got, &expected, &case);
        }
    }
}
