//! How far a stream is, on standard error.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use gstblockcascade::generator::{Frame, GeneratorConfig};
use indicatif::{ProgressBar, ProgressStyle};

use super::length::block_of;
use crate::tell;

const LOADING: &str = "{spinner} loading {msg}";
const BAR: &str = "{bar:32} {pos}/{len} frames  {msg}  {eta} left";
/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(100);

/// The bar, and what is said at the end.
pub struct Progress {
    bar: ProgressBar,
    frames_per_block: usize,
    frames_per_second: u32,
    size: String,
    made: u64,
    begun: Option<Instant>,
    first: Option<Duration>,
}

impl Progress {
    /// A spinner until [`begin`](Self::begin), which is when weights are loaded.
    pub fn new(config: &GeneratorConfig, frames: u64) -> Result<Self> {
        let bar = ProgressBar::new(frames).with_message(config.model.name.clone());
        bar.set_style(ProgressStyle::with_template(LOADING)?);
        bar.enable_steady_tick(TURN);
        Ok(Self {
            bar,
            frames_per_block: config.model.preset.frames_per_block,
            frames_per_second: config.model.preset.fps,
            size: config.frame_size().to_string(),
            made: 0,
            begun: None,
            first: None,
        })
    }

    /// The first frame is asked for.
    pub fn begin(&mut self) -> Result<()> {
        self.bar.disable_steady_tick();
        self.bar.set_style(ProgressStyle::with_template(BAR)?);
        self.bar.set_message("block 0");
        self.bar.reset_elapsed();
        self.begun = Some(Instant::now());
        Ok(())
    }

    /// A frame is written.
    pub fn advance(&mut self, frame: &Frame) {
        self.made += 1;
        self.first.get_or_insert(self.elapsed());
        let block = block_of(frame.index, self.frames_per_block);
        let rate = self.made as f64 / self.elapsed().as_secs_f64();
        self.bar.set_message(format!("{rate:.1} frames/s  block {block}"));
        self.bar.inc(1);
    }

    /// One line on what was made.
    pub fn finish(&self, output: &Path) {
        self.bar.finish_and_clear();
        let Some(first) = self.first else { return };
        let (made, elapsed) = (self.made as f64, self.elapsed().as_secs_f64());
        let output =
            if output == "-" { "standard output".into() } else { output.display().to_string() };
        tell(format!(
            "{output}: {:.2} s of {}, frames: {made}, made in {elapsed:.1} s ({:.1} a second), \
             the first after {:.2} s",
            made / f64::from(self.frames_per_second),
            self.size,
            made / elapsed,
            first.as_secs_f64(),
        ));
    }

    fn elapsed(&self) -> Duration {
        self.begun.map_or(Duration::ZERO, |begun| begun.elapsed())
    }
}
