# Shared by the scripts beside this one: what they need is installed, the plugin is built and found.
# shellcheck shell=sh

root=$(cd "$(dirname "$0")/.." && pwd)

# stop MESSAGE: the end, with a reason.
stop() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

# need ELEMENT PACKAGE ...: installs the Debian packages of GStreamer elements that are missing.
need() {
    missing=
    while [ $# -gt 0 ]; do
        has "$1" || missing="$missing $2"
        shift 2
    done
    # shellcheck disable=SC2086 # one word for each package
    [ -z "$missing" ] || install_packages $missing
}

# has ELEMENT: whether it is here, of whatever version (`--exists` asks for one of GStreamer's own).
has() {
    gst-inspect-1.0 "$1" >/dev/null 2>&1
}

install_packages() {
    command -v apt-get >/dev/null || stop "please install what these Debian packages hold: $*"
    echo "installing $*"
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    if ! $sudo apt-get -qq update ||
        ! $sudo apt-get -qq install --yes --no-install-recommends "$@" >/dev/null; then
        stop "cannot install $*"
    fi
}

# Builds the plugin where it is not yet, or not of now, and lets GStreamer find it.
build() {
    "$root/ci/setup.sh" || exit 1
    cargo build --release --quiet --lib --bin blockcascade-relay --manifest-path "$root/Cargo.toml" ||
        stop "the plugin does not build"
    built=${CARGO_TARGET_DIR:-$root/target}/release
    GST_PLUGIN_PATH="$built${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}"
    export GST_PLUGIN_PATH
}

# play PIPELINE...: shows the line, then runs it; Ctrl-C ends the stream and closes files.
play() {
    show "gst-launch-1.0 -e" "$@"
    exec gst-launch-1.0 -e "$@"
}

# show WORD...: as a line, with `shown` in place of what is `secret`.
# shellcheck disable=SC2154 # both are set by the scripts beside
show() {
    line=$*
    [ -z "${secret:-}" ] || line="${line%%"$secret"*}$shown${line#*"$secret"}"
    echo "$line"
}

# on_air PROMPT SECONDS PIPELINE...: live pictures into the pipeline; what is typed while it runs is the
# next prompt. Without SECONDS it goes on until Ctrl-C. What is behind a `--` is started again when it
# fails, as blockcascade-relay does it.
on_air() {
    prompt=$(quoted "$1") buffers=$(frames "${2:-}")
    shift 2
    listen
    echo "type prompts, one a line; Ctrl-C ends the stream"
    set -- fdsrc ! text/x-raw,format=utf8 ! src.prompt \
        blockcascadesrc name=src is-live=true startup-policy="${startup:-wait}" underrun-policy=repeat \
        model="${MODEL:-pocket}" seed="${SEED:--1}" num-buffers="$buffers" \
        prompt="$prompt" ! queue ! "$@"
    for word; do
        if [ "$word" = -- ]; then
            show blockcascade-relay "$@"
            exec "$built/blockcascade-relay" "$@"
        fi
    done
    play "$@"
}

# listen: what nohup leaves where prompts would be typed cannot be read, which would be an error and not silence.
listen() {
    case $(readlink /proc/self/fd/0) in
    /dev/null) exec </dev/null ;;
    esac
}

# What an H.264 stream is encoded by, for files and for the air: there without delay, and whoever
# comes late has a picture within two seconds. BITRATE and PRESET are of the air.
# shellcheck disable=SC2034 # both are for the scripts beside
FILE_H264="x264enc speed-preset=veryfast key-int-max=32 ! h264parse"
# shellcheck disable=SC2034
AIR_H264="x264enc tune=zerolatency speed-preset=${PRESET:-veryfast} key-int-max=32 \
bitrate=${BITRATE:-2500} ! h264parse config-interval=-1"

# Whether BITRATE and PRESET are what the encoder knows.
check_encoder() {
    case ${BITRATE:-2500} in
    *[!0-9]* | 0* | ???????*) stop "got BITRATE=$BITRATE, expected kbit/s, a whole number from 1 to 999999" ;;
    esac
    case ${PRESET:-veryfast} in
    ultrafast | superfast | veryfast | faster | fast | medium | slow | slower | veryslow) ;;
    *) stop "got PRESET=$PRESET, expected one of x264's, from ultrafast to veryslow" ;;
    esac
}

# check_seconds SECONDS: a whole number from 1, or nothing.
check_seconds() {
    case $1 in
    *[!0-9]* | 0*) stop "got $1 seconds, expected a whole number from 1" ;;
    esac
}

# check_port PORT: a number that UDP knows.
check_port() {
    case $1 in
    '' | *[!0-9]* | 0* | ??????*) ;;
    *) [ "$1" -gt 65535 ] || return 0 ;;
    esac
    stop "got port $1, expected a number from 1 to 65535"
}

# frames SECONDS: how many buffers that is at the 16 a second of Wan's models; nothing is no end.
frames() {
    [ -n "$1" ] && echo $((16 * $1)) || echo -1
}

# quoted TEXT: as a property's value in a pipeline; a last backslash cannot be, and is left out.
quoted() {
    printf '"%s"' "$(printf '%s' "$1" | sed 's/\\*$//; s/[\\"]/\\&/g')"
}
