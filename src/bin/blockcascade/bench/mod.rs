//! `bench`: how fast a model is here.

mod args;
mod measure;
mod table;

use anyhow::Result;
use gstblockcascade::generator::Parts;
use gstblockcascade::model::Interrupt;

pub use self::args::Args;

use self::measure::Row;
use crate::print;

/// Runs the command: weights are loaded once, then each width is measured by itself.
pub fn run(args: &Args) -> Result<()> {
    let configs = args.configs()?;
    let mut rows: Vec<Row> = Vec::new();
    if let Some((_, widest)) = configs.iter().max_by_key(|(_, config)| config.devices.len()) {
        let parts = Parts::load(widest, &Interrupt::default())?;
        for (width, config) in &configs {
            log::info!("width {width} on {}", config.devices);
            rows.push(measure::row(*width, config, &parts, args.blocks)?);
        }
    }
    print(&if args.json { format!("{:#}\n", table::json(&rows)) } else { table::text(&rows) })
}
