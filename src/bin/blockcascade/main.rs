//! `blockcascade`: which models there are, how to get them, what a file holds, prompts to video, and
//! how fast that goes on how many GPUs.

mod bench;
mod choices;
mod fetch;
mod generate;
mod inspect;
mod models;
mod networks;
mod plan;
mod preset;
mod roles;
#[path = "../relay/signals.rs"]
mod signals;
mod view;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gstblockcascade::{checkpoint, generator};

/// Exit code of a program that Ctrl-C ended: 128 and the signal's number.
const INTERRUPTED: u8 = 130;

/// Live block-causal video diffusion with Block Cascading.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Models(models::Args),
    Fetch(fetch::Args),
    Inspect(inspect::Args),
    Generate(Box<generate::Args>),
    Bench(Box<bench::Args>),
    Plan(plan::Args),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let done = match Cli::parse().command {
        Command::Models(args) => models::run(&args),
        Command::Fetch(args) => fetch::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Plan(args) => plan::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if is_cancelled(&error) => {
            tell("interrupted");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            tell(format!("error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without what an outer one says already. Candle's have theirs on lines of
/// their own, before a backtrace.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        for text in text.lines().take_while(|text| !is_backtrace(text)).map(str::trim) {
            if line.is_empty() {
                line.push_str(text);
            } else if !line.contains(text) {
                line.push_str(": ");
                line.push_str(text);
            }
        }
    }
    line
}

/// `   0: candle_core::error::Error::bt`
fn is_backtrace(line: &str) -> bool {
    let number = line.trim_start().split_once(": ").map(|(number, _)| number.parse::<u32>());
    line.starts_with(' ') && matches!(number, Some(Ok(_)))
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(generator::Error::Cancelled))
}

/// Says something on standard error, whether anybody listens or not.
fn tell(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes a command's answer to standard output.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// A model by its name, or by the file of its manifest.
fn manifest(model: &str) -> Result<checkpoint::Manifest, generator::Error> {
    let is_file = model.ends_with(".toml");
    let manifest = if is_file {
        checkpoint::Manifest::read(model)
    } else {
        checkpoint::Manifest::named(model)
    };
    Ok(manifest?)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_cause_of_an_error_is_on_its_line() {
        let cause = candle_core::Error::Msg("out of memory".into()).context("umt5 layer 3");
        let error = Err::<(), _>(cause).context("encoding a prompt").unwrap_err();
        assert_eq!(one_line(&error), "encoding a prompt: umt5 layer 3: out of memory");
    }

    #[test]
    fn where_an_error_arose_is_not() {
        let error = anyhow::anyhow!(
            "no room\n   0: candle_core::error::Error::bt\n             at src/error.rs:1"
        );
        assert_eq!(one_line(&error), "no room");
    }
}
