//! What was measured, to be read and to be parsed.

use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::measure::Row;

const HEADS: [&str; 10] = [
    "width",
    "devices",
    "denoised/s",
    "decoded/s",
    "frames/s",
    "first ms",
    "prompt ms",
    "prompt frames",
    "ticks/block",
    "MB/block",
];

/// One line a row; the columns are explained below.
pub fn text(rows: &[Row]) -> String {
    let cells: Vec<_> = rows.iter().map(|row| cells(row, &rows[0])).collect();
    let width = |column: usize| {
        let longest = cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
        longest.max(HEADS[column].len())
    };
    let widths: Vec<_> = (0..HEADS.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
        cells.join("  ") + "\n"
    };
    let heads = HEADS.map(str::to_owned);
    let lines: String = [&heads].into_iter().chain(&cells).map(|row| line(row)).collect();
    let memory = rows.last().and_then(|row| row.memory_bytes).map(BinaryBytes);
    let memory = memory.map(|bytes| format!("The process holds {bytes}. "));
    lines + "\n" + &memory.unwrap_or_default() + NOTES
}

const NOTES: &str = "denoised: the decoder idle, and how often as many as in the first row; decoded: \
                     alone; frames: both at once.\nfirst: a stream's first frame, weights loaded; \
                     prompt: from a new prompt to its first frame, read as fast as it comes.\n";

fn cells(row: &Row, first: &Row) -> [String; HEADS.len()] {
    let millis = |time: std::time::Duration| format!("{:.0}", 1e3 * time.as_secs_f64());
    [
        row.width.to_string(),
        row.devices.clone(),
        format!("{:.1} ({:.2}x)", row.denoised, row.denoised / first.denoised),
        format!("{:.1}", row.decoded),
        format!("{:.1} ({:.2}x)", row.delivered, row.delivered / first.delivered),
        millis(row.first_frame),
        millis(row.prompt.time),
        row.prompt.frames.to_string(),
        row.ticks.to_string(),
        format!("{:.2}", row.exchanged_bytes as f64 / 1e6),
    ]
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
            "prompt_seconds": row.prompt.time.as_secs_f64(),
            "prompt_frames": row.prompt.frames,
            "ticks_per_block": row.ticks,
            "exchanged_bytes_per_block": row.exchanged_bytes,
            "memory_bytes": row.memory_bytes,
        })
    };
    rows.iter().map(row).collect()
}
