#!/bin/sh
# pipelines/v4l2.sh /dev/videoN ["a prompt" [SECONDS]]
# Raw pictures into a virtual camera, for OBS, browsers and meetings. Needs the kernel module v4l2loopback
# (Debian: v4l2loopback-dkms). Type a prompt and press Enter to change the picture. MODEL and SEED may be set.
. "$(dirname "$0")/plugin.sh"

device=${1:?"usage: $0 /dev/videoN [PROMPT [SECONDS]]"} prompt=${2:-} seconds=${3:-}
# Cameras have a place on some bus; those of the module have none.
if [ ! -c "$device" ] || [ ! -e "/sys/devices/virtual/video4linux/${device##*/}" ]; then
    stop "got $device, expected a device of v4l2loopback: modprobe v4l2loopback exclusive_caps=1"
fi
check_seconds "$seconds"
build
need v4l2sink gstreamer1.0-plugins-good videoconvert gstreamer1.0-plugins-base
on_air "$prompt" "$seconds" videoconvert ! video/x-raw,format=YUY2 ! v4l2sink device="$(quoted "$device")"
