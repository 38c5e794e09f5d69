//! The commit and its date, for what gst-inspect-1.0 tells of the plugin.

fn main() {
    // Otherwise any file that changes, documentation too, has the library built again.
    for path in ["build.rs", ".git/HEAD", ".git/refs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    gst_plugin_version_helper::info();
}
