//! Text as a manifest.

#![no_main]

use std::path::Path;

use gstblockcascade::checkpoint::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = Manifest::parse(Path::new("fuzz"), text);
});
