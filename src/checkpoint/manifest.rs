//! What a model is for us: its files, its licence and the settings it was made for.
//!
//! Manifests are TOML (`models/*.toml`). They are strict: an unknown field is an error that names the
//! line, a size of zero or a file outside its repository one that names the field and what it holds.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::cache;
use super::embedded::EmbeddedFile;
use super::error::{Error, Result};
use super::place::Place;

/// Manifests that are part of the crate.
const EMBEDDED: [(&str, &str); 4] = [
    ("pocket", include_str!("../../models/pocket.toml")),
    ("self-forcing-1.3b", include_str!("../../models/self-forcing-1.3b.toml")),
    ("longlive-1.3b", include_str!("../../models/longlive-1.3b.toml")),
    ("krea-realtime-14b", include_str!("../../models/krea-realtime-14b.toml")),
];

/// No single file of weights is larger: 1 TiB.
const MAX_SIZE: u64 = 1 << 40;
/// Width and height, at most; also what 8-bit video formats commonly stop at.
const MAX_SIDE: u32 = 8192;
/// Shifts that leave a schedule to denoise by.
pub(crate) const TIMESTEP_SHIFTS: std::ops::RangeInclusive<f64> = 1.0..=100.0;
/// Characters of a SHA-256, and how few of them still tell files apart.
const SHA256: std::ops::RangeInclusive<usize> = 8..=64;

/// One model: what it is, where its files are and how to run it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// What users call it, such as `self-forcing-1.3b`.
    pub name: String,
    /// One line for a list of models.
    pub description: String,
    /// Which networks it is made of.
    pub family: Family,
    /// Which size of them.
    pub architecture: Architecture,
    /// What may be done with the weights.
    pub licence: Licence,
    /// The settings it was trained for.
    pub preset: Preset,
    /// At most one file for each role.
    pub files: Vec<ModelFile>,
    /// The folder that the manifest itself was read from, if it was: its files may lie there.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
}

/// A family of networks that this crate implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Wan 2.1 made block-causal.
    Wan,
}

/// A size within a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Architecture {
    /// The embedded model's, for two CPU cores.
    #[serde(rename = "pocket")]
    Pocket,
    /// 1.4 billion parameters in 30 layers.
    #[serde(rename = "t2v-1.3b")]
    T2v1_3b,
    /// 14.3 billion parameters in 40 layers.
    #[serde(rename = "t2v-14b")]
    T2v14b,
}

/// The licence of a model's weights, as its authors state it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Licence {
    /// SPDX identifier of the strictest licence stated for any file.
    pub spdx: String,
    /// What that allows in plain words, and where the sources disagree.
    pub note: String,
}

/// Settings of generation that a model was trained for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Preset {
    /// Timesteps before the shift, falling, of `0..=1000`.
    pub denoising_steps: Vec<u32>,
    /// `s` in `s·σ / (1 + (s−1)·σ)`.
    pub timestep_shift: f64,
    /// Latent frames of a block.
    pub frames_per_block: usize,
    /// Most recent clean blocks that a block sees besides the sink.
    pub window: usize,
    /// First blocks of the stream, never evicted.
    pub sink: usize,
    /// Native width in pixels.
    pub width: u32,
    /// Native height in pixels.
    pub height: u32,
    /// Native frames per second.
    pub fps: u32,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The denoising network.
    Dit,
    /// Merged into the denoising network.
    Lora,
    /// The decoder, and the encoder that came with it.
    Vae,
    /// umT5.
    TextEncoder,
    /// The text encoder's vocabulary.
    Tokenizer,
    /// A small decoder that may stand in for the VAE.
    Taehv,
    /// The same, trained on the VAE's own latents: it takes another scale than `Taehv`.
    LightTaehv,
    /// The VAE with a quarter of its channels.
    LightVae,
}

impl Role {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::Dit,
        Self::Lora,
        Self::Vae,
        Self::TextEncoder,
        Self::Tokenizer,
        Self::Taehv,
        Self::LightTaehv,
        Self::LightVae,
    ];

    /// As manifests and users call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dit => "dit",
            Self::Lora => "lora",
            Self::Vae => "vae",
            Self::TextEncoder => "text-encoder",
            Self::Tokenizer => "tokenizer",
            Self::Taehv => "taehv",
            Self::LightTaehv => "light-taehv",
            Self::LightVae => "light-vae",
        }
    }

    /// Whether a model runs only with the file; the others stand in for its decoder.
    pub fn is_needed(self) -> bool {
        !matches!(self, Self::Taehv | Self::LightTaehv | Self::LightVae)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One file of a model: where it is published, or that it is embedded in the crate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelFile {
    /// What it is for.
    pub role: Role,
    /// `owner/name` on the Hugging Face hub; without one, the file is embedded.
    pub repo: Option<String>,
    /// Commit, all 40 digits; without one, whatever is published now.
    pub revision: Option<String>,
    /// Path inside the repository; of an embedded file, below the crate's `models/`.
    pub path: String,
    /// Size in bytes, where known.
    pub size: Option<u64>,
    /// SHA-256 or its first digits, where known.
    pub sha256: Option<String>,
}

/// Where a file of a model was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<'a> {
    /// The file looked for.
    pub file: &'a ModelFile,
    /// Its place; `None` when it is missing.
    pub found: Option<Place>,
    /// Files of its name that have another size, with that size: cut short, or something else.
    pub wrong_size: Vec<(PathBuf, u64)>,
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes on disk, those of an earlier attempt included.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

impl Manifest {
    /// Names of the manifests that are part of the crate.
    pub fn names() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    /// A manifest that is part of the crate.
    pub fn named(name: &str) -> Result<Self> {
        match EMBEDDED.iter().find(|(embedded, _)| *embedded == name) {
            Some((_, text)) => Self::parse(Path::new(name), text),
            None => {
                let known = Self::names().collect::<Vec<_>>().join(", ");
                Err(Error::UnknownModel { name: name.into(), known })
            }
        }
    }

    /// Reads a manifest from a file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::open(path, e))?;
        let folder = path.parent().map(Path::to_path_buf);
        Ok(Self { folder, ..Self::parse(path, &text)? })
    }

    /// Reads a manifest from text; `path` stands for it in messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong = |reason| Error::Manifest { path: path.into(), reason };
        let manifest: Self = toml::from_str(text).map_err(|e| wrong(explain(&e, text)))?;
        manifest.validate().map_err(wrong)?;
        Ok(manifest)
    }

    /// The file of a role, if the model has one.
    pub fn file(&self, role: Role) -> Option<&ModelFile> {
        self.files.iter().find(|file| file.role == role)
    }

    /// Looks for every file in `folder` and then in the manifest's own, by its path in the repository or its
    /// bare name, then in the cache that Hugging Face tools share, or in the crate if it is embedded. Sizes
    /// are compared, contents are not.
    pub fn locate(&self, folder: Option<&Path>) -> Vec<Located<'_>> {
        let cache = cache::folder();
        let folders: Vec<_> = folder.into_iter().chain(self.folder.as_deref()).collect();
        self.files.iter().map(|file| file.locate(&folders, cache.as_deref())).collect()
    }

    fn validate(&self) -> std::result::Result<(), String> {
        self.preset.validate()?;
        for (i, file) in self.files.iter().enumerate() {
            file.validate().map_err(|e| format!("files[{i}].{e}"))?;
            if self.files[..i].iter().any(|other| other.role == file.role) {
                return Err(format!(
                    "files[{i}].role: got {0}, of which there is one already",
                    file.role
                ));
            }
        }
        for role in [Role::Dit, Role::Vae, Role::TextEncoder, Role::Tokenizer] {
            if self.file(role).is_none() {
                return Err(format!("files: expected one of role {role}, got none"));
            }
        }
        Ok(())
    }
}

impl Preset {
    fn validate(&self) -> std::result::Result<(), String> {
        let steps = &self.denoising_steps;
        let in_range = steps.iter().all(|step| *step <= 1000);
        let sides = 16..=MAX_SIDE;
        let side = |side: u32| sides.contains(&side) && side.is_multiple_of(16);
        let size = "a multiple of 16, up to 8192";
        let fields = [
            (
                !steps.is_empty() && in_range && steps.is_sorted_by(|a, b| a > b),
                ("denoising-steps", format!("{steps:?}")),
                "falling whole numbers from 1000 to 0",
            ),
            (
                TIMESTEP_SHIFTS.contains(&self.timestep_shift),
                ("timestep-shift", self.timestep_shift.to_string()),
                "1 to 100",
            ),
            (
                (1..=64).contains(&self.frames_per_block),
                ("frames-per-block", self.frames_per_block.to_string()),
                "1 to 64",
            ),
            (
                (1..=1024).contains(&self.window),
                ("window", self.window.to_string()),
                "1 to 1024 blocks",
            ),
            (self.sink <= 1024, ("sink", self.sink.to_string()), "0 to 1024 blocks"),
            (side(self.width), ("width", self.width.to_string()), size),
            (side(self.height), ("height", self.height.to_string()), size),
            ((1..=240).contains(&self.fps), ("fps", self.fps.to_string()), "1 to 240"),
        ];
        first_wrong(&fields).map_err(|wrong| format!("preset.{wrong}"))
    }
}

/// Fields, whether they are right, what they hold and what is accepted.
type Fields<'a> = [(bool, (&'a str, String), &'a str)];

fn first_wrong(fields: &Fields<'_>) -> std::result::Result<(), String> {
    match fields.iter().find(|(good, ..)| !good) {
        Some((_, (field, got), accepted)) => {
            Err(format!("{field}: got {got}, expected {accepted}"))
        }
        None => Ok(()),
    }
}

impl ModelFile {
    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// What is in the crate, if the file is embedded.
    pub fn embedded(&self) -> Option<EmbeddedFile> {
        if self.repo.is_some() { None } else { EmbeddedFile::find(&self.path) }
    }

    fn locate(&self, folders: &[&Path], cache: Option<&Path>) -> Located<'_> {
        let paths = |folder: &&Path| [folder.join(&self.path), folder.join(self.name())];
        let beside = folders.iter().flat_map(paths);
        let cached = cache.and_then(|cache| cache::find(cache, self));
        let embedded = self.embedded().map(Place::Embedded);
        let mut located = Located { file: self, found: embedded, wrong_size: Vec::new() };
        for path in beside.chain(cached) {
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            if !meta.is_file() || located.wrong_size.iter().any(|(seen, _)| *seen == path) {
                continue;
            }
            if self.size.is_none_or(|size| size == meta.len()) {
                located.found = Some(Place::Disk(path));
                break;
            }
            located.wrong_size.push((path, meta.len()));
        }
        located
    }

    /// Whether it can be told where the file is.
    fn has_repo(&self) -> bool {
        match &self.repo {
            Some(repo) => is_plain(repo) && repo.split('/').filter(|p| !p.is_empty()).count() == 2,
            None => self.revision.is_none() && self.embedded().is_some(),
        }
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let commit = |text: &String| text.len() == 40 && is_hex(text);
        let digest = |text: &String| SHA256.contains(&text.len()) && is_hex(text);
        let named = Path::new(&self.path).file_name() == Some(OsStr::new(self.name()));
        let shown = |text: &Option<String>| {
            text.as_ref().map_or_else(|| "none".to_owned(), |text| format!("{text:?}"))
        };
        let size = self.size.map_or_else(|| "none".to_owned(), |size| size.to_string());
        first_wrong(&[
            (
                self.has_repo(),
                ("repo", shown(&self.repo)),
                "owner/name, unless the path is that of an embedded file",
            ),
            (
                self.revision.as_ref().is_none_or(commit),
                ("revision", shown(&self.revision)),
                "40 hexadecimal digits",
            ),
            (
                is_plain(&self.path) && named,
                ("path", format!("{:?}", self.path)),
                "a file inside the repository",
            ),
            (
                self.size.is_none_or(|size| (1..=MAX_SIZE).contains(&size)),
                ("size", size),
                "1 byte to 1 TiB",
            ),
            (
                self.sha256.as_ref().is_none_or(digest),
                ("sha256", shown(&self.sha256)),
                "8 to 64 hexadecimal digits, in lower case",
            ),
        ])
    }
}

impl fmt::Display for ModelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.repo {
            Some(repo) => write!(f, "{repo}/{}", self.path),
            None => write!(f, "{} (embedded)", self.path),
        }
    }
}

/// Whether a path stays where it starts.
fn is_plain(path: &str) -> bool {
    !path.contains('\\')
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Lower-case hexadecimal digits only.
fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The parser's complaint with the line it is about.
fn explain(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', ", ");
    let before = error.span().and_then(|span| text.get(..span.start));
    match before.map(|before| before.matches('\n').count()) {
        Some(line) => {
            let source = text.lines().nth(line).unwrap_or_default().trim();
            format!("line {}, `{source}`: {message}", line + 1)
        }
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_looked_for_in_the_folder_and_then_in_the_cache() {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let manifest = Manifest::named("self-forcing-1.3b").unwrap();
        let file = ModelFile { size: Some(3), ..manifest.file(Role::Dit).unwrap().clone() };
        let locate = || file.locate(&[folder.path()], Some(cache.path()));
        assert_eq!(locate().found, None);

        let revision = file.revision.as_ref().unwrap();
        let snapshot = format!("models--gdhe17--Self-Forcing/snapshots/{revision}/checkpoints");
        let cached = cache.path().join(snapshot).join(file.name());
        std::fs::create_dir_all(cached.parent().unwrap()).unwrap();
        std::fs::write(&cached, "abc").unwrap();
        assert_eq!(locate().found, Some(cached.clone().into()));

        let beside = folder.path().join(file.name());
        std::fs::write(&beside, "short of bytes").unwrap();
        let located = locate();
        assert_eq!(located.found, Some(cached.into()));
        assert_eq!(located.wrong_size, [(beside.clone(), 14)]);
        std::fs::write(&beside, "abc").unwrap();
        assert_eq!(locate().found, Some(beside.into()));
    }

    #[test]
    fn a_file_may_lie_beside_its_manifest() {
        let (own, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = own.path().join("mine.toml");
        let text = include_str!("../../models/self-forcing-1.3b.toml");
        std::fs::write(&path, text.replace("size = 5676252553\n", "")).unwrap();
        let manifest = Manifest::read(&path).unwrap();
        let name = manifest.file(Role::Dit).unwrap().name();
        let found = |folder: Option<&Path>| {
            let located = manifest.locate(folder);
            located.into_iter().find(|located| located.file.role == Role::Dit).unwrap().found
        };
        assert_eq!(found(None), None);
        let beside = own.path().join(name);
        std::fs::write(&beside, "abc").unwrap();
        assert_eq!(found(None), Some(beside.clone().into()));
        assert_eq!(found(Some(folder.path())), Some(beside.into()));
        let named = folder.path().join(name);
        std::fs::write(&named, "abc").unwrap();
        assert_eq!(found(Some(folder.path())), Some(named.into()));
    }

    #[test]
    fn a_file_in_the_folder_stands_in_for_an_embedded_one() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = Manifest::named("pocket").unwrap();
        let file = ModelFile { size: Some(3), ..manifest.file(Role::Dit).unwrap().clone() };
        let locate = || file.locate(&[folder.path()], None).found;
        assert_eq!(locate(), file.embedded().map(Place::Embedded));
        assert!(locate().is_some());

        let beside = folder.path().join(file.name());
        std::fs::write(&beside, "short of bytes").unwrap();
        assert_eq!(locate(), file.embedded().map(Place::Embedded));
        std::fs::write(&beside, "abc").unwrap();
        assert_eq!(locate(), Some(beside.into()));
    }
}
