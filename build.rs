//! The commit and its date, for what gst-inspect-1.0 tells of the plugin.

fn main() {
    gst_plugin_version_helper::info();
}
