//! `generate`: a prompt to a video file.

mod args;
mod length;
mod output;
mod progress;
mod weights;

use anyhow::Result;
use gstblockcascade::generator::{Controls, Generator};

pub use self::args::Args;

use self::output::Output;
use self::progress::Progress;

/// Runs the command: first settings, then the output, then weights, so that what is wrong with a
/// command is said before anything large is read.
pub fn run(args: &Args) -> Result<()> {
    let (config, length) = args.config()?;
    let controls = Controls::new(&config)?;
    args.prompts(length.blocks)?.into_iter().for_each(|prompt| controls.set_prompt(prompt));
    let mut output = Output::open(&args.output, &config, args.force)?;
    let handle = controls.clone();
    ctrlc::set_handler(move || handle.cancel())?;
    let mut progress = Progress::new(&config, length.frames)?;
    let generator = Generator::with_controls(&config, controls);
    let done = match generator {
        Ok(generator) => write(generator, length.frames, &mut output, &mut progress),
        Err(error) => Err(error.into()),
    };
    // Frames are whole, so what is there can be read, however it ended.
    let closed = output.close();
    progress.finish(&args.output);
    done.and(closed)
}

fn write(
    mut generator: Generator,
    frames: u64,
    output: &mut Output,
    progress: &mut Progress,
) -> Result<()> {
    progress.begin()?;
    for _ in 0..frames {
        let Some(frame) = generator.next_frame()? else { break };
        output.write(&frame)?;
        progress.advance(&frame);
    }
    Ok(())
}
