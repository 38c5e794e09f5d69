//! The parity test itself: whatever it cannot compare, it fails on.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests, which clippy does not see

#[allow(dead_code)] // what only its own `main` calls
#[path = "parity/main.rs"]
mod parity;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, safetensors};
use tempfile::TempDir;

use parity::target::Target;

/// A root with one fixture of ours two levels down.
struct Root(TempDir);

impl Root {
    fn with(fixture: &str) -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(root.folder()).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        for file in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
            fs::copy(&file, root.folder().join(file.file_name().unwrap())).unwrap();
        }
        root
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("upper/lower")
    }

    fn configure(&self, from: &str, to: &str) {
        let path = self.folder().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    fn change_expected(&self, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
        let path = self.folder().join("expected.safetensors");
        let mut tensors = safetensors::load(&path, &Device::Cpu).unwrap();
        change(&mut tensors);
        safetensors::save(&tensors, path).unwrap();
    }

    /// The last line, and all failures in one text.
    fn check(&self) -> (String, String) {
        check(self.0.path())
    }
}

fn check(root: &Path) -> (String, String) {
    let report = parity::check_all([root.to_owned()], &Target::default());
    assert_eq!(report.is_good(), report.failures().is_empty());
    (report.sum(), report.failures().join("\n"))
}

#[test]
fn folders_are_found_at_any_depth() {
    let (sum, failures) = Root::with("umt5").check();
    assert_eq!(failures, "");
    assert!(sum.starts_with("parity: 1 tensors in 1 folders, 0 failed, worst "), "{sum}");
}

#[test]
fn a_root_without_fixtures_fails() {
    let empty = tempfile::tempdir().unwrap();
    assert!(check(empty.path()).1.contains("expected a folder with a config.json"));
    assert!(check(&empty.path().join("none")).1.contains("No such file"));
}

#[test]
fn a_folder_that_cannot_be_read_fails() {
    for (from, to, said) in [
        ("\"kind\": \"umt5\"", "\"kind\": ", "config.json"),
        ("\"kind\"", "\"sort\"", "no kind"),
        ("\"kind\": \"umt5\"", "\"kind\": \"other\"", "no check for kind \"other\""),
    ] {
        let root = Root::with("umt5");
        root.configure(from, to);
        let (sum, failures) = root.check();
        assert!(failures.contains(said), "{to}: {failures}");
        assert!(sum.contains("0 tensors in 1 folders"), "{sum}");
    }
    for missing in ["config.json", "expected.safetensors", "model.safetensors"] {
        let root = Root::with("umt5");
        fs::remove_file(root.folder().join(missing)).unwrap();
        assert!(root.check().1.contains(missing), "{missing}: {:?}", root.check());
    }
}

#[test]
fn every_golden_tensor_counts() {
    let root = Root::with("umt5");
    root.change_expected(|tensors| {
        tensors.insert("surplus".into(), Tensor::new(1f32, &Device::Cpu).unwrap());
    });
    assert_eq!(root.check().1, "surplus: nothing is compared with it");

    let root = Root::with("umt5");
    root.change_expected(|tensors| {
        let embeds = tensors["embeds"].narrow(2, 1, 2).unwrap().contiguous().unwrap();
        tensors.insert("embeds".into(), embeds);
    });
    let (sum, failures) = root.check();
    assert!(failures.starts_with("embeds: shape ["), "{failures}");
    assert!(sum.ends_with("1 tensors in 1 folders, 1 failed, worst inf"), "{sum}");

    let root = Root::with("umt5");
    root.change_expected(|tensors| {
        let embeds = (&tensors["embeds"] + 0.001).unwrap();
        tensors.insert("embeds".into(), embeds);
    });
    assert!(root.check().1.ends_with("  embeds"), "{:?}", root.check());
}

#[test]
fn a_window_without_room_and_a_panic_are_failures() {
    let root = Root::with("dit_local_attention_sink");
    root.configure("\"local_attn_size\": 9", "\"local_attn_size\": 5");
    assert!(root.check().1.contains("has no room"), "{:?}", root.check());
    let root = Root::with("dit_local_attention_sink");
    root.configure("\"frames_per_block\": 3", "\"frames_per_block\": 0");
    let (sum, failures) = root.check();
    assert!(failures.contains("panicked"), "{failures}");
    assert!(sum.contains("in 1 folders"), "{sum}");
}
