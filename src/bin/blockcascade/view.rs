//! Arguments for what blocks see of each other and of the past.

use gstblockcascade::generator::GeneratorConfig;

use crate::choices::{Attention, Budget, History};

/// What a block sees.
#[derive(clap::Args)]
pub struct ViewArgs {
    /// What blocks in flight see of each other
    #[arg(long, value_enum, default_value_t)]
    attention: Attention,
    /// What a block reads of older ones
    #[arg(long, value_enum, default_value_t)]
    history: History,
    /// Whether blocks in flight come on top of the window or count against it
    #[arg(long, value_enum, default_value_t)]
    history_budget: Budget,
}

impl ViewArgs {
    /// The same settings with this view.
    pub fn applied(&self, config: GeneratorConfig) -> GeneratorConfig {
        GeneratorConfig {
            attention: self.attention.into(),
            history_policy: self.history.into(),
            history_budget: self.history_budget.into(),
            ..config
        }
    }
}
