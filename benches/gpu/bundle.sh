#!/usr/bin/env bash
# benches/gpu/bundle.sh
# Builds what benches/gpu/run.sh needs on a machine that has a GPU and PyTorch, and neither Rust nor
# GStreamer: gpu-bundle.tar.xz, which has the scripts beside this one in it, too.
set -euo pipefail
cd "$(dirname "$0")/../.."
bundle=gpu-bundle

# program NAME ARGUMENTS...: where cargo puts what it builds so.
program() {
    name=$1
    shift
    CARGO_TERM_COLOR=never ci/cuda-build.sh "$@" --no-default-features --features cli,cuda --message-format=json |
        python3 -c 'import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["target"]["name"] == sys.argv[1]:
        print(built["executable"])' "$name"
}

rm -rf "$bundle"
mkdir -p "$bundle/tests" "$bundle/benches"
strip -o "$bundle/blockcascade" "$(program blockcascade build --release --bin blockcascade)"
strip -o "$bundle/gpu" "$(program gpu bench --no-run --bench gpu)"
strip -o "$bundle/cuda" "$(program cuda test --release --no-run --test cuda)"
strip -o "$bundle/parity" "$(program parity test --release --no-run --test parity)"
git describe --always --dirty >"$bundle/commit"
cp -r tests/fixtures "$bundle/tests"
cp -r benches/gpu benches/peers "$bundle/benches"
tar -cJf "$bundle.tar.xz" "$bundle"
rm -r "$bundle"
du -h "$bundle.tar.xz"
