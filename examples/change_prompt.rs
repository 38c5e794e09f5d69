//! Changes the prompt of a running stream: `cargo run --release --example change_prompt`.
#![allow(clippy::print_stdout)] // an example speaks to its reader

use gstblockcascade::checkpoint::Manifest;
use gstblockcascade::generator::{Error, Generator, GeneratorConfig, Prompt};

fn main() -> Result<(), Error> {
    let mut config = GeneratorConfig::new(Manifest::named("pocket")?);
    config.prompt = "a beach in the morning".into();
    config.blocks = Some(4);
    let mut generator = Generator::new(&config)?;
    // Controls may go to another thread: nothing in them waits for the generator.
    let controls = generator.controls();
    // From a given block on: the stream is the same every time.
    controls.set_prompt(Prompt { from_block: Some(1), .."a beach at noon".into() });
    while let Some(frame) = generator.next_frame()? {
        println!("frame {}", frame.index);
        if frame.index == 8 {
            // As soon as it is encoded: blocks in flight change over at their next step.
            controls.set_prompt("a beach at night");
        }
    }
    Ok(())
}
