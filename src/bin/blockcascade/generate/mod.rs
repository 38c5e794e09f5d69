//! `generate`: a prompt to a video file.

mod args;
mod length;
mod output;
mod progress;
pub mod weights;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use gstblockcascade::generator::{Controls, Generator};

pub use self::args::Args;

use self::output::Output;
use self::progress::Progress;
use crate::{INTERRUPTED, is_cancelled, signals};

/// Runs the command: first settings, then the output, then weights, so that what is wrong with a
/// command is said before anything large is read.
pub fn run(args: &Args) -> Result<()> {
    let (config, length) = args.config()?;
    let controls = Controls::new(&config)?;
    for prompt in args.prompts(length.blocks)? {
        controls.set_prompt(prompt);
    }
    let mut output = Output::open(&args.output, &config, args.force)?;
    cancel_on_signals(controls.clone())?;
    let mut progress = Progress::new(&config, length.frames)?;
    let done = match Generator::with_controls(&config, controls) {
        Ok(generator) => write(generator, length.frames, &mut output, &mut progress),
        Err(error) => Err(error.into()),
    };
    // Frames are whole, so what is there can be read, however it ended.
    let closed = output.close();
    progress.finish(&args.output);
    done.and(closed)
}

/// The first signal ends the stream, the second the process: it may be waiting for somebody to read
/// its output.
fn cancel_on_signals(controls: Controls) -> Result<()> {
    let signalled = AtomicBool::new(false);
    signals::on_end(move || {
        if signalled.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED.into());
        }
        controls.cancel();
    })
}

fn write(
    mut generator: Generator,
    frames: u64,
    output: &mut Output,
    progress: &mut Progress,
) -> Result<()> {
    progress.begin()?;
    let frames = usize::try_from(frames).unwrap_or(usize::MAX);
    let done = generator.by_ref().take(frames).try_for_each(|frame| {
        let frame = frame?;
        output.write(&frame)?;
        progress.advance(&frame);
        Ok(())
    });
    if done.as_ref().is_err_and(is_cancelled) {
        // The process ends, and its threads with it: a layer of a large picture takes minutes.
        std::mem::forget(generator);
    }
    done
}
