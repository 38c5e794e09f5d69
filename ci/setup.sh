#!/bin/sh
# ci/setup.sh [PACKAGE...]
# Installs what a fresh Debian or Ubuntu lacks to build this crate: GStreamer's headers and tools, a C
# toolchain, Rust; and the packages named, unless there is a program called as they are. Installs only
# what is missing, and says nothing where nothing is.
set -eu

packages_named=$*

RUST=1.92

stop() {
    echo "ci/setup.sh: $1" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null || stop "cannot run '$*': neither root nor sudo"
        sudo "$@"
    fi
}

# A Debian package for everything that a program or a header is missing from.
lacking() {
    { command -v cc && command -v c++; } >/dev/null || echo build-essential
    command -v pkg-config >/dev/null || echo pkg-config
    header gstreamer-1.0 || echo libgstreamer1.0-dev
    header gstreamer-video-1.0 || echo libgstreamer-plugins-base1.0-dev
    command -v gst-inspect-1.0 >/dev/null || echo gstreamer1.0-tools
    plugin || echo gstreamer1.0-plugins-base
    command -v cargo >/dev/null || command -v curl >/dev/null || echo curl ca-certificates
    for package in $packages_named; do
        command -v "$package" >/dev/null || installed "$package" || echo "$package"
    done
}

installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

header() {
    pkg-config --atleast-version=1.22 "$1" 2>/dev/null
}

plugin() {
    gst-inspect-1.0 --exists videotestsrc 2>/dev/null
}

install_packages() {
    command -v apt-get >/dev/null ||
        stop "only Debian and Ubuntu are known here; install what these packages hold: $*"
    echo "ci/setup.sh: installing $*"
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get -qq update
    as_root apt-get -qq install --yes --no-install-recommends "$@" >/dev/null
}

install_rust() {
    echo "ci/setup.sh: installing Rust by rustup"
    installer=$(curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs) || stop "cannot fetch rustup"
    printf '%s\n' "$installer" | sh -s -- -y --quiet --no-modify-path --profile default
    [ -x "$rust/cargo" ] || stop "rustup has installed no Rust in $rust"
}

# Links into /usr/local/bin, because the shell that called this one has its PATH already.
link_rust() {
    for program in cargo rustc rustdoc rustfmt rustup cargo-fmt cargo-clippy clippy-driver; do
        as_root ln -sf "$rust/$program" "/usr/local/bin/$program"
    done
}

check_rust() {
    have=$(rustc --version | cut -d ' ' -f 2)
    oldest=$(printf '%s\n' "$RUST" "$have" | sort -V | head -n 1)
    [ "$oldest" = "$RUST" ] || stop "expected Rust $RUST or later, got $have: try 'rustup update', or https://rustup.rs"
}

cd "$(dirname "$0")/.."
packages=$(lacking)
# shellcheck disable=SC2086 # one word for each package
[ -z "$packages" ] || install_packages $packages
still=$(lacking)
# shellcheck disable=SC2116,SC2086 # in one line
[ -z "$still" ] || stop "installed, but still lacking: $(echo $still); GStreamer 1.22 is needed"
rust=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
if ! command -v cargo >/dev/null; then
    [ -x "$rust/cargo" ] || install_rust
    link_rust
fi
check_rust
