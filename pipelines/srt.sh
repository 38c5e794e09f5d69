#!/bin/sh
# pipelines/srt.sh [srt://[HOST]:PORT[?OPTIONS]] ["a prompt" [SECONDS]]
# MPEG-TS over SRT. Waits for viewers at port 7001, unless the URI names a HOST to send to.
# Type a prompt and press Enter to change the picture. MODEL, SEED, BITRATE and PRESET may be set.
. "$(dirname "$0")/plugin.sh"

PACKETS=7 # of MPEG-TS in one of SRT

uri=${1:-srt://:7001} prompt=${2:-} seconds=${3:-}
case $uri in
srt://*:*) ;;
*) stop "got $uri, expected srt://:PORT or srt://HOST:PORT" ;;
esac
port=${uri%%\?*} port=${port##*:}
check_port "$port"
check_seconds "$seconds"
check_encoder
case $uri in
*\?*) secret=$(quoted "$uri") shown=$(quoted "${uri%%\?*}?...") ;; # a passphrase, or one in a streamid
esac
case $uri in
*passphrase=*) key="?passphrase=..." ;;
esac
host=${uri#srt://} host=${host%%\?*} host=${host%:*}
build
need x264enc gstreamer1.0-plugins-ugly srtsink gstreamer1.0-plugins-bad mpegtsmux gstreamer1.0-plugins-bad
case $uri in
srt://:* | *mode=listener*)
    echo "listening at port $port of ${host:-all addresses}"
    echo "watch by: gst-launch-1.0 playbin uri=srt://${host:-127.0.0.1}:$port${key:-}" ;;
*)
    echo "sending to ${uri%%\?*}, where somebody must listen already"
    echo "watch by: gst-launch-1.0 playbin uri=srt://:$port${key:-}" ;;
esac
# shellcheck disable=SC2086 # a line of words
on_air "$prompt" "$seconds" $AIR_H264 ! mpegtsmux alignment="$PACKETS" ! \
    srtsink uri="$(quoted "$uri")" wait-for-connection=false
