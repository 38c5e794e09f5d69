#!/usr/bin/env bash
# Our workloads beside the same work in PyTorch and diffusers, on the CPU in f32 and bf16, as one table.
#
#   benches/peers/run.sh [threads [workload...]]      default: physical cores, all workloads
#
# Of each workload ours runs first, then its peers, each in a process of its own. VENV names a Python
# environment that has the requirements; without it one is made under target/.
set -euo pipefail
cd "$(dirname "$0")/../.."

threads=${1:-$(lscpu --parse=core,socket | grep -v '^#' | sort -u | wc -l)}
shift || true
workloads=${*:-linear linear_bf16 attention attention_bf16 conv3d_step dit_first dit_first_bf16 dit_steady
    dit_steady_bf16 vae_decode taehv_decode}
venv=${VENV:-${CARGO_TARGET_DIR:-target}/peers-venv}
runs=20

if [ -z "${VENV:-}" ]; then
    python3 -c 'import ensurepip' 2>/dev/null || ci/setup.sh python3-venv
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement benches/peers/requirements.txt
fi

once=$(CARGO_TERM_COLOR=never cargo bench --no-run --bench once 2>&1 | tee /dev/stderr | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
for workload in $workloads; do
    RAYON_NUM_THREADS=$threads "$once" "$workload" $runs
    "$venv/bin/python" benches/peers/torch_cpu.py --threads "$threads" "$workload"
done | python3 benches/peers/table.py
