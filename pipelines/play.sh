#!/bin/sh
# pipelines/play.sh "a prompt" [SECONDS]
# Shows the prompt in a window; without a display, writes an .mp4, of 10 seconds unless told otherwise, and prints
# its path.
# MODEL names another model than the embedded one, SEED makes the same frames again, OUT names the file.
. "$(dirname "$0")/plugin.sh"

prompt=${1:?"usage: $0 PROMPT [SECONDS]"} seconds=${2:-}
check_seconds "$seconds"
build
set -- blockcascadesrc model="${MODEL:-pocket}" seed="${SEED:--1}" prompt="$(quoted "$prompt")"
if [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
    need autovideosink gstreamer1.0-plugins-good ximagesink gstreamer1.0-x
    play "$@" is-live=true num-buffers="$(frames "$seconds")" ! videoconvert ! autovideosink
fi
need x264enc gstreamer1.0-plugins-ugly mp4mux gstreamer1.0-plugins-good h264parse gstreamer1.0-plugins-bad
file=${OUT:-$(mktemp -d)/play.mp4}
echo "no display: writing $file"
# shellcheck disable=SC2086 # a line of words
play "$@" num-buffers="$(frames "${seconds:-10}")" ! $FILE_H264 ! mp4mux ! filesink location="$(quoted "$file")"
