//! `fetch`: a model's files into the cache that Hugging Face tools share.

use anyhow::{Result, bail};
use gstblockcascade::checkpoint::{Hub, Manifest, ModelFile, Role};
use gstblockcascade::generator::Error;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{INTERRUPTED, is_closed_pipe, manifest, print, roles, signals, tell};

const BAR: &str =
    "{msg:<13} {bar:24} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";

/// Fetches a model's files; goes on where an earlier attempt stopped.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the model, or its manifest
    model: String,
    /// Only this file; may be repeated [default: all but the small decoders]
    #[arg(long, value_parser = roles::parser())]
    role: Vec<Role>,
}

/// Runs the command; prints each file's path once it is there.
pub fn run(args: &Args) -> Result<()> {
    let model = manifest(&args.model)?;
    let mut files = chosen(&model, &args.role)?;
    files.retain(|file| file.embedded().is_none());
    if files.is_empty() {
        tell(format!("{}: nothing to fetch, its files are part of this program", model.name));
        return Ok(());
    }
    let hub = Hub::from_env().map_err(Error::from)?;
    tell(format!("licence {}: {}", model.licence.spdx, model.licence.note));
    signals::on_end(|| {
        tell("\ninterrupted; the same command goes on from here");
        std::process::exit(INTERRUPTED.into());
    })?;
    for file in files {
        fetch(&hub, file)?;
    }
    Ok(())
}

fn chosen<'a>(model: &'a Manifest, roles: &[Role]) -> Result<Vec<&'a ModelFile>> {
    if roles.is_empty() {
        return Ok(model.files.iter().filter(|file| file.role.is_needed()).collect());
    }
    let has: Vec<_> = model.files.iter().map(|file| file.role.name()).collect();
    let find = |&role: &Role| match model.file(role) {
        Some(file) => Ok(file),
        None => bail!("role: got {}, {} has {}", role.name(), model.name, has.join(", ")),
    };
    roles.iter().map(find).collect()
}

fn fetch(hub: &Hub, file: &ModelFile) -> Result<()> {
    let role = file.role.name();
    let bar = ProgressBar::new(file.size.unwrap_or(0)).with_message(role);
    bar.set_style(ProgressStyle::with_template(BAR)?);
    let mut begun = false;
    let path = hub.fetch(file, &mut |progress| {
        bar.set_length(progress.total);
        if !begun {
            // What an earlier attempt left is not this one's speed.
            bar.reset_eta();
            begun = true;
        }
        bar.set_position(progress.done);
    });
    bar.finish_and_clear();
    let printed = print(&format!("{role:<13} {}\n", path.map_err(Error::from)?.display()));
    // Whoever read the first line has not seen enough: the files are what is asked for.
    printed.or_else(|error| if is_closed_pipe(&error) { Ok(()) } else { Err(error) })
}
