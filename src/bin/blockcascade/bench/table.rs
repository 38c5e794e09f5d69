//! What was measured, to be read and to be parsed.

use std::time::Duration;

use gstblockcascade::cascade::PromptPolicy;
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::measure::{POLICIES, PromptLatency, Row};

/// The columns; from new prompts to their first frames by policy.
fn heads() -> Vec<String> {
    let before = ["width", "devices", "denoised/s", "decoded/s", "frames/s", "first ms"];
    let heads = before.into_iter().chain(POLICIES.map(|(name, _)| name));
    heads.chain(["ticks/block", "MB/block"]).map(str::to_owned).collect()
}

/// One line a row; what the columns are is said below.
pub fn text(rows: &[Row]) -> String {
    let mut table = vec![heads()];
    table.extend(rows.iter().map(|row| cells(row, &rows[0])));
    let width =
        |column: usize| table.iter().map(|row: &Vec<String>| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..table[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
        cells.join("  ") + "\n"
    };
    let memory = rows.last().and_then(|row| row.memory_bytes).map(BinaryBytes);
    let memory = memory.map(|bytes| format!("The process holds {bytes}. "));
    let lines: String = table.iter().map(line).collect();
    lines + "\n" + &memory.unwrap_or_default() + NOTES
}

const NOTES: &str = "denoised: the decoder idle, and how often as many as in the first row; decoded: \
                     alone; frames: both at once.\nfirst: a stream's first frame, weights loaded; \
                     in-flight to cut: milliseconds from a new prompt to its\nfirst frame, and frames \
                     of the old one in between, read as fast as they come.\n";

fn cells(row: &Row, first: &Row) -> Vec<String> {
    let millis = |time: Duration| format!("{:.0}", 1e3 * time.as_secs_f64());
    let speed = |rate: f64, first: f64| format!("{rate:.1} ({:.2}x)", rate / first);
    let prompt = |latency: &PromptLatency| format!("{} ({})", millis(latency.time), latency.frames);
    let mut cells = vec![
        row.width.to_string(),
        row.devices.clone(),
        speed(row.denoised, first.denoised),
        format!("{:.1}", row.decoded),
        speed(row.delivered, first.delivered),
        millis(row.first_frame),
    ];
    cells.extend(row.prompts.iter().map(prompt));
    cells.extend([row.ticks.to_string(), format!("{:.2}", row.exchanged_bytes as f64 / 1e6)]);
    cells
}

/// Seconds and bytes.
pub fn json(rows: &[Row]) -> Value {
    let row = |row: &Row| {
        json!({
            "width": row.width,
            "devices": row.devices,
            "denoised_frames_per_second": row.denoised,
            "decoded_frames_per_second": row.decoded,
            "frames_per_second": row.delivered,
            "first_frame_seconds": row.first_frame.as_secs_f64(),
            "prompts": prompts(row),
            "ticks_per_block": row.ticks,
            "exchanged_bytes_per_block": row.exchanged_bytes,
            "memory_bytes": row.memory_bytes,
        })
    };
    rows.iter().map(row).collect()
}

fn prompts(row: &Row) -> Value {
    let prompt = |((name, _), latency): (&(&str, PromptPolicy), &PromptLatency)| {
        let (seconds, frames) = (latency.time.as_secs_f64(), latency.frames);
        ((*name).to_owned(), json!({ "seconds": seconds, "frames": frames }))
    };
    Value::Object(POLICIES.iter().zip(&row.prompts).map(prompt).collect())
}
