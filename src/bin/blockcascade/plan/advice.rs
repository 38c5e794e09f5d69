//! Which strategy to take, and why.

use super::Row;
use super::strategy::{Forecast, Strategy};

/// Strategies that differ by less than this part are as good as each other.
const EVEN: f64 = 0.01;

/// What all of it rests on, and how far others got: `published.rs`.
const CAUTION: &str = "predicted of good kernels that never wait: what others published is between a \
                       quarter of this and a tenth more";

/// Recommendations: most frames, soonest answer to a prompt, fewest GPUs in real time; and why.
pub fn lines(rows: &[Row], fps: u32) -> Vec<String> {
    let possible = |row: &Row| Some((row.strategy, row.forecast.as_ref().ok().copied()?));
    let (matched, others): (Vec<_>, Vec<_>) = rows
        .iter()
        .filter_map(possible)
        .partition(|(strategy, _)| *strategy == Strategy::StageMatched);
    let (fastest, soonest) = (most_decoded(&others), first_prompted(&others));
    let (Some(fastest), Some(soonest)) = (fastest, soonest) else {
        return vec!["nothing fits: smaller frames, a shorter window or another GPU".into()];
    };
    let trained = matched.into_iter().find(|(_, other)| other.decoded > fastest.1.decoded);
    let mut lines = said(&others, fps);
    lines.extend(by_this_program(&others, fps, &lines));
    lines.extend(trained.map(if_trained));
    let named = [Some(fastest), Some(soonest), trained].into_iter().flatten();
    let mut reasons: Vec<_> = named.map(|(strategy, _)| reason(strategy)).collect();
    reasons.dedup();
    lines.extend(reasons.into_iter().map(str::to_owned));
    lines.push(CAUTION.into());
    lines
}

/// A strategy that applies, and what it would do.
type Choice = (Strategy, Forecast);

fn said(choices: &[Choice], fps: u32) -> Vec<String> {
    let best =
        [most_decoded(choices).map(most_frames), first_prompted(choices).map(first_to_answer)];
    best.into_iter().flatten().chain([real_time(choices, fps)]).collect()
}

/// What is best without sequence parallelism, which this program lacks, where that is something else than what was
/// `said`.
fn by_this_program(choices: &[Choice], fps: u32, of_all: &[String]) -> Vec<String> {
    let is_here = |choice: &&Choice| !matches!(choice.0, Strategy::Ulysses { .. });
    let here: Vec<_> = choices.iter().filter(is_here).copied().collect();
    let differs = |line: &String| !of_all.contains(line);
    said(&here, fps)
        .into_iter()
        .filter(differs)
        .map(|line| format!("by this program, {line}"))
        .collect()
}

fn most_decoded(choices: &[Choice]) -> Option<Choice> {
    best(choices, |forecast| 1.0 / forecast.decoded)
}

fn first_prompted(choices: &[Choice]) -> Option<Choice> {
    best(choices, |forecast| forecast.prompt[1])
}

/// The least by some measure; of those as good, the one with the fewest GPUs.
fn best(choices: &[Choice], measure: impl Fn(&Forecast) -> f64) -> Option<Choice> {
    let least = choices.iter().map(|(_, forecast)| measure(forecast)).fold(f64::INFINITY, f64::min);
    let good = |choice: &&Choice| measure(&choice.1) <= least * (1.0 + EVEN);
    choices.iter().filter(good).min_by_key(|(_, forecast)| forecast.gpus).copied()
}

fn most_frames((strategy, forecast): Choice) -> String {
    let Forecast { decoded, frames_per_second, decoder_alone, .. } = forecast;
    let is_held = decoder_alone && decoded < frames_per_second * (1.0 - EVEN);
    let limit = if is_held { "; the decoder sets the pace" } else { "" };
    format!("most frames: {strategy} on {}, {decoded:.1}/s decoded{limit}", gpus(&forecast))
}

fn first_to_answer((strategy, forecast): Choice) -> String {
    let [_, conditioned] = forecast.prompt.map(|wait| wait * 1e3);
    let gpus = gpus(&forecast);
    format!(
        "soonest answer: {strategy} on {gpus}, a prompt is followed after {conditioned:.0} ms and the \
         rest of a tick"
    )
}

fn real_time(choices: &[Choice], fps: u32) -> String {
    let keeps = |choice: &&Choice| choice.1.decoded >= f64::from(fps);
    let choice = choices.iter().filter(keeps).min_by_key(|(_, forecast)| forecast.gpus);
    match choice {
        Some((strategy, forecast)) => {
            format!("enough for {fps} frames/s: {strategy} on {}", gpus(forecast))
        }
        None => format!("nothing here keeps {fps} frames/s"),
    }
}

fn if_trained((strategy, forecast): Choice) -> String {
    let (gpus, decoded) = (gpus(&forecast), forecast.decoded);
    format!("with a model trained for it: {strategy} on {gpus}, {decoded:.1}/s decoded")
}

fn reason(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Sequential => "- one GPU alone waits for nobody",
        Strategy::Cascade { .. } => {
            "- a cascade has blocks come sooner after each other, but each takes longer: as many \
             passes, over more keys"
        }
        Strategy::StageMatched => {
            "- stage-matched moves latents only and makes no cache pass; pictures suffer unless the \
             model was trained on noisy history, as none here is"
        }
        Strategy::Ulysses { .. } => {
            "- ulysses divides every forward, so that a block is done sooner, and computes what one \
             GPU would; it needs a fast link and heads that divide by the GPUs; this program has none"
        }
    }
}

fn gpus(forecast: &Forecast) -> String {
    let gpus = match forecast.gpus {
        1 => "1 GPU".to_owned(),
        gpus => format!("{gpus} GPUs"),
    };
    if forecast.decoder_alone { gpus + " and one for the decoder" } else { gpus }
}
