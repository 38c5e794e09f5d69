//! Settings under a name, saved in one process and loaded in another.
//!
//! GStreamer 1.22 escapes strings twice when it saves presets, of any element: text with a space comes back
//! with a backslash before it.

use std::process::Command;

use gstreamer as gst;
use gstreamer::prelude::*;

use super::element;

const NAME: &str = "night show";

/// Runs one of the tests below in a process of its own, whose presets are in a folder.
fn run(test: &str, folder: &tempfile::TempDir) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--ignored", test]).env("XDG_DATA_HOME", folder.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "there is {test}");
}

#[test]
fn presets_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    run("presets::saves_a_preset", &folder);
    run("presets::loads_a_preset", &folder);
}

#[test]
#[ignore = "a part of presets_are_kept, in its folder"]
fn saves_a_preset() {
    let source = element(
        "prompt=ball cascade-width=3 decoder=tiny denoising-steps=<1000,500> seed=7
         is-live=true keep-loaded=5000 transition-method=slerp",
    );
    let preset = source.dynamic_cast_ref::<gst::Preset>().unwrap();
    preset.save_preset(NAME).unwrap();
}

#[test]
#[ignore = "a part of presets_are_kept, in its folder"]
fn loads_a_preset() {
    let source = element("");
    let preset = source.dynamic_cast_ref::<gst::Preset>().unwrap();
    assert_eq!(preset.preset_names(), [NAME]);
    preset.load_preset(NAME).unwrap();
    assert_eq!(source.property::<String>("prompt"), "ball");
    assert_eq!(source.property::<u32>("cascade-width"), 3);
    assert_eq!(source.property::<i64>("seed"), 7);
    assert!(source.property::<bool>("is-live"));
    assert_eq!(source.property::<u32>("keep-loaded"), 5000);
    for (name, nick) in [("decoder", "tiny"), ("transition-method", "slerp")] {
        let value = source.property_value(name);
        assert_eq!(gst::glib::EnumValue::from_value(&value).unwrap().1.nick(), nick);
    }
    let steps = source.property::<gst::Array>("denoising-steps");
    let steps: Vec<_> = steps.iter().map(|step| step.get::<i32>().unwrap()).collect();
    assert_eq!(steps, [1000, 500]);
}
