//! The cascade against its definition: one suite of cases, a toy and a tiny random Wan.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests, which clippy does not see

mod case;
#[cfg(target_os = "linux")] // reads /proc
mod memory;
mod oracle;
mod probe;
mod retry;
mod toy;
mod workers;

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor};
use gstblockcascade::cascade::{
    AttentionMode, Cascade, HistoryBudget, HistoryPolicy, HistoryRules, PromptPolicy, SinkPosition,
    Timetable,
};
use gstblockcascade::checkpoint;
use gstblockcascade::generator::flow::FlowSchedule;
use gstblockcascade::model::{Interrupt, TextEmbedding, VideoModel, Visible};
use gstblockcascade::wan::{WanConfig, WanDit};

use case::{Case, FRAMES, Numbers, SHIFT, STEPS, Subject, Switch};
use oracle::{Beat, numbers};
use probe::{Moment, Probed};
use toy::Toy;

/// Largest difference, relative to the larger of 1 and the largest number expected.
const TOLERANCE: f32 = 1e-5;
/// One, fewer than there are blocks in flight at full width, and no fewer.
const WORKERS: [usize; 3] = [1, 2, 5];

fn toy() -> Subject {
    let model = Arc::new(Toy::new());
    let text = |x: f32| {
        let embedding = TextEmbedding(Tensor::new(x, &Device::Cpu).unwrap());
        Arc::new(model.text_context(&embedding).unwrap())
    };
    Subject { texts: [text(0.2), text(1.3)], model, latent_size: toy::LATENT_SIZE }
}

fn wan() -> Subject {
    let config = WanConfig {
        dim: 24,
        ffn_dim: 40,
        num_heads: 2,
        num_layers: 2,
        freq_dim: 16,
        text_dim: 8,
        text_len: 7,
        in_dim: 4,
        ..WanConfig::pocket()
    };
    let vb = checkpoint::random(11, DType::F32, &Device::Cpu);
    let model = Arc::new(WanDit::new(&config, vb).unwrap());
    let text = |block, tokens| {
        let embedding = TextEmbedding(case::noise(block, 99, &[tokens, 8]).unwrap());
        Arc::new(model.text_context(&embedding).unwrap())
    };
    Subject { texts: [text(1, 3), text(2, 5)], model, latent_size: (4, 6) }
}

fn cascade(subject: &Subject, case: &Case) -> Cascade {
    let schedule = FlowSchedule::new(case.steps, SHIFT).unwrap();
    let (workers, text) = (subject.workers(case.workers), subject.text(0, case.workers));
    Cascade::new(workers, schedule, Arc::new(Numbers), text, case.config(subject)).unwrap()
}

/// What the cascade does at each tick until it says that it is finished.
fn run(subject: &Subject, case: &Case) -> Result<Vec<Beat>> {
    let (mut cascade, interrupt) = (cascade(subject, case), Interrupt::default());
    let mut beats = Vec::new();
    while !cascade.is_finished() {
        if let Some(switch) = case.switch.filter(|switch| switch.tick == beats.len() as u64) {
            cascade.set_text(subject.text(1, case.workers), switch.policy);
        }
        let admits = cascade.admits();
        let clean = cascade.tick(&interrupt)?.map(|block| (block.index, block.latent));
        beats.push(Beat { admits, clean });
    }
    Ok(beats)
}

fn difference(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    let (got, expected) = (numbers(got).unwrap(), numbers(expected).unwrap());
    let largest = expected.iter().fold(1f32, |largest, x| largest.max(x.abs()));
    let difference = got.iter().zip(&expected).map(|(a, b)| (a - b).abs() / largest);
    difference.map(|x| if x.is_nan() { f32::INFINITY } else { x }).fold(0.0, f32::max)
}

/// Runs a case both ways, on one worker and on several, and compares every tick.
fn check(subject: &Subject, case: &Case) {
    let expected = oracle::run(subject, case).unwrap();
    for workers in WORKERS {
        let case = Case { workers, ..case.clone() };
        compare(&run(subject, &case).unwrap(), &expected, &case);
    }
}

fn compare(got: &[Beat], expected: &[Beat], case: &Case) {
    assert_eq!(got.len(), expected.len(), "ticks of {case:?}");
    for (tick, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.admits, expected.admits, "admitted at tick {tick} of {case:?}");
        let index = |beat: &Beat| beat.clean.as_ref().map(|(index, _)| *index);
        assert_eq!(index(got), index(expected), "clean at tick {tick} of {case:?}");
        if let (Some((index, got)), Some((_, expected))) = (&got.clean, &expected.clean) {
            let difference = difference(got, expected);
            assert!(difference <= TOLERANCE, "block {index} is {difference:e} off in {case:?}");
        }
    }
}

#[test]
fn toy_at_every_timetable_under_all_rules() {
    let subject = toy();
    for case in Case::timetables() {
        for (context_timestep, rules) in [0.0, 125.0].into_iter().cycle().zip(Case::rules()) {
            check(&subject, &Case { blocks: 7, rules, context_timestep, ..case.clone() });
        }
    }
}

#[test]
fn toy_with_the_text_changed_at_any_tick() {
    let subject = toy();
    Case::timetables().flat_map(Case::switches).for_each(|case| check(&subject, &case));
}

/// Neither the stagger nor the number of workers counts.
#[test]
fn toy_with_histories_by_pass() {
    let subject = toy();
    for case in Case::timetables().filter(|case| case.stagger <= case.steps.len()) {
        for rules in Case::rules() {
            check(&subject, &Case { blocks: 7, rules, ..case.clone() }.stage_matched());
        }
    }
    for case in Case::timetables().filter(|case| case.stagger <= case.steps.len()) {
        case.stage_matched().switches().for_each(|case| check(&subject, &case));
    }
}

#[test]
fn wan_with_histories_by_pass() {
    for case in Case::timetables().filter(|case| case.stagger <= case.steps.len()) {
        check(&wan(), &Case { blocks: 5, ..case.limited(1, 2) }.stage_matched());
    }
}

#[test]
fn a_stagger_does_not_change_what_histories_by_pass_give() {
    let latents = |stagger| {
        let case = Case { stagger, blocks: 6, ..Case::default() }.limited(1, 2).stage_matched();
        let beats = run(&wan(), &case).unwrap();
        beats.into_iter().filter_map(|beat| Some(beat.clean?.1)).collect::<Vec<_>>()
    };
    let expected = latents(STEPS[2].len());
    for stagger in 1..STEPS[2].len() {
        let got = latents(stagger);
        assert_eq!((got.len(), expected.len()), (6, 6));
        for (got, expected) in got.iter().zip(&expected) {
            assert!(difference(got, expected) <= TOLERANCE, "stagger {stagger}");
        }
    }
}

/// What the window holds counts: limits small enough to evict, and a change late enough for that.
#[test]
fn wan_computes_its_history_anew() {
    let base = Case { steps: STEPS[1], blocks: 7, ..Case::default() };
    for (sink, window) in [(0, 2), (1, 1), (2, 3), (1, 0)] {
        for tick in 0..8 {
            let switch = Some(Switch { policy: PromptPolicy::Recache, tick });
            check(&wan(), &Case { switch, ..base.clone().limited(sink, window) });
        }
    }
}

/// Workers without a block any more have seen less than the others, and have nothing to say in this.
#[test]
fn a_history_is_computed_anew_as_a_stream_ends() {
    for (sink, window) in [(0, 2), (1, 1), (2, 1), (1, 2)] {
        for more in 2..=4 {
            let blocks = sink + window + more;
            let base = Case { blocks: blocks as u64, ..Case::default() }.limited(sink, window);
            for tick in 0..(blocks + base.steps.len()) as u64 {
                let switch = Some(Switch { policy: PromptPolicy::Recache, tick });
                check(&toy(), &Case { switch, ..base.clone() });
            }
        }
    }
}

#[test]
fn wan_at_every_timetable() {
    let subject = wan();
    Case::timetables().for_each(|case| check(&subject, &Case { blocks: 5, ..case.limited(1, 2) }));
}

#[test]
fn wan_under_all_rules() {
    let subject = wan();
    for (attention, rules) in
        [AttentionMode::Bidirectional, AttentionMode::Causal].into_iter().cycle().zip(Case::rules())
    {
        check(&subject, &Case { attention, rules, blocks: 6, stagger: 2, ..Case::default() });
    }
}

#[test]
fn wan_with_the_text_changed_at_any_tick() {
    let subject = wan();
    let cases = Case { steps: STEPS[1], ..Case::default() }.switches();
    cases.for_each(|case| check(&subject, &case));
}

#[test]
fn streams_of_one_block_and_of_none() {
    for blocks in 0..=1 {
        for case in Case::timetables() {
            let case = Case { blocks, ..case };
            let beats = run(&toy(), &case).unwrap();
            assert_eq!(beats.len(), blocks as usize * case.steps.len());
            assert_eq!(beats.iter().filter(|beat| beat.clean.is_some()).count(), blocks as usize);
        }
    }
}

/// One block in flight is the published algorithm, in either mode.
#[test]
fn a_stagger_of_all_passes_is_sequential() {
    for subject in [toy(), wan()] {
        for case in Case::timetables().filter(|case| case.stagger == case.steps.len() + 1) {
            assert_eq!(
                case.stagger,
                Timetable::with_width(HistoryPolicy::Clean, case.steps.len(), 1).stagger()
            );
            let latents = oracle::sequential(&subject, &case).unwrap();
            let beats = run(&subject, &case).unwrap();
            let got: Vec<_> = beats.into_iter().filter_map(|beat| beat.clean).collect();
            assert_eq!(got.len(), latents.len());
            for ((index, got), expected) in got.iter().zip(&latents) {
                assert!(difference(got, expected) <= TOLERANCE, "block {index} of {case:?}");
            }
        }
    }
}

/// Nothing that is kept, and no distance between a query and a key, grows with the stream.
#[test]
fn an_endless_stream_stays_where_it_is() {
    let case = Case { steps: STEPS[1], blocks: 2000, ..Case::default() }.limited(1, 3);
    let bound = ((1 + 3 + case.steps.len() + 1) * FRAMES) as f64;
    let farthest = Arc::new(Mutex::new((0f64, 0)));
    let seen = farthest.clone();
    let subject = Probed::subject(toy(), move |moment| {
        let Moment { seen: Some(visible), first_frames, .. } = moment else { return Ok(()) };
        let keys = match visible {
            Visible::Shared(keys) => keys,
            Visible::Each(_) => unreachable!("bidirectional"),
        };
        let mut farthest = seen.lock().unwrap();
        farthest.1 = farthest.1.max(keys.len() - first_frames.len());
        for kv in keys {
            let key = numbers(&kv.k)?;
            let distances = first_frames.iter().map(|&frame| toy::distance(&key, frame).abs());
            farthest.0 = distances.fold(farthest.0, f64::max);
        }
        Ok(())
    });
    let got = run(&subject, &case).unwrap();
    compare(&got, &oracle::run(&toy(), &case).unwrap(), &case);
    let (distance, blocks) = *farthest.lock().unwrap();
    assert!(distance > bound / 2.0 && distance <= bound, "{distance} frames of {bound}");
    assert_eq!(blocks, 4, "blocks of history");
}

/// A clean block keeps its own numbers alive and not those of the forward that they were part of.
#[test]
fn history_holds_no_storage_but_its_own() {
    let checked = Arc::new(Mutex::new(0));
    let count = checked.clone();
    let subject = Probed::subject(wan(), move |moment| {
        let Some(Visible::Shared(keys)) = moment.seen else { return Ok(()) };
        let history = keys.len() - moment.first_frames.len();
        for tensor in keys[..history].iter().flat_map(|kv| [&kv.k, &kv.v]) {
            let (storage, _) = tensor.storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*storage else { unreachable!("a CPU's") };
            assert_eq!(storage.as_slice::<f32>()?.len(), tensor.elem_count());
            *count.lock().unwrap() += 1;
        }
        Ok(())
    });
    for position in [SinkPosition::Absolute, SinkPosition::Rebased] {
        let case = Case { blocks: 6, ..Case::default() }.limited(1, 2);
        let rules = HistoryRules { sink_position: position, ..case.rules };
        run(&subject, &Case { rules, ..case }).unwrap();
        assert!(std::mem::take(&mut *checked.lock().unwrap()) > 0, "nothing is seen: {position:?}");
    }
}

#[test]
fn a_constant_budget_never_shows_more_than_sequential_generation() {
    let case = Case { blocks: 9, ..Case::default() }.limited(1, 5);
    let rules = HistoryRules { budget: HistoryBudget::Constant, ..case.rules };
    let most = Arc::new(Mutex::new(0));
    let seen = most.clone();
    let subject = Probed::subject(toy(), move |moment| {
        if let Some(Visible::Shared(keys)) = moment.seen {
            let mut most = seen.lock().unwrap();
            *most = keys.len().max(*most);
        }
        Ok(())
    });
    run(&subject, &Case { rules, ..case }).unwrap();
    assert_eq!(*most.lock().unwrap(), 1 + 5 + 1);
}
