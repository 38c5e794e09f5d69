#!/usr/bin/env bash
# benches/gpu/run.sh [DEVICE [LOG]]
# Everything that has to be measured on a GPU, beside PyTorch, in one go of about eight minutes: kernels
# against the CPU, golden parity in f32 and bf16, the workloads, whole streams. Runs from within the bundle that
# benches/gpu/bundle.sh makes, or beside it; DEVICE is cuda:0, or `cpu` for a trial in small sizes. The log
# (gpu.log) gets everything, stdout the tables.
set -uo pipefail
cd "$(dirname "$0")/../.."
device=${1:-cuda:0}
log=$(realpath -m "${2:-gpu.log}")
python=${PYTHON:-python3}
if [ ! -x gpu ]; then
    rm -rf gpu-bundle
    tar -xJf gpu-bundle.tar.xz && cd gpu-bundle || exit
fi
: >"$log"

say() {
    echo "$*" | tee -a "$log"
}

# limited SECONDS COMMAND...: what goes wrong is in the log, and the rest is still measured.
limited() {
    timeout "$@" 2>>"$log" || say "FAILED with $?: ${*:2}"
}

# CUDA's libraries, where PyTorch has brought its own.
home=$($python -c 'import nvidia, os; print(os.path.join(list(nvidia.__path__)[0], "cu13"))' 2>/dev/null)
[ -n "${CUDA_HOME:-}" ] || [ ! -d "$home/lib" ] || export CUDA_HOME=$home

if [ "$device" = cpu ]; then
    size=small small=--small model=(--size 64x64)
else
    size=whole small='' model=(--model self-forcing-1.3b --random-weights --decoder tiny)
fi
say "$(date -u +%F)  $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no GPU")"

if [ "$device" != cpu ]; then
    say "kernels: $(limited 60 ./cuda --ignored --nocapture | tee -a "$log" | grep 'test result')"
fi
for dtype in f32 bf16; do
    # Without the short cuts that f32 products may take on a GPU.
    say "parity in $dtype: $(NVIDIA_TF32_OVERRIDE=0 PARITY_DEVICE=$device PARITY_DTYPE=$dtype \
        limited 60 ./parity | tee -a "$log" | tail -n 1)"
done
{
    limited 150 ./gpu "$device" $size
    limited 200 "$python" -W ignore benches/gpu/torch_gpu.py --device "${device%%:*}" $small
} | tee -a "$log" | "$python" benches/gpu/table.py | tee -a "$log"
say "whole streams: one worker, and two on the one device"
limited 60 ./blockcascade bench "${model[@]}" --devices "$device" --widths 1,5 --blocks 8 | tee -a "$log"
limited 60 ./blockcascade bench "${model[@]}" --devices "$device,$device" --widths 5 --blocks 8 | tee -a "$log"
