//! Bytes as the index of a sharded checkpoint, in a folder without shards.

#![no_main]

use gstblockcascade::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = folder.path().join("fuzz.safetensors.index.json");
    if std::fs::write(&path, bytes).is_ok() {
        let _ = Checkpoint::open(&path);
    }
});
