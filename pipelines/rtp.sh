#!/bin/sh
# pipelines/rtp.sh HOST PORT ["a prompt" [SECONDS]]
# H.264 over RTP and UDP to a host or a multicast group; prints how to receive it.
# Type a prompt and press Enter to change the picture. MODEL, SEED, BITRATE and PRESET may be set.
. "$(dirname "$0")/plugin.sh"

usage="usage: $0 HOST PORT [PROMPT [SECONDS]]"
host=${1:?"$usage"} port=${2:?"$usage"} prompt=${3:-} seconds=${4:-}
check_port "$port"
getent ahosts "$host" >/dev/null || stop "got $host, expected a host that can be found"
check_seconds "$seconds"
check_encoder
build
need x264enc gstreamer1.0-plugins-ugly rtph264pay gstreamer1.0-plugins-good h264parse gstreamer1.0-plugins-bad
echo "watch by: gst-launch-1.0 udpsrc address=$host port=$port caps=application/x-rtp,media=video,clock-rate=90000,encoding-name=H264 ! rtpjitterbuffer ! rtph264depay ! decodebin ! videoconvert ! autovideosink"
case $host in
*:*) family=IP6 group=$host ;;
22[4-9].* | 23[0-9].*) family=IP4 group=$host/1 ;; # a group's time to live, udpsink's own
*) family=IP4 group=$host ;;
esac
echo "or save this as blockcascade.sdp, for players such as mpv and VLC:"
cat <<SDP
v=0
o=- 0 0 IN $family $host
s=blockcascade
c=IN $family $group
t=0 0
m=video $port RTP/AVP 96
a=rtpmap:96 H264/90000
SDP
# shellcheck disable=SC2086 # a line of words
on_air "$prompt" "$seconds" $AIR_H264 ! rtph264pay pt=96 aggregate-mode=zero-latency ! \
    udpsink host="$(quoted "$host")" port="$port"
