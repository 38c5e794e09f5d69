#!/bin/sh
# pipelines/story.sh STORY.srt FILE.mp4 [SECONDS]
# A subtitle file, as story.srt beside this one, drives the prompts, for 20 seconds unless told otherwise: each is
# applied at the first block that starts at its time or later, the same on every run. MODEL and SEED may be set.
. "$(dirname "$0")/plugin.sh"

usage="usage: $0 STORY.srt FILE.mp4 [SECONDS]"
story=${1:?"$usage"} file=${2:?"$usage"} seconds=${3:-20}
[ -r "$story" ] || stop "cannot read $story"
check_seconds "$seconds"
build
need subparse gstreamer1.0-plugins-base x264enc gstreamer1.0-plugins-ugly \
    mp4mux gstreamer1.0-plugins-good h264parse gstreamer1.0-plugins-bad
# shellcheck disable=SC2086 # a line of words
play blockcascadesrc name=src model="${MODEL:-pocket}" seed="${SEED:-0}" num-buffers="$(frames "$seconds")" ! \
    $FILE_H264 ! mp4mux ! filesink location="$(quoted "$file")" \
    filesrc location="$(quoted "$story")" ! subparse ! queue ! src.prompt
