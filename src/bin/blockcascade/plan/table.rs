//! Strategies side by side: as text, as JSON.

use serde_json::{Value, json};

use super::Row;
use super::strategy::Forecast;

/// Columns, and their units below.
const HEAD: [[&str; COLUMNS]; 2] = [
    [
        "", "GPUs", "tick", "frames", "decoded", "first", "prompt", "prompt", "memory", "exchange",
        "",
    ],
    ["", "", "ms", "/s", "/s", "frame ms", "seen ms", "whole ms", "GB/GPU", "MB/tick", "decoder"],
];
const COLUMNS: usize = 11;
/// The column after which there is a reason when a strategy does not apply.
const NAME: usize = 0;
/// Spaces between columns.
const GAP: &str = "  ";

/// A line for each row, under a head.
pub fn text(rows: &[Row]) -> String {
    let head = HEAD.map(|line| line.map(str::to_owned).to_vec());
    let lines: Vec<Vec<String>> = head.into_iter().chain(rows.iter().map(cells)).collect();
    let width = |column: usize| {
        let full = lines.iter().filter(|cells| cells.len() == COLUMNS || column == NAME);
        full.map(|cells| cells[column].len()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    lines.iter().map(|cells| line(cells, &widths)).collect()
}

/// Names and reasons start where their column does, numbers end there.
fn line(cells: &[String], widths: &[usize]) -> String {
    let is_word = |column: usize| column == NAME || column + 1 == cells.len();
    let pad = |(column, cell): (usize, &String)| match widths[column] {
        width if is_word(column) => format!("{cell:<width$}"),
        width => format!("{cell:>width$}"),
    };
    let padded: Vec<_> = cells.iter().enumerate().map(pad).collect();
    format!("{}\n", padded.join(GAP).trim_end())
}

fn cells(row: &Row) -> Vec<String> {
    let name = row.strategy.to_string();
    let forecast = match &row.forecast {
        Ok(forecast) => forecast,
        Err(reason) => return vec![name, format!("- {reason}")],
    };
    let Forecast { gpus, pace, frames_per_second, decoded, .. } = forecast;
    let [affected, conditioned] = forecast.prompt.map(|wait| format!("{:.0}", wait * 1e3));
    let decoder = if forecast.decoder_alone { "own GPU" } else { "shared" };
    vec![
        name,
        gpus.to_string(),
        format!("{:.1}", pace.tick * 1e3),
        format!("{frames_per_second:.1}"),
        format!("{decoded:.1}"),
        format!("{:.0}", forecast.first_frame * 1e3),
        affected,
        conditioned,
        format!("{:.1}", forecast.memory / 1e9),
        format!("{:.1}", forecast.exchanged / 1e6),
        decoder.to_owned(),
    ]
}

/// The same in seconds and bytes.
pub fn json(rows: &[Row]) -> Value {
    rows.iter().map(row_json).collect()
}

fn row_json(row: &Row) -> Value {
    let strategy = row.strategy.to_string();
    let forecast = match &row.forecast {
        Ok(forecast) => forecast,
        Err(reason) => return json!({ "strategy": strategy, "impossible": reason }),
    };
    let [affected, conditioned] = forecast.prompt;
    json!({
        "strategy": strategy,
        "gpus": forecast.gpus,
        "tick": forecast.pace.tick,
        "frames_per_second": forecast.frames_per_second,
        "decoded_frames_per_second": forecast.decoded,
        "decoder_has_own_gpu": forecast.decoder_alone,
        "first_frame": forecast.first_frame,
        "prompt_seen": affected,
        "prompt_whole": conditioned,
        "memory": forecast.memory,
        "exchanged": forecast.exchanged,
    })
}
