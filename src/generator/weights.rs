//! Where a model's weights are.

use std::path::{Path, PathBuf};

use super::config::Decoder;
use super::error::{Error, Result};
use crate::checkpoint::{Located, Manifest, Place, Role};

/// Where weights come from; by default, from the model's own files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsSource {
    /// Random ones of the right shapes: the speed is real, the picture is noise.
    Random {
        /// The same seed gives the same weights.
        seed: u64,
    },
    /// The model's own files, or others in their place.
    Files(WeightPaths),
}

impl Default for WeightsSource {
    fn default() -> Self {
        Self::Files(WeightPaths::default())
    }
}

/// Which files take the place of a model's own: those are in `folder`, else embedded in the crate or
/// in the Hugging Face cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightPaths {
    /// Where the model's own files are looked for first, by their names.
    pub folder: Option<PathBuf>,
    /// The transformer.
    pub dit: Option<PathBuf>,
    /// What is merged into it, at full strength, in this order, after the model's own LoRA: that one
    /// is a part of the model, also where [`dit`](Self::dit) is another file, and cannot be left out.
    pub loras: Vec<PathBuf>,
    /// The text encoder.
    pub text_encoder: Option<PathBuf>,
    /// Its `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// The network that [`GeneratorConfig::decoder`](super::GeneratorConfig::decoder) names.
    pub decoder: Option<PathBuf>,
}

/// Where everything is that a model is loaded from.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) dit: Place,
    pub(super) loras: Vec<Place>,
    pub(super) text_encoder: Place,
    pub(super) tokenizer: Place,
    pub(super) decoder: Place,
    /// What may not be as its user thinks.
    pub(super) remarks: Vec<String>,
}

impl WeightPaths {
    /// Looks for the model's own files where none is named; an error lists all that are missing.
    pub(super) fn find(&self, model: &Manifest, decoder: Decoder) -> Result<Places> {
        let located = model.locate(self.folder.as_deref());
        let remarks = self.remark_on_lora(model).into_iter().collect();
        let mut search = Search { located, missing: Vec::new(), to_fetch: Vec::new(), remarks };
        let dit = search.place(self.dit.as_deref(), Role::Dit);
        let own_lora = model.file(Role::Lora).map(|_| search.place(None, Role::Lora));
        let loras = own_lora.into_iter().chain(self.loras.iter().map(|path| Some(path.into())));
        let loras = loras.collect::<Option<Vec<_>>>();
        let text_encoder = search.place(self.text_encoder.as_deref(), Role::TextEncoder);
        let tokenizer = search.place(self.tokenizer.as_deref(), Role::Tokenizer);
        let decoder = search.place(self.decoder.as_deref(), decoder.role());
        match (dit, loras, text_encoder, tokenizer, decoder) {
            (Some(dit), Some(loras), Some(text_encoder), Some(tokenizer), Some(decoder)) => {
                let remarks = search.remarks;
                Ok(Places { dit, loras, text_encoder, tokenizer, decoder, remarks })
            }
            _ => Err(Error::MissingWeights {
                model: model.name.clone(),
                missing: search.missing.join(", "),
                roles: search.roles(),
            }),
        }
    }

    fn remark_on_lora(&self, model: &Manifest) -> Option<String> {
        let (dit, own) = (self.dit.as_ref()?.display(), model.file(Role::Lora)?.name());
        let model = &model.name;
        Some(format!(
            "{dit}: {own}, a part of {model}, is merged into it; where it holds that already, name a \
             manifest without a LoRA"
        ))
    }
}

/// Collects what is missing, so that all of it is said at once.
struct Search<'a> {
    located: Vec<Located<'a>>,
    missing: Vec<String>,
    to_fetch: Vec<Role>,
    remarks: Vec<String>,
}

impl Search<'_> {
    /// The file that is named, or else the model's own of the role.
    fn place(&mut self, named: Option<&Path>, role: Role) -> Option<Place> {
        if let Some(path) = named {
            return Some(path.into());
        }
        let missing = match self.located.iter().find(|located| located.file.role == role) {
            Some(Located { found: Some(place), file, wrong_size }) => {
                let expected = file.size.unwrap_or_default();
                self.remarks.extend(wrong_size.iter().map(|(path, got)| {
                    let path = path.display();
                    format!("{path}: expected {expected} bytes, got {got}; {place} is used instead")
                }));
                return Some(place.clone());
            }
            Some(Located { file, wrong_size, .. }) => {
                self.to_fetch.push(role);
                match wrong_size.first() {
                    Some((path, got)) => {
                        format!("{} ({} has {got} bytes)", file.name(), path.display())
                    }
                    None => file.name().to_owned(),
                }
            }
            None => format!("a file of role {role}, of which the model names none"),
        };
        self.missing.push(missing);
        None
    }

    /// All that is to be fetched, by role, if some of it is fetched only when asked for.
    fn roles(&self) -> String {
        let is_plain = self.to_fetch.iter().all(|role| role.is_needed());
        let named = self.to_fetch.iter().filter(|_| !is_plain);
        named.map(|role| format!(" --role {role}")).collect()
    }
}

impl Decoder {
    /// All there are.
    const ALL: [Self; 4] = [Self::Full, Self::Light, Self::Tiny, Self::LightTiny];

    /// Those for which the model has a file.
    pub(super) fn of(model: &Manifest) -> Vec<Self> {
        Self::ALL.into_iter().filter(|decoder| model.file(decoder.role()).is_some()).collect()
    }

    /// Its file in a manifest.
    fn role(self) -> Role {
        match self {
            Self::Full => Role::Vae,
            Self::Light => Role::LightVae,
            Self::Tiny => Role::Taehv,
            Self::LightTiny => Role::LightTaehv,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_own_lora_comes_first_and_is_never_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Manifest::named("longlive-1.3b").unwrap();
        for file in &mut model.files {
            file.size = None;
            std::fs::write(folder.path().join(file.name()), "").unwrap();
        }
        let find = |loras: &[&str]| {
            let paths = WeightPaths {
                folder: Some(folder.path().into()),
                loras: loras.iter().map(PathBuf::from).collect(),
                ..WeightPaths::default()
            };
            paths.find(&model, Decoder::Full).map(|places| places.loras)
        };
        let own = folder.path().join("lora.pt");
        assert_eq!(find(&[]).unwrap(), [Place::from(&own)]);
        let both = ["a.pt", "b.pt"].map(Place::from);
        assert_eq!(find(&["a.pt", "b.pt"]).unwrap(), [&[Place::from(&own)], &both[..]].concat());
        std::fs::remove_file(own).unwrap();
        for given in [&[][..], &["a.pt"]] {
            let error = find(given).unwrap_err();
            assert!(matches!(error, Error::MissingWeights { .. }), "{error}");
        }
    }

    #[test]
    fn a_models_own_lora_in_a_named_transformer_is_remarked_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Manifest::named("longlive-1.3b").unwrap();
        for file in &mut model.files {
            file.size = None;
            std::fs::write(folder.path().join(file.name()), "").unwrap();
        }
        let find = |dit: Option<&str>, model: &Manifest| {
            let (folder, dit) = (Some(folder.path().into()), dit.map(PathBuf::from));
            let paths = WeightPaths { folder, dit, ..WeightPaths::default() };
            paths.find(model, Decoder::Full).unwrap()
        };
        assert!(find(None, &model).remarks.is_empty());
        let places = find(Some("mine.pt"), &model);
        let [remark] = &*places.remarks else { panic!("{:?}", places.remarks) };
        let start = "mine.pt: lora.pt, a part of longlive-1.3b, is merged into it; ";
        assert!(remark.starts_with(start), "{remark}");
        assert_eq!(places.loras.len(), 1);
        model.files.retain(|file| file.role != Role::Lora);
        assert!(find(Some("mine.pt"), &model).remarks.is_empty());
    }

    #[test]
    fn a_file_of_another_size_is_remarked_on_where_another_one_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let model = Manifest::named("pocket").unwrap();
        let beside = folder.path().join("vae.safetensors");
        std::fs::write(&beside, "cut short").unwrap();
        let find = |decoder: Option<&str>| {
            let (folder, decoder) = (Some(folder.path().into()), decoder.map(PathBuf::from));
            let paths = WeightPaths { folder, decoder, ..WeightPaths::default() };
            paths.find(&model, Decoder::Full).unwrap().remarks
        };
        let (path, size) = (beside.display(), model.file(Role::Vae).unwrap().size.unwrap());
        let own = "pocket/vae.safetensors (embedded) is used instead";
        assert_eq!(find(None), [format!("{path}: expected {size} bytes, got 9; {own}")]);
        assert!(find(Some("mine.safetensors")).is_empty(), "the model's own is not asked for");
    }
}
