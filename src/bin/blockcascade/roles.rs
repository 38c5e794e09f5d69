//! What users call the files of a model: the words of the manifests.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use gstblockcascade::checkpoint::Role;

/// All roles by name.
const ROLES: [(&str, Role); 8] = [
    ("dit", Role::Dit),
    ("lora", Role::Lora),
    ("vae", Role::Vae),
    ("text-encoder", Role::TextEncoder),
    ("tokenizer", Role::Tokenizer),
    ("taehv", Role::Taehv),
    ("light-taehv", Role::LightTaehv),
    ("light-vae", Role::LightVae),
];

/// A role as an argument.
pub fn parser() -> impl TypedValueParser<Value = Role> {
    let named =
        |name: String| ROLES.iter().find(|(other, _)| *other == name).map(|(_, role)| *role);
    PossibleValuesParser::new(ROLES.map(|(name, _)| name))
        .try_map(move |name| named(name).ok_or("not a role"))
}

/// What users call a role.
pub fn name(role: Role) -> &'static str {
    ROLES.iter().find(|(_, other)| *other == role).map_or("file", |(name, _)| name)
}

/// Whether a model runs only with the file; the others stand in for its decoder.
pub fn is_needed(role: Role) -> bool {
    !matches!(role, Role::Taehv | Role::LightTaehv | Role::LightVae)
}
