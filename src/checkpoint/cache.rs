//! The folder in which all Hugging Face tools keep what they fetched.
//!
//! Layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::path::{Path, PathBuf};

use super::manifest::ModelFile;

/// `$HF_HOME/hub`, by default in the user's home; `None` for a user without one.
pub(super) fn folder() -> Option<PathBuf> {
    let home = match std::env::var_os("HF_HOME") {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir()?.join(".cache/huggingface"),
    };
    Some(home.join("hub"))
}

/// The place of a file in `cache`, if its revision is there; without one, of the branch `main`.
pub(super) fn find(cache: &Path, file: &ModelFile) -> Option<PathBuf> {
    let repo = file.repo.as_ref()?.replace('/', "--");
    let repo = cache.join(format!("models--{repo}"));
    let revision = match &file.revision {
        Some(revision) => revision.clone(),
        None => std::fs::read_to_string(repo.join("refs/main")).ok()?.trim().to_owned(),
    };
    let path = repo.join("snapshots").join(revision).join(&file.path);
    path.is_file().then_some(path)
}
