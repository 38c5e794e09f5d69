#!/bin/sh
# pipelines/record.sh "a prompt" FILE.mp4|FILE.mkv|FILE.webm [SECONDS]
# Records a file, 10 seconds unless told otherwise, as fast as the model goes. MODEL names another model than the
# embedded one, SEED makes the same frames again.
. "$(dirname "$0")/plugin.sh"

usage="usage: $0 PROMPT FILE.mp4|FILE.mkv|FILE.webm [SECONDS]"
prompt=${1:?"$usage"} file=${2:?"$usage"} seconds=${3:-10}
case $file in
*.mp4) tail="$FILE_H264 ! mp4mux" ;;
*.mkv) tail="$FILE_H264 ! matroskamux" ;;
*.webm) tail="vp8enc deadline=1 cpu-used=4 ! webmmux" ;;
*) stop "got $file, expected a name that ends in .mp4, .mkv or .webm" ;;
esac
check_seconds "$seconds"
build
need vp8enc gstreamer1.0-plugins-good x264enc gstreamer1.0-plugins-ugly h264parse gstreamer1.0-plugins-bad
# shellcheck disable=SC2086 # a line of words
play blockcascadesrc model="${MODEL:-pocket}" seed="${SEED:--1}" num-buffers="$(frames "$seconds")" \
    prompt="$(quoted "$prompt")" ! $tail ! filesink location="$(quoted "$file")"
