//! Fetching of files from the Hugging Face hub into the cache that its tools share.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::cache;
use super::error::{Error, Result};
use super::manifest::{ModelFile, Progress};

/// How often a broken transfer is taken up again before it is an error.
const ATTEMPTS: u32 = 5;
/// The wait before the second attempt; it doubles with each.
const PAUSE: Duration = Duration::from_millis(250);
/// A line on which nothing has come for so long is dead, though nobody has said so.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fetches files from the Hugging Face hub, or from a mirror, and checks what arrives.
#[derive(Debug)]
pub struct Hub {
    api: Api,
    cache: PathBuf,
    patience: Duration,
}

impl Hub {
    /// As the environment says: `HF_HOME`, `HF_ENDPOINT`, and `HF_TOKEN` or a stored login.
    pub fn from_env() -> Result<Self> {
        let cache = cache::folder()
            .ok_or_else(|| refused("the cache", "expected HF_HOME or a home, got neither"))?;
        let mut builder = ApiBuilder::from_env();
        // As Python's tools read them: an empty one is none.
        if let Some(token) = variable("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
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
        Ok(Self { api, cache, patience: PATIENCE })
    }

    /// The path of a file in the cache, fetched first if it is not there; a transfer that broke off
    /// is taken up where it stopped. A file of another size or hash than the manifest's is removed,
    /// and fetched again where it was there before.
    /// An embedded file is nowhere to be fetched from, which is an error.
    pub fn fetch(&self, file: &ModelFile, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        if let Some(path) = cache::find(&self.cache, file) {
            match checked(file, path) {
                Err(wrong @ Error::Fetch { .. }) => log::warn!("{wrong}; fetching it again"),
                other => return other,
            }
        }
        checked(file, self.download(file, progress)?)
    }

    fn download(&self, file: &ModelFile, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
        let Some(repo) = file.repo.clone() else {
            return Err(refused_file(file, "expected a file of the hub"));
        };
        let revision = file.revision.clone().unwrap_or_else(|| "main".to_owned());
        let repo = Repo::with_revision(repo, RepoType::Model, revision);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut total = 0;
            let done = self.transfer(&repo, file, &mut |now| {
                total = now.total;
                if now.done > 0 {
                    progress(now);
                }
            })?;
            match done {
                Ok(path) => return Ok(path),
                Err(e) if attempt == ATTEMPTS => return Err(refused_file(file, e)),
                Err(e) if is_final(&e) && !self.reopen(&repo, total) => {
                    return Err(refused_file(file, e));
                }
                Err(e) => log::warn!("{file}: {e}; trying again"),
            }
            thread::sleep(PAUSE * 2u32.pow(attempt - 1));
        }
    }

    /// One attempt, in a thread of its own, for hf-hub reads without a time limit: a line that is dead
    /// is left to it.
    fn transfer(
        &self,
        repo: &Repo,
        file: &ModelFile,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<std::result::Result<PathBuf, ApiError>> {
        let (news, heard) = mpsc::channel();
        let bar = Bar { news: news.clone(), now: Progress { done: 0, total: 0 } };
        let (repo, path) = (self.api.repo(repo.clone()), file.path.clone());
        let work = move || news.send(News::Over(repo.download_with_progress(&path, bar)));
        let thread = thread::Builder::new().name("fetch".into());
        thread.spawn(work).map_err(|e| refused_file(file, e))?;
        loop {
            match heard.recv_timeout(self.patience) {
                Ok(News::Progress(now)) => progress(now),
                Ok(News::Over(done)) => return Ok(done),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let seconds = self.patience.as_secs_f64();
                    let reason =
                        format!("nothing came for {seconds} s; ask again to go on from there");
                    return Err(refused_file(file, reason));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(refused_file(file, "hf-hub gave up without a reason"));
                }
            }
        }
    }

    /// Makes a part that is as long as the whole one that can be taken up: nothing is left to ask a server
    /// for, and it says so each time. Whether there was one.
    fn reopen(&self, repo: &Repo, total: u64) -> bool {
        let blobs = Cache::new(self.cache.clone()).path().join(repo.folder_name()).join("blobs");
        let files = std::fs::read_dir(blobs).into_iter().flatten().flatten();
        let is_part =
            |path: &PathBuf| path.extension().is_some_and(|extension| extension == "part");
        let parts = files.map(|file| file.path()).filter(is_part);
        let shortened = parts.filter(|path| total > 0 && shorten(path, total).unwrap_or(false));
        shortened.count() > 0
    }
}

/// Takes the last byte of a part that has all `total` of them.
fn shorten(part: &Path, total: u64) -> std::io::Result<bool> {
    let file = File::options().write(true).open(part)?;
    let is_whole = file.metadata()?.len() == total;
    if is_whole {
        file.set_len(total - 1)?;
    }
    Ok(is_whole)
}

/// A variable of the environment that says something.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}

/// What a transfer tells whoever waits for it.
enum News {
    Progress(Progress),
    Over(std::result::Result<PathBuf, ApiError>),
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

/// The path of a file that is the manifest's; another is discarded.
fn checked(file: &ModelFile, path: PathBuf) -> Result<PathBuf> {
    let check = check_size(file, &path).and_then(|()| check_hash(file, &path));
    if let Err(Error::Fetch { .. }) = check {
        discard(&path);
    }
    check.map(|()| path)
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
    refused(&file.to_string(), reason)
}

fn refused(file: &str, reason: impl std::fmt::Display) -> Error {
    Error::Fetch { file: file.to_owned(), reason: reason.to_string() }
}

/// hf-hub's progress as ours.
struct Bar {
    news: mpsc::Sender<News>,
    now: Progress,
}

impl Bar {
    fn tell(&self) {
        let _ = self.news.send(News::Progress(self.now)); // who waited may have had enough
    }
}

impl hf_hub::api::Progress for Bar {
    fn init(&mut self, size: usize, _: &str) {
        self.now = Progress { done: 0, total: size as u64 };
        self.tell();
    }

    fn update(&mut self, size: usize) {
        self.now.done += size as u64;
        self.tell();
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::super::manifest::Role;
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    /// A hub of one file that closes the line once, after `cut` bytes of it, or says no more.
    struct Server {
        body: Vec<u8>,
        cut: Mutex<Option<usize>>,
        is_silent: bool,
        /// The `Range` of every request.
        ranges: Mutex<Vec<String>>,
    }

    impl Server {
        fn start(body: Vec<u8>, cut: Option<usize>) -> (Arc<Self>, String) {
            Self { body, cut: cut.into(), is_silent: false, ranges: Vec::new().into() }.run()
        }

        fn run(self) -> (Arc<Self>, String) {
            let server = Arc::new(self);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let shared = server.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = shared.answer(stream.unwrap());
                }
            });
            (server, endpoint)
        }

        fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
            let mut lines = BufReader::new(stream.try_clone()?).lines();
            let request = lines.next().unwrap()?;
            let mut range = String::new();
            for line in lines {
                let line = line?;
                if let Some((_, value)) = line.split_once("bytes=") {
                    range = value.to_owned();
                }
                if line.is_empty() {
                    break;
                }
            }
            if !request.contains(&format!("/owner/name/resolve/{COMMIT}/folder/file.bin ")) {
                return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
            }
            self.ranges.lock().unwrap().push(range.clone());
            let (from, to) = range.split_once('-').unwrap();
            let from: usize = from.parse().unwrap();
            let to = to.parse().map_or(self.body.len(), |to: usize| to + 1);
            let total = self.body.len();
            if from >= total {
                return stream.write_all(b"HTTP/1.1 416 Range\r\ncontent-length: 0\r\n\r\n");
            }
            write!(
                stream,
                "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\nconnection: close\r\n\
                 content-range: bytes {from}-{}/{total}\r\netag: \"tag\"\r\n\
                 x-repo-commit: {COMMIT}\r\n\r\n",
                to - from,
                to - 1
            )?;
            let cut = if to - from > 1 { self.cut.lock().unwrap().take() } else { None };
            stream.write_all(&self.body[from..cut.map_or(to, |cut| cut.min(to))])?;
            while self.is_silent && cut.is_some() {
                thread::park();
            }
            Ok(())
        }
    }

    fn body() -> Vec<u8> {
        (0..300_000u32).map(|i| (i % 253) as u8).collect()
    }

    fn file(sha256: Option<String>) -> ModelFile {
        ModelFile {
            role: Role::Dit,
            repo: Some("owner/name".into()),
            revision: Some(COMMIT.into()),
            path: "folder/file.bin".into(),
            size: Some(300_000),
            sha256,
        }
    }

    #[test]
    fn a_broken_transfer_is_taken_up_where_it_stopped() {
        let cache = tempfile::tempdir().unwrap();
        let (server, endpoint) = Server::start(body(), Some(100_000));
        let hub = Hub::at(&endpoint, cache.path()).unwrap();
        let want = format!("{:x}", Sha256::digest(body()));
        let mut seen = Vec::new();
        let path = hub.fetch(&file(Some(want)), &mut |progress| seen.push(progress)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), body());
        assert_eq!(seen.last(), Some(&Progress { done: 300_000, total: 300_000 }));
        assert_eq!(*server.ranges.lock().unwrap(), ["0-0", "0-", "0-0", "100000-"]);

        // The second time, nothing is asked.
        assert_eq!(hub.fetch(&file(None), &mut |_| {}).unwrap(), path);
        assert_eq!(server.ranges.lock().unwrap().len(), 4);
    }

    #[test]
    fn a_line_that_is_dead_is_not_waited_for() {
        let cache = tempfile::tempdir().unwrap();
        let cut = Some(100_000).into();
        let silent = Server { body: body(), cut, is_silent: true, ranges: Vec::new().into() };
        let (_, endpoint) = silent.run();
        let mut hub = Hub::at(&endpoint, cache.path()).unwrap();
        hub.patience = Duration::from_millis(500);
        let mut seen = 0;
        let error = hub.fetch(&file(None), &mut |progress| seen = progress.done).unwrap_err();
        assert!(error.to_string().contains("nothing came for 0.5 s"), "{error}");
        assert_eq!(seen, 100_000);
    }

    /// As a process leaves it that ends between the last byte and the renaming.
    #[test]
    fn a_part_that_is_whole_is_taken_up() {
        let cache = tempfile::tempdir().unwrap();
        let (server, endpoint) = Server::start(body(), None);
        let hub = Hub::at(&endpoint, cache.path()).unwrap();
        let path = hub.fetch(&file(None), &mut |_| {}).unwrap();
        let blob = path.canonicalize().unwrap();
        let (part, other) = (blob.with_extension("part"), blob.with_file_name("other.part"));
        std::fs::rename(&blob, part).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&other, vec![7; 300_001]).unwrap();
        assert_eq!(hub.fetch(&file(None), &mut |_| {}).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), body());
        assert_eq!(server.ranges.lock().unwrap().last().unwrap(), "299999-");
        assert_eq!(std::fs::metadata(other).unwrap().len(), 300_001, "that is another file's");
    }

    #[test]
    fn a_wrong_file_in_the_cache_is_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        let (server, endpoint) = Server::start(body(), None);
        let hub = Hub::at(&endpoint, cache.path()).unwrap();
        let file = file(Some(format!("{:x}", Sha256::digest(body()))));
        let path = hub.fetch(&file, &mut |_| {}).unwrap();
        let fetched = || server.ranges.lock().unwrap().len();
        for (asked, wrong) in (1..).zip([body()[..9].to_vec(), vec![0; 300_000]]) {
            std::fs::write(path.canonicalize().unwrap(), wrong).unwrap();
            assert_eq!(hub.fetch(&file, &mut |_| {}).unwrap(), path);
            assert_eq!(std::fs::read(&path).unwrap(), body());
            assert_eq!(fetched(), 2 * (asked + 1));
        }
        // A good one is not.
        assert_eq!(hub.fetch(&file, &mut |_| {}).unwrap(), path);
        assert_eq!(fetched(), 6);
    }

    #[test]
    fn a_wrong_file_is_reported_and_removed() {
        let cache = tempfile::tempdir().unwrap();
        let (_, endpoint) = Server::start(body(), None);
        let hub = Hub::at(&endpoint, cache.path()).unwrap();
        let error = hub.fetch(&file(Some("00000000".into())), &mut |_| {}).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("owner/name/folder/file.bin: cannot be fetched: "), "{error}");
        assert!(error.contains("expected SHA-256 00000000, got "), "{error}");
        assert_eq!(cache::find(cache.path(), &file(None)), None);

        let long = ModelFile { size: Some(300_001), ..file(None) };
        let error = hub.fetch(&long, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("expected 300001 bytes, got 300000"), "{error}");
        assert_eq!(cache::find(cache.path(), &long), None);
    }

    #[test]
    fn a_missing_file_is_asked_for_once() {
        let cache = tempfile::tempdir().unwrap();
        let (_, endpoint) = Server::start(body(), None);
        let hub = Hub::at(&endpoint, cache.path()).unwrap();
        let missing = ModelFile { path: "none".into(), ..file(None) };
        let error = hub.fetch(&missing, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("404"), "{error}");
        let embedded = ModelFile { repo: None, revision: None, ..missing };
        let error = hub.fetch(&embedded, &mut |_| {}).unwrap_err().to_string();
        assert_eq!(error, "none (embedded): cannot be fetched: expected a file of the hub");
    }
}
