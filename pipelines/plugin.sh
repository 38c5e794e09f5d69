# Shared by the scripts beside this one: what they need is installed, the plugin is built and found.
# shellcheck shell=sh

root=$(cd "$(dirname "$0")/.." && pwd)

# stop MESSAGE: the end, with a reason.
stop() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

# need ELEMENT PACKAGE ...: installs the Debian packages of GStreamer elements that are missing.
need() {
    missing=
    while [ $# -gt 0 ]; do
        gst-inspect-1.0 --exists "$1" 2>/dev/null || missing="$missing $2"
        shift 2
    done
    [ -z "$missing" ] && return
    command -v apt-get >/dev/null || stop "please install what these Debian packages hold:$missing"
    echo "installing$missing"
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    # shellcheck disable=SC2086 # one word for each package
    $sudo apt-get -qq update && $sudo apt-get -qq install --yes --no-install-recommends $missing >/dev/null ||
        stop "cannot install$missing"
}

# Builds the plugin where it is not yet, or not of now, and lets GStreamer find it.
build() {
    "$root/ci/setup.sh" || exit 1
    cargo build --release --quiet --lib --manifest-path "$root/Cargo.toml" || stop "the plugin does not build"
    GST_PLUGIN_PATH="${CARGO_TARGET_DIR:-$root/target}/release${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}"
    export GST_PLUGIN_PATH
}

# play PIPELINE...: shows the line, then runs it; Ctrl-C ends the stream and closes files.
play() {
    echo "gst-launch-1.0 -e $*"
    exec gst-launch-1.0 -e "$@"
}

# What an H.264 stream is encoded by, for files and for the air.
FILE_H264="x264enc speed-preset=veryfast key-int-max=32 ! h264parse"

# quoted TEXT: as a property's value in a pipeline.
quoted() {
    printf '"%s"' "$(printf '%s' "$1" | sed 's/[\\"]/\\&/g')"
}
