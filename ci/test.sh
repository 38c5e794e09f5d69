#!/bin/sh
# Everything that must hold before a change is merged, quick checks first. Stops at the first failure.
# Optimised builds only, so that dependencies are compiled once; what asks for the same features stands together,
# for the library of other ones takes its place. CI_DENY=1 adds cargo-deny, CI_OBS=1 OBS Studio.
set -eu
cd "$(dirname "$0")/.."

export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-always}" RUST_BACKTRACE=1 G_DEBUG=fatal_warnings
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
begun=$(date +%s)

# step NAME COMMAND...: a heading, the command, and how long it took.
step() {
    name=$1 start=$(date +%s)
    shift
    printf '\n== %s\n' "$name"
    if ! "$@"; then
        printf 'FAILED: %s\n' "$name" >&2
        exit 1
    fi
    printf -- '-- %s s\n' $(($(date +%s) - start))
}

rust_components() {
    for component in clippy rustfmt; do
        cargo "${component#rust}" --version >/dev/null 2>&1 || rustup --quiet component add "$component" || return 1
    done
}

lint() {
    cargo clippy --release --all-targets "$@" -- -D warnings
}

document() {
    RUSTDOCFLAGS="-D warnings -D rustdoc::all" cargo doc --release --no-deps --lib "$@"
}

# The plugin loads, and GStreamer has refused nothing of ours.
load_plugin() {
    export GST_PLUGIN_PATH="${CARGO_TARGET_DIR:-target}/release" GST_REGISTRY="$scratch/registry.bin"
    cargo build --release --lib &&
        gst-inspect-1.0 blockcascade &&
        ! gst-inspect-1.0 --print-blacklist | grep -i blockcascade &&
        look_at_element
}

# What users read of the element, as GStreamer 1.22 prints it. When it is meant to change:
# gst-inspect-1.0 blockcascadesrc | sed '/^Plugin Details/,/^$/d' > tests/gst-inspect.txt
look_at_element() {
    case $(gst-inspect-1.0 --version) in
    *' 1.22.'*) gst-inspect-1.0 blockcascadesrc | sed '/^Plugin Details/,/^$/d' |
        diff tests/gst-inspect.txt - ;;
    *) echo "skipped: the text of the element is compared with GStreamer 1.22 only" ;;
    esac
}

# run_element: some frames through the plugin, under a prompt from the text pad.
run_element() {
    echo "a star" | "$@" gst-launch-1.0 --quiet blockcascadesrc name=src num-buffers=6 ! \
        video/x-raw,width=32,height=32 ! fakesink fdsrc ! text/x-raw,format=utf8 ! src.prompt
}

# No object of GStreamer's outlives the pipeline, and no memory is lost or read too early.
look_for_leaks() {
    run_element env GST_TRACERS=leaks GST_DEBUG=GST_TRACER:7 >"$scratch/leaks" 2>&1 &&
        grep -q 'object-alive\.class' "$scratch/leaks" &&
        ! grep 'object-alive, type-name=(string)[^%]' "$scratch/leaks" &&
        RUST_BACKTRACE=0 run_element valgrind --quiet --suppressions=tests/valgrind.supp \
            --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \
            --error-exitcode=1
}

# run_examples alone|gstreamer: those that can do without GStreamer, without it; or the others.
run_examples() {
    for example in examples/*.rs; do
        needs=alone features=--no-default-features
        ! grep -q '^use gstreamer' "$example" || needs=gstreamer features=
        # shellcheck disable=SC2086 # one word or none
        [ $needs != "$1" ] || cargo run --release $features --example "$(basename "$example" .rs)" || return 1
    done
}

# As it stands in the README, on a machine without a display.
first_command() {
    command=$(sed -n '/^## Two commands/,$p' README.md | sed -n '/^```sh/{n;p;q}')
    echo "$command"
    env -u DISPLAY -u WAYLAND_DISPLAY OUT="$scratch/play.mp4" sh -c "$command" &&
        test -s "$scratch/play.mp4"
}

# What is compiled for several instruction sets, on an emulated processor that has the first of them only,
# and on one without AVX-512.
older_processors() {
    tests=$(CARGO_TERM_COLOR=never cargo test --release --features hub --no-run --lib 2>&1 |
        sed -n 's/.*Executable unittests.*(\(.*\))$/\1/p')
    emulate qemu64 "$tests" &
    emulate Haswell "$tests" && wait $!
}

# emulate PROCESSOR TESTS: of random sizes a few will do, for they are the same on all.
emulate() {
    PROPTEST_CASES=8 qemu-x86_64 -cpu "$1" "$2" layers:: >"$scratch/$1" && grep -H '[1-9][0-9]* passed' "$scratch/$1" && return
    cat "$scratch/$1"
    return 1
}

# take_dependencies FOLDER: what is compiled there need not be again; what is ours is another with each set of
# features. Compilers put new files in the place of old ones, which may be shared; cargo writes into its own.
take_dependencies() {
    [ ! -d "$CARGO_TARGET_DIR/release" ] && [ -d "$1/release/deps" ] || return 0
    mkdir -p "$CARGO_TARGET_DIR/release" &&
        cp -al "$1/release/deps" "$CARGO_TARGET_DIR/release/" &&
        cp -a "$1/release/.fingerprint" "$1/release/build" "$CARGO_TARGET_DIR/release/" &&
        find "$CARGO_TARGET_DIR/release" -name '*blockcascade*' -prune -exec rm -rf {} +
}

# The plugin with CUDA is bound to none of its libraries and loads here; what has to be said of a GPU that
# cannot be used is said. Kernels are only compiled, in a folder of their own: that they are fast takes minutes more.
build_with_cuda() (
    built=${CARGO_TARGET_DIR:-target}
    export NVCC_APPEND_FLAGS="-Xcicc -O0 -Xptxas -O0" CARGO_TARGET_DIR="$built/unoptimised"
    CUDAFORGE_THREADS=$(nproc) # candle's kernels take half of the processors by themselves
    export CUDAFORGE_THREADS
    plugin=$CARGO_TARGET_DIR/release/libgstblockcascade.so
    take_dependencies "$built" &&
        ci/cuda-build.sh clippy --release --features cuda --lib --test cuda -- -D warnings &&
        for kernel in src/device/kernels/*.cu; do
            case $kernel in
            *_90.cu) processors=sm_90a ;; # for warpgroups
            *) processors="sm_80 sm_90" ;;
            esac
            for processor in $processors; do
                ci/cuda-build.sh nvcc -std=c++17 -arch $processor --cubin -o "$scratch/kernel" "$kernel" || return 1
            done
        done &&
        ci/cuda-build.sh test --release --features cuda --test cuda &&
        ci/cuda-build.sh build --release --features cuda --lib &&
        readelf --dynamic "$plugin" | grep NEEDED &&
        ! readelf --dynamic "$plugin" | grep 'NEEDED.*lib\(cu\|nv\)' &&
        GST_PLUGIN_PATH=$(dirname "$plugin") GST_REGISTRY="$scratch/cuda.bin" run_element env
)

# Who says whether pocket shows what it is told to: right about clips that are drawn, and not easily pleased.
judge() {
    python3 -c 'import ensurepip' 2>/dev/null || ci/setup.sh python3-venv
    venv=${CARGO_TARGET_DIR:-target}/judge packages=$(grep -E '^(numpy|pillow|scipy)==' models/pocket/train/requirements.txt)
    # shellcheck disable=SC2086 # one word for each package
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check $packages &&
        PYTHONPATH=models/pocket "$venv/bin/python" -m eval.validate --count 10 &&
        PYTHONPATH=models/pocket "$venv/bin/python" -m unittest eval.test_latency train.test_curves train.test_world
}

# Advisories need the network, and may break a build that was good yesterday: on request only.
deny() {
    if [ "${CI_DENY:-}" = 1 ]; then
        cargo deny --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-deny
        cargo deny --all-features check
    elif cargo deny --version >/dev/null 2>&1; then
        cargo deny --all-features --offline check bans licenses sources
    else
        echo "skipped: no cargo-deny here; CI_DENY=1 installs it"
    fi
}

# OBS Studio brings 180 MB of packages: on request only.
obs() {
    if [ "${CI_OBS:-}" = 1 ]; then
        ci/obs.sh
    else
        echo "skipped: CI_OBS=1 installs OBS Studio and shows it the stream"
    fi
}

step "what the machine lacks" ci/setup.sh valgrind qemu-user libgstreamer-plugins-bad1.0-dev
step "what Rust lacks" rust_components
step "format" cargo fmt --check
step "who may name whom" ci/arrows.sh
step "lints, generator only" lint --no-default-features
step "lints, default features" lint
step "lints, with hub" lint --features hub
step "hub alone" cargo check --release --no-default-features --features hub
step "tool alone" cargo check --release --no-default-features --features cli
step "documentation" document
# All its tests are compiled by the lint, and run with other features.
step "tests, generator only" cargo test --release --no-default-features --test generator
step "examples, generator only" run_examples alone
step "tests, all that builds without CUDA" cargo test --release --features hub
step "parity in bf16" env PARITY_DTYPE=bf16 cargo test --release --features hub --test parity
step "kernels on older processors" older_processors
step "the judge of pocket" judge
step "examples, with GStreamer" run_examples gstreamer
step "instructions of each kernel" ci/instructions.sh
step "the page in a browser" ci/browser.sh
step "with CUDA, where there is none" build_with_cuda
step "the README's first command" first_command
step "the plugin loads" load_plugin
step "the plugin leaks nothing" look_for_leaks
step "OBS shows the stream" obs
step "licences and advisories of dependencies" deny
printf '\nall passed in %s s\n' $(($(date +%s) - begun))
