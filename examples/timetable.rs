//! Who does what at each tick: `cargo run --release --example timetable -- WIDTH`.
#![allow(clippy::print_stdout)] // an example speaks to its reader

use gstblockcascade::cascade::{HistoryPolicy, Pass, Stage, Timetable};

const STEPS: usize = 4;
const BLOCKS: u64 = 4;

fn main() -> Result<(), std::num::ParseIntError> {
    let width = std::env::args().nth(1).map_or(Ok(5), |width| width.parse())?;
    let table = Timetable::with_width(HistoryPolicy::Clean, STEPS, width);
    let blocks: String = (0..BLOCKS).map(|block| format!("  block {block}")).collect();
    println!("tick{blocks}");
    let ticks = table.clean_at(BLOCKS - 1);
    for tick in 0..=ticks {
        let stages: Vec<Stage> = table.at(tick).collect();
        let cells: String =
            (0..BLOCKS).map(|block| format!("  {:7}", cell(&stages, block))).collect();
        println!("{}", format!("{tick:4}{cells}").trim_end());
    }
    Ok(())
}

/// What a block does at a tick with these stages.
fn cell(stages: &[Stage], block: u64) -> String {
    match stages.iter().find(|stage| stage.block == block).map(|stage| stage.pass) {
        Some(Pass::Denoise { step }) => format!("step {step}"),
        Some(Pass::Cache) => "cache".into(),
        None => String::new(),
    }
}
