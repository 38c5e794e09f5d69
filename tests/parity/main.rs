//! Every golden tensor of every fixture folder, by name, within one tolerance.
//!
//! Walks `tests/fixtures` and the paths of `PARITY_FIXTURES` (colon-separated) to their deepest
//! folders; the kind in a folder's `config.json` says what is rebuilt and compared. What cannot be
//! compared has failed. `tests/parity_rules.rs` holds this program itself to that. `PARITY_DEVICE`, such as
//! `cuda:0`, and `PARITY_DTYPE`, f32 or bf16, say what is computed on, and in which numbers.

#![allow(clippy::print_stdout)] // the report is this test's result

mod dit;
mod fixture;
mod report;
pub mod target;
mod text;
mod tiny;
mod vae;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail, ensure};

use fixture::{Fixture, folders};
use report::Report;
use target::Target;

fn main() -> ExitCode {
    let own = PathBuf::from("tests/fixtures"); // cargo runs tests in the package's folder
    let others = std::env::var_os("PARITY_FIXTURES").unwrap_or_default();
    let others = std::env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
    let target = match Target::from_environment() {
        Ok(target) => target,
        Err(error) => {
            println!("parity: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let report = check_all(std::iter::once(own).chain(others), &target);
    report.close();
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Compares all folders at or below the given paths.
pub fn check_all(roots: impl IntoIterator<Item = PathBuf>, target: &Target) -> Report {
    let mut report = Report::new(target.demand());
    for root in roots {
        match found(&root) {
            Ok(folders) => {
                folders.iter().for_each(|folder| check(&root, folder, target, &mut report))
            }
            Err(error) => report.failed(&format!("{}: {error:#}", root.display())),
        }
    }
    report
}

fn found(root: &Path) -> Result<Vec<PathBuf>> {
    let folders = folders(root)?;
    ensure!(!folders.is_empty(), "expected a folder with a config.json at or below it, got none");
    Ok(folders)
}

/// One folder; whatever goes wrong in it is reported, and the others are still compared.
fn check(root: &Path, folder: &Path, target: &Target, report: &mut Report) {
    report.folder(root, folder);
    let checked = catch_unwind(AssertUnwindSafe(|| compare(folder, target, report)));
    let checked = checked.unwrap_or_else(|_| Err(anyhow!("panicked, see above")));
    if let Err(error) = checked {
        report.failed(&format!("{error:#}"));
    }
}

fn compare(folder: &Path, target: &Target, report: &mut Report) -> Result<()> {
    let fixture = Fixture::open(folder, target)?;
    match fixture.kind()? {
        "dit" => dit::check(&fixture, report),
        "diffusers_dit" => dit::check_first_block(&fixture, report),
        "vae" | "diffusers_vae" => vae::check(&fixture, report),
        "taehv" => tiny::check(&fixture, report),
        "umt5" | "hf_umt5" => text::check(&fixture, report),
        other => bail!("no check for kind {other:?}"),
    }
    .context("cannot be compared")?;
    for name in fixture.unused() {
        report.failed(&format!("{name}: nothing is compared with it"));
    }
    Ok(())
}
