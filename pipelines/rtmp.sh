#!/bin/sh
# pipelines/rtmp.sh rtmp://HOST/APP/KEY ["a prompt" [SECONDS]]
# Broadcasts to an RTMP server, as Twitch, YouTube and nginx are; with silence, because they want sound.
# Type a prompt and press Enter to change the picture. MODEL and SEED may be set.
. "$(dirname "$0")/plugin.sh"

SOUND_RATE=48000 SOUND_BUFFERS=100 # a second

url=${1:?"usage: $0 rtmp://HOST/APP/KEY [PROMPT [SECONDS]]"} prompt=${2:-} seconds=${3:-}
case $url in
rtmp://?*/?*/?* | rtmps://?*/?*/?*) ;;
*) stop "got $url, expected rtmp://HOST/APP/KEY or rtmps://HOST/APP/KEY" ;;
esac
check_seconds "$seconds"
secret=$url
build
need x264enc gstreamer1.0-plugins-ugly flvmux gstreamer1.0-plugins-good rtmp2sink gstreamer1.0-plugins-bad \
    voaacenc gstreamer1.0-plugins-bad audiotestsrc gstreamer1.0-plugins-base
silence="audiotestsrc wave=silence is-live=true samplesperbuffer=$((SOUND_RATE / SOUND_BUFFERS))"
# Sound that does not end keeps a stream of so many seconds open.
[ -z "$seconds" ] || silence="$silence num-buffers=$((SOUND_BUFFERS * seconds))"
# shellcheck disable=SC2086 # a line of words
on_air "$prompt" "$seconds" flvmux name=mux streamable=true ! rtmp2sink location="$(quoted "$url")" \
    $silence ! audio/x-raw,rate=$SOUND_RATE,channels=2 ! voaacenc ! mux.
