#!/bin/sh
# ci/obs.sh
# OBS Studio shows what srt.sh and rtmp.sh send, on a display that nobody sees. Screenshots are left in
# target/screenshots. On a bare Debian 12, OBS and what it needs are 180 MB to fetch, and 640 MB on disk.
. "$(dirname "$0")/../pipelines/plugin.sh"

missing=
command -v obs >/dev/null || missing="obs-studio"
[ -n "$(find /usr/lib -name obs-ffmpeg.so -print -quit)" ] || missing="$missing obs-plugins"
command -v Xvfb >/dev/null || missing="$missing xvfb"
# shellcheck disable=SC2086 # one word for each package
[ -z "$missing" ] || install_packages $missing
need ximagesrc gstreamer1.0-plugins-good
cd "$root" || exit
cargo test --release --test pipelines -- --ignored --nocapture --test-threads=1 obs::
