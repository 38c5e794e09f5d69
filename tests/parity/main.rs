//! Every golden tensor of every fixture folder, by name, within one tolerance.
//!
//! Walks `tests/fixtures` and the folders under each path of `PARITY_FIXTURES` (colon-separated);
//! the kind in a folder's `config.json` says what is rebuilt and compared.

#![allow(clippy::print_stdout)] // the report is this test's result

mod dit;
mod fixture;
mod text;
mod tiny;
mod vae;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use fixture::{Fixture, Report};

fn main() -> ExitCode {
    let mut report = Report::default();
    for folder in folders() {
        report.folder(&folder);
        if let Err(error) = check(&folder, &mut report) {
            report.failed(&format!("{error:#}"));
        }
    }
    report.finish()
}

fn check(folder: &Path, report: &mut Report) -> Result<()> {
    let fixture = Fixture::open(folder)?;
    match fixture.kind()? {
        "dit" => dit::check(&fixture, report),
        "diffusers_dit" => dit::check_first_block(&fixture, report),
        "vae" | "diffusers_vae" => vae::check(&fixture, report),
        "taehv" => tiny::check(&fixture, report),
        "umt5" | "hf_umt5" => text::check(&fixture, report),
        other => bail!("no check for kind {other:?}"),
    }
}

/// Folders with a `config.json`, at the given paths or right below them.
fn folders() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let others = std::env::var_os("PARITY_FIXTURES").unwrap_or_default();
    let mut found = Vec::new();
    for root in std::iter::once(own).chain(std::env::split_paths(&others)) {
        let below = std::fs::read_dir(&root).into_iter().flatten().flatten().map(|e| e.path());
        let mut here: Vec<PathBuf> =
            below.chain([root.clone()]).filter(|p| is_fixture(p)).collect();
        here.sort();
        found.extend(here);
    }
    found
}

fn is_fixture(path: &Path) -> bool {
    let kind = || {
        let text = std::fs::read_to_string(path.join("config.json")).context("no config").ok()?;
        let config: serde_json::Value = serde_json::from_str(&text).ok()?;
        config.get("kind").map(|_| ())
    };
    kind().is_some()
}
