#!/bin/sh
# ci/browser.sh
# The example webrtc as somebody with a browser sees it: installs what is missing, builds the example, and
# has Chromium open its page, type prompts and look at the picture. Screenshots go to target/screenshots.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

ci/setup.sh libgstreamer-plugins-bad1.0-dev gstreamer1.0-plugins-good gstreamer1.0-plugins-bad \
    gstreamer1.0-nice chromium fonts-dejavu-core npm
npm ci --prefix tests/browser --no-audit --no-fund --silent
cargo build --release --example webrtc
WEBRTC=$target/release/examples/webrtc SCREENSHOTS=$target/screenshots \
    timeout --kill-after=10 900 node --test tests/browser/page.test.mjs
