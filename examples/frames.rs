//! A prompt to frames: `cargo run --release --example frames`.
#![allow(clippy::print_stdout)] // an example speaks to its reader

use gstblockcascade::checkpoint::Manifest;
use gstblockcascade::generator::{Error, Generator, GeneratorConfig};

fn main() -> Result<(), Error> {
    let mut config = GeneratorConfig::new(Manifest::named("pocket")?);
    config.prompt = "a red ball bounces on a beach".into();
    config.blocks = Some(2);
    config.cascade_width = 2;
    for frame in Generator::new(&config)? {
        let frame = frame?;
        let (width, height, bytes) = (frame.width, frame.height, frame.rgb.len());
        println!("frame {}: {width}x{height}, {bytes} bytes of RGB", frame.index);
    }
    Ok(())
}
