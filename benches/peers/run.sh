#!/usr/bin/env bash
# Our criterion benches beside the same work in PyTorch, on the CPU in f32, as one table.
#
#   benches/peers/run.sh [threads]      default: physical cores
#
# VENV names a Python environment that has the requirements; without it one is made under target/.
set -euo pipefail
cd "$(dirname "$0")/../.."

threads=${1:-$(lscpu --parse=core,socket | grep -v '^#' | sort -u | wc -l)}
target=${CARGO_TARGET_DIR:-target}
venv=${VENV:-$target/peers-venv}

if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement benches/peers/requirements.txt
fi

# One after the other, so that neither takes the other's cores.
RAYON_NUM_THREADS=$threads cargo bench --no-default-features --bench '*' -- \
    '^(linear|attention|conv3d_step|dit_layer|vae_decode)$' >&2
"$venv/bin/python" benches/peers/torch_cpu.py --threads "$threads" |
    python3 benches/peers/table.py "$target/criterion"
