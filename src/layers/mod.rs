//! Building blocks that belong to no family and know no thread, path or property.

pub mod conv;
pub mod cpu;
