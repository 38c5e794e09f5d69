#!/bin/sh
# pipelines/hls.sh FOLDER ["a prompt" [SECONDS]]
# Writes a live playlist and its segments of two seconds, for any web server; the last ten are kept.
# Type a prompt and press Enter to change the picture. MODEL, SEED, BITRATE and PRESET may be set.
. "$(dirname "$0")/plugin.sh"

folder=${1:?"usage: $0 FOLDER [PROMPT [SECONDS]]"} prompt=${2:-} seconds=${3:-}
check_seconds "$seconds"
check_encoder
mkdir -p "$folder" 2>/dev/null
if [ ! -d "$folder" ] || [ ! -w "$folder" ]; then
    stop "got $folder, expected a folder that can be written"
fi
build
need x264enc gstreamer1.0-plugins-ugly hlssink2 gstreamer1.0-plugins-bad mpegtsmux gstreamer1.0-plugins-bad \
    splitmuxsink gstreamer1.0-plugins-good
echo "serve by: python3 -m http.server 8000 --directory $(quoted "$folder")"
echo "watch by: gst-launch-1.0 playbin uri=http://localhost:8000/live.m3u8"
# The segments' name is a format: a % of the folder's own is doubled.
segments=$(printf '%s' "$folder" | sed 's/%/%%/g')/%05d.ts
# shellcheck disable=SC2086 # a line of words
on_air "$prompt" "$seconds" $AIR_H264 ! hlssink2 target-duration=2 location="$(quoted "$segments")" \
    playlist-location="$(quoted "$folder/live.m3u8")"
