//! `blockcascade-relay MAKE... -- SEND...`: two pipelines, of which one may fail. [`HELP`] says how.

mod connection;
mod maker;
mod sender;
mod signals;
mod valve;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gstreamer as gst;

use maker::Maker;
use sender::Sender;
use valve::Valve;

const USAGE: &str = "usage: blockcascade-relay MAKE... -- SEND...";
const HELP: &str = "
MAKE and SEND are pipelines as gst-launch-1.0 takes them. MAKE runs once. Each of its appsinks feeds the
appsrc of SEND that has its name, with an encoded stream. When SEND fails, because a server went away, it
is started again and goes on at a key frame, with times that start anew; MAKE never waits for it, and what
it makes meanwhile is dropped. One stream at least is video. A SEND that has never worked is an error.
Ctrl-C ends both.

blockcascade-relay blockcascadesrc is-live=true ! x264enc tune=zerolatency ! h264parse ! appsink name=video \\
    -- appsrc name=video ! flvmux streamable=true ! rtmp2sink location=rtmp://HOST/APP/KEY";
/// How often is looked whether a connection failed, or is due again.
const TICK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            warn(format_args!("blockcascade-relay: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    if let [word] = words
        && ["-h", "--help"].contains(&word.as_str())
    {
        say(format_args!("{USAGE}\n{HELP}"));
        return Ok(());
    }
    let (make, send) = split(words).context(USAGE)?;
    gst::init()?;
    let interrupts = count_interrupts()?;
    let valve = Arc::new(Valve::default());
    let maker = Maker::new(make, &valve).context("what makes")?;
    let mut sender = Sender::new(send, &maker, valve.clone())?;
    maker.start()?;
    let count = || interrupts.load(Ordering::Relaxed);
    let made = relay(&maker, &mut sender, count);
    // A file without its end cannot be read, whatever went wrong.
    sender.finish(|| count() < 2);
    made?;
    ensure!(count() < 2, "interrupted twice: the end was not waited for");
    let (sent, dropped) = valve.counts();
    let statistics = maker.statistics();
    say(format_args!("{sent} pictures sent, {dropped} dropped off the air{statistics}"));
    Ok(())
}

/// On standard output, whether anybody reads it or not: a broadcast outlives who looked on.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// The same on standard error.
fn warn(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Until all is made, or there are two interrupts.
fn relay(maker: &Maker, sender: &mut Sender, interrupts: impl Fn() -> u32) -> Result<()> {
    while interrupts() < 2 && !maker.has_ended(TICK)? {
        if interrupts() == 1 {
            maker.end();
        }
        sender.tend(maker)?;
    }
    Ok(())
}

/// What makes and what sends.
fn split(words: &[String]) -> Option<(&[String], &[String])> {
    let middle = words.iter().position(|word| word == "--")?;
    let (make, send) = (&words[..middle], &words[middle + 1..]);
    (!make.is_empty() && !send.is_empty()).then_some((make, send))
}

fn count_interrupts() -> Result<Arc<AtomicU32>> {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    signals::on_end(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    })?;
    Ok(count)
}
