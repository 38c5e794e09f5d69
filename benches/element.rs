//! What the element costs beside the bare generator, and how soon it lets go.
//!
//! `cargo bench --bench element` prints both, on the embedded model. Rounds alternate, so that other
//! work on the machine meets both sides; what counts is the median of the rounds' ratios.

#![allow(clippy::print_stdout)] // what a bench is for

use std::error::Error;
use std::time::{Duration, Instant};

use gstblockcascade::checkpoint::Manifest;
use gstblockcascade::generator::Loading;
use gstblockcascade::generator::{Controls, Generator, GeneratorConfig, Parts};
use gstreamer as gst;
use gstreamer::prelude::*;

const ROUNDS: usize = 7;
/// Frames of eight blocks.
const FRAMES: usize = 93;
const PROMPT: &str = "a red ball bounces on a beach";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    gst::init()?;
    gstblockcascade::register_static()?;
    overhead()?;
    unlocking()
}

fn overhead() -> Result<()> {
    let config = GeneratorConfig {
        prompt: PROMPT.into(),
        ..GeneratorConfig::new(Manifest::named("pocket")?)
    };
    let networks = Loading::start(&config)?;
    let parts = networks.wait().map_err(|error| error.to_string())?;
    let mut ratios = Vec::new();
    for round in 0..=ROUNDS {
        let (bare, element) = (bare(&parts, &config)?, element()?);
        // The first one warms caches up.
        if round > 0 {
            println!("{FRAMES} frames: generator {bare:.2?}, element and fakesink {element:.2?}");
            ratios.push(element.as_secs_f64() / bare.as_secs_f64());
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!("element / generator: {:.3} (median of {ROUNDS})", ratios[ROUNDS / 2]);
    Ok(())
}

fn bare(parts: &Parts, config: &GeneratorConfig) -> Result<Duration> {
    let mut generator = Generator::from_parts(parts.clone(), config, Controls::new(config)?)?;
    let begun = Instant::now();
    for _ in 0..FRAMES {
        generator.next_frame()?;
    }
    Ok(begun.elapsed())
}

/// As I420, converted and copied into a pool's buffers; the networks are shared with the generator.
fn element() -> Result<Duration> {
    let line = format!(
        "blockcascadesrc seed=0 num-buffers={FRAMES} prompt=\"{PROMPT}\" !
         video/x-raw, format=I420 ! fakesink"
    );
    let pipeline = gst::parse::launch(&line)?;
    let bus = pipeline.bus().ok_or("a pipeline has a bus")?;
    let begun = Instant::now();
    pipeline.set_state(gst::State::Playing)?;
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = bus.timed_pop_filtered(None, &kinds).ok_or("no end")?;
    let time = begun.elapsed();
    pipeline.set_state(gst::State::Null)?;
    match end.type_() {
        gst::MessageType::Eos => Ok(time),
        _ => Err(format!("{end:?}").into()),
    }
}

/// A picture of this size keeps a layer busy for long.
fn unlocking() -> Result<()> {
    let line = "blockcascadesrc name=src seed=0 ! video/x-raw, width=1024, height=1024 ! fakesink";
    let pipeline = gst::parse::launch(line)?;
    pipeline.set_state(gst::State::Playing)?;
    std::thread::sleep(Duration::from_secs(2)); // a block is in flight now
    let timed = |name: &str, work: &dyn Fn() -> Result<()>| -> Result<()> {
        let begun = Instant::now();
        work()?;
        println!("with a block in flight, {name}: {:.1?}", begun.elapsed());
        Ok(())
    };
    let pad = pipeline.downcast_ref::<gst::Bin>().and_then(|bin| bin.by_name("src"));
    let pad = pad.and_then(|source| source.static_pad("src")).ok_or("a source has a pad")?;
    let sent = |event| if pad.send_event(event) { Ok(()) } else { Err("refused".into()) };
    timed("flush start", &|| sent(gst::event::FlushStart::new()))?;
    timed("flush stop", &|| sent(gst::event::FlushStop::new(true)))?;
    timed("to NULL", &|| {
        pipeline.set_state(gst::State::Null)?;
        Ok(())
    })
}
