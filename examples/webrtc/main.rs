//! Live video from prompts, in a browser: `cargo run --release --example webrtc`, then open the address
//! that it prints. One generator and one encoder for all who watch.
//!
//! ```text
//! Air      blockcascadesrc ! queue ! vp8enc ! appsink     made and encoded once
//!                                              │
//! Viewer   appsrc ! rtpvp8pay ! webrtcbin      ├─ a pipeline for each page
//! Viewer   appsrc ! rtpvp8pay ! webrtcbin      ┘
//! Session  a page's WebSocket: SDP and candidates, prompts in, answers out
//! ```
//!
//! Frames go from the one `appsink` to the `appsrc` of each viewer, whose queue holds half a second and
//! then drops old frames, up to the next key frame: a slow viewer holds up nobody else.
//!
//! Why `webrtcbin` and not `webrtcsink` of gst-plugin-webrtc: it is in Debian 12, and all that the other
//! one adds is not needed here. That encodes for each viewer at its own rate, which is what two cores
//! have no time for; brings a signalling server of its own; and more than doubles what is compiled.
//! Why VP8 and not H.264: every browser must decode it, profiles and licences need no thought, and its
//! encoder is in the same package as the RTP elements.

mod air;
mod door;
mod message;
mod news;
mod options;
mod origin;
mod page;
mod session;
mod token;
mod viewer;

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use gstreamer as gst;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use air::Air;
use options::Options;
use page::Site;

/// How long the end may take.
const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let options = Options::parse();
    let ended = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        let ended = runtime.block_on(run(&options));
        runtime.shutdown_timeout(PATIENCE);
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            warn(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let token = options.token()?;
    let air = Arc::new(start_gstreamer(options)?);
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("cannot listen at {}", options.listen))?;
    let address = listener.local_addr()?;
    let site = Site::new(air.clone(), token, address.ip());
    greet(address, site.is_guarded());

    let mut watch = tokio::task::spawn_blocking({
        let air = air.clone();
        move || air.watch()
    });
    let pulse = tokio::spawn(air::pulse(air.clone(), site.clone()));
    let mut server = tokio::spawn(page::serve(listener, site, air.ending()));
    let ended = tokio::select! {
        ended = &mut watch => ended?,
        ended = &mut server => ended?.context("the page cannot be served"),
        signal = interrupted() => signal.context("cannot wait for signals"),
    };
    if let Err(error) = &ended {
        air.inform(format!("{error:#}"));
    }
    pulse.abort();
    air.stop();
    let _ = tokio::time::timeout(PATIENCE, server).await; // those who do not say goodbye
    ended
}

fn start_gstreamer(options: &Options) -> anyhow::Result<Air> {
    gst::init()?;
    gstblockcascade::register_static()?;
    for (element, package) in [
        ("vp8enc", "gstreamer1.0-plugins-good"),
        ("rtpvp8pay", "gstreamer1.0-plugins-good"),
        ("webrtcbin", "gstreamer1.0-plugins-bad"),
        ("dtlssrtpenc", "gstreamer1.0-plugins-bad"),
        ("nicesink", "gstreamer1.0-nice"),
    ] {
        let found = gst::ElementFactory::find(element);
        found.with_context(|| format!("no element {element} here, expected Debian's {package}"))?;
    }
    Air::new(options)
}

fn greet(address: SocketAddr, is_guarded: bool) {
    say(format_args!("open http://{address}/"));
    if is_guarded {
        say("prompts need the token: type it there, or add #token=TOKEN to the address");
    }
    say("Ctrl-C ends it");
}

/// On standard output, whether anybody reads it or not.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// The same on standard error.
fn warn(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Ctrl-C, or a service's end.
async fn interrupted() -> std::io::Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
