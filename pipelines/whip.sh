#!/bin/sh
# pipelines/whip.sh http[s]://HOST/PATH ["a prompt" [SECONDS]]
# WebRTC to a WHIP server, as MediaMTX, Cloudflare and Twitch have one. TOKEN is the server's bearer token,
# if it wants one; other users of this machine can read it in the list of processes. Type a prompt and press Enter to change the picture. MODEL, SEED, BITRATE and PRESET may
# be set. Needs the element whipclientsink, which Debian 12 does not have.
. "$(dirname "$0")/plugin.sh"

url=${1:?"usage: $0 http[s]://HOST/PATH [PROMPT [SECONDS]]"} prompt=${2:-} seconds=${3:-}
case $url in
http://?* | https://?*) ;;
*) stop "got $url, expected http://HOST/PATH or https://HOST/PATH" ;;
esac
check_seconds "$seconds"
check_encoder
has whipclientsink ||
    stop "no element whipclientsink here: it is in gst-plugin-webrtc of gst-plugins-rs, which Debian 12 lacks"
build
need x264enc gstreamer1.0-plugins-ugly h264parse gstreamer1.0-plugins-bad nicesrc gstreamer1.0-nice
set -- whipclientsink signaller::whip-endpoint="$(quoted "$url")"
if [ -n "${TOKEN:-}" ]; then
    secret="signaller::auth-token=$(quoted "$TOKEN")" shown="signaller::auth-token=TOKEN"
    set -- "$@" "$secret"
fi
# shellcheck disable=SC2086 # a line of words
on_air "$prompt" "$seconds" $AIR_H264 ! "$@"
