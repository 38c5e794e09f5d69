//! The roles of a model's files as an argument.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use gstblockcascade::checkpoint::Role;

/// A role, by the name that manifests give it.
pub fn parser() -> impl TypedValueParser<Value = Role> {
    let named = |name: String| Role::ALL.into_iter().find(|role| role.name() == name);
    PossibleValuesParser::new(Role::ALL.map(Role::name))
        .try_map(move |name| named(name).ok_or("not a role"))
}
