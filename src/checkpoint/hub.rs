//! Fetching of files from the Hugging Face hub into the cache that its tools share.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};
use sha2::{Digest, Sha256};

use super::cache;
use super::error::{Error, Result};
use super::manifest::{ModelFile, Progress};

/// How often a broken transfer is taken up again before it is an error.
const ATTEMPTS: u32 = 5;
/// The wait before the second attempt; it doubles with each.
const PAUSE: Duration = Duration::from_millis(250);

/// Fetches files from the Hugging Face hub, or from a mirror, and checks what arrives.
#[derive(Debug)]
pub struct Hub {
    api: Api,
    cache: PathBuf,
}

impl Hub {
    /// As the environment says: `HF_HOME`, `HF_ENDPOINT`, and `HF_TOKEN` or a stored login.
    pub fn from_env() -> Result<Self> {
        let cache = cache::folder()
            .ok_or_else(|| refused("the cache", "expected HF_HOME or a home, got neither"))?;
        let mut builder = ApiBuilder::from_env();
        if let Ok(token) = std::env::var("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        Self::build(builder, cache)
    }

    /// From a server at `endpoint` into the folder `cache`, without a login.
    pub fn at(endpoint: &str, cache: &Path) -> Result<Self> {
        let builder = ApiBuilder::new().with_endpoint(endpoint.to_owned()).with_token(None);
        Self::build(builder, cache.to_owned())
    }

    fn build(builder: ApiBuilder, cache: PathBuf) -> Result<Self> {
        // The crate's own retries start over at the front of a file that is already half there
        // (0.4.3: `stream_position` of a file opened to append is 0), so ours take their place.
        let builder = builder.with_cache_dir(cache.clone()).with_progress(false).with_retries(0);
        let api = builder.build().map_err(|e| refused("the hub", e))?;
        Ok(Self { api, cache })
    }

    /// The path of a file in the cache, fetched first if it is not there; a transfer that broke off
    /// is taken up where it stopped. A file of another size or hash than the manifest's is removed.
    pub fn fetch(
        &self,
        file: &ModelFile,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf> {
        if let Some(path) = cache::find(&self.cache, file) {
            check_size(file, &path)?;
            return Ok(path);
        }
        let path = self.download(file, progress)?;
        if let Err(wrong) = check_size(file, &path).and_then(|()| check_hash(file, &path)) {
            discard(&path);
            return Err(wrong);
        }
        Ok(path)
    }

    fn download(&self, file: &ModelFile, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        let revision = file.revision.clone().unwrap_or_else(|| "main".to_owned());
        let repo = self.api.repo(Repo::with_revision(file.repo.clone(), RepoType::Model, revision));
        let mut attempt = 0;
        loop {
            attempt += 1;
            let bar = Bar { report: &mut *progress, now: Progress { done: 0, total: 0 } };
            match repo.download_with_progress(&file.path, bar) {
                Ok(path) => return Ok(path),
                Err(e) if attempt == ATTEMPTS || is_final(&e) => return Err(refused_file(file, e)),
                Err(e) => log::warn!("{}/{}: {e}; trying again", file.repo, file.path),
            }
            std::thread::sleep(PAUSE * 2u32.pow(attempt - 1));
        }
    }
}

/// Whether the server has answered and would answer the same again.
fn is_final(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(e) => match **e {
            ureq::Error::Status(code, _) => (400..500).contains(&code) && code != 429,
            ureq::Error::Transport(_) => false,
        },
        ApiError::IoError(_) | ApiError::LockAcquisition(_) => false,
        _ => true,
    }
}

fn check_size(file: &ModelFile, path: &Path) -> Result<()> {
    let got = std::fs::metadata(path).map_err(|e| Error::open(path, e))?.len();
    match file.size {
        Some(want) if want != got => {
            Err(refused_file(file, format!("expected {want} bytes, got {got}")))
        }
        _ => Ok(()),
    }
}

fn check_hash(file: &ModelFile, path: &Path) -> Result<()> {
    let Some(want) = &file.sha256 else { return Ok(()) };
    let got = sha256(path).map_err(|e| Error::open(path, e))?;
    if got.starts_with(want.as_str()) {
        return Ok(());
    }
    Err(refused_file(file, format!("expected SHA-256 {want}, got {got}")))
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Takes a wrong file out of the cache: the name that was made for it and what it points to.
fn discard(path: &Path) {
    let blob = path.canonicalize();
    for path in blob.iter().map(PathBuf::as_path).chain([path]) {
        if let Err(e) = std::fs::remove_file(path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("{}: a wrong file stays in the cache: {e}", path.display());
        }
    }
}

fn refused_file(file: &ModelFile, reason: impl std::fmt::Display) -> Error {
    refused(&format!("{}/{}", file.repo, file.path), reason)
}

fn refused(file: &str, reason: impl std::fmt::Display) -> Error {
    Error::Fetch { file: file.to_owned(), reason: reason.to_string() }
}

/// hf-hub's progress as ours.
struct Bar<'a> {
    report: &'a mut dyn FnMut(Progress),
    now: Progress,
}

impl hf_hub::api::Progress for Bar<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.now = Progress { done: 0, total: size as u64 };
    }

    fn update(&mut self, size: usize) {
        self.now.done += size as u64;
        (self.report)(self.now);
    }

    fn finish(&mut self) {}
}
