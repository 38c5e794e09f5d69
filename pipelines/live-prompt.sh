#!/bin/sh
# pipelines/live-prompt.sh ["a first prompt"]
# Type a prompt and press Enter while it plays; Ctrl-D ends typing, Ctrl-C the stream.
# SINK replaces the window, for example SINK="fakesink sync=true". MODEL and SEED may be set.
. "$(dirname "$0")/plugin.sh"

build
[ -n "${SINK:-}" ] || need autovideosink gstreamer1.0-plugins-good ximagesink gstreamer1.0-x
listen
echo "type prompts, one a line"
# shellcheck disable=SC2086 # a line of words
play blockcascadesrc name=src is-live=true underrun-policy=repeat model="${MODEL:-pocket}" \
    seed="${SEED:--1}" \
    prompt="$(quoted "${1:-}")" ! queue ! videoconvert ! ${SINK:-autovideosink} \
    fdsrc ! text/x-raw,format=utf8 ! src.prompt
