#!/bin/sh
# pipelines/rtmp.sh rtmp://HOST/APP/KEY ["a prompt" [SECONDS]]
# Broadcasts to an RTMP server, as Twitch, YouTube and nginx are; with silence, because they want sound.
# Other users of this machine can read the key in the list of processes.
# A server that goes away is tried again until it is back, while the stream goes on.
# Type a prompt and press Enter to change the picture, at a key frame. MODEL and SEED may be set, and for
# the encoder BITRATE, in kbit/s, and PRESET, as x264 calls them.
. "$(dirname "$0")/plugin.sh"

url=${1:?"usage: $0 rtmp://HOST/APP/KEY [PROMPT [SECONDS]]"} prompt=${2:-} seconds=${3:-}
case $url in
rtmp://?*/?*/?* | rtmps://?*/?*/?*) ;;
*) stop "got $url, expected rtmp://HOST/APP/KEY or rtmps://HOST/APP/KEY" ;;
esac
check_seconds "$seconds"
check_encoder
public=$(printf '%s' "${url%/*}/KEY" | sed 's|//[^/]*@|//|') # nor a name and password
secret="location=$(quoted "$url")" shown="location=$(quoted "$public")"
# shellcheck disable=SC2034 # on_air reads it
startup=slate # servers hang up on who connects and sends nothing, while a model is loaded
build
need x264enc gstreamer1.0-plugins-ugly flvmux gstreamer1.0-plugins-good rtmp2sink gstreamer1.0-plugins-bad \
    voaacenc gstreamer1.0-plugins-bad audiotestsrc gstreamer1.0-plugins-base
# shellcheck disable=SC2086 # a line of words
on_air "$prompt" "$seconds" $AIR_H264 ! appsink name=video \
    audiotestsrc wave=silence is-live=true samplesperbuffer=480 ! audio/x-raw,rate=48000,channels=2 ! \
    voaacenc ! appsink name=audio \
    -- appsrc name=video ! mux.video appsrc name=audio ! mux.audio flvmux name=mux streamable=true ! \
    rtmp2sink sync=false "$secret"
