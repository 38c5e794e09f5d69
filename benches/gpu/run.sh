#!/usr/bin/env bash
# benches/gpu/run.sh [DEVICE [LOG]]
# Everything that has to be measured on a GPU, beside PyTorch, in one go of about eight minutes: kernels
# against the CPU, golden parity in f32 and bf16, the workloads, whole streams. Runs from within the bundle that
# benches/gpu/bundle.sh makes, or beside it; DEVICE is cuda:0, or `cpu` for a trial in small sizes. The log
# (gpu.log) gets everything, stdout the tables. PyTorch comes last: without it the rest is measured all the same.
set -uo pipefail
cd "$(dirname "$0")/../.."
device=${1:-cuda:0}
log=$(realpath -m "${2:-gpu.log}")
python=${PYTHON:-python3}
if [ ! -x gpu ]; then
    rm -rf gpu-bundle
    # Not every machine has xz.
    tar -xJf gpu-bundle.tar.xz 2>/dev/null || "$python" -m tarfile -e gpu-bundle.tar.xz || exit
    cd gpu-bundle || exit
fi
: >"$log"
figures=$(mktemp)
trap 'rm -f "$figures"' EXIT

say() {
    echo "$*" | tee -a "$log"
}

# limited SECONDS COMMAND...: what goes wrong is in the log, and the rest is still measured. All of it ends with the
# time that there is for it, of which PyTorch, the last one, gets what is left.
limited() {
    local left=$((470 - SECONDS)) seconds=$1
    shift
    if [ "$left" -lt 5 ]; then
        echo "NO TIME LEFT: $*" | tee -a "$log" >&2
        return
    fi
    timeout -k 5 $((seconds < left ? seconds : left)) "$@" 2>>"$log" || echo "FAILED with $?: $*" | tee -a "$log" >&2
}

# CUDA's libraries, where PyTorch has brought its own: looked for behind those of CUDA_HOME.
home=$("$python" -c 'import nvidia, os
homes = (os.path.join(path, "cu13") for path in nvidia.__path__)
print(next(home for home in homes if os.path.exists(os.path.join(home, "lib", "libcublas.so.13"))))' 2>/dev/null)
[ -z "$home" ] || export CUDA_ROOT=$home

if [ "$device" = cpu ]; then
    size=small small=--small model=(--size 64x64)
else
    size=whole small='' model=(--model longlive-1.3b --random-weights --decoder tiny)
fi
say "$(date -u +%F)  $(nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader \
    2>/dev/null || echo "no GPU")"
say "commit $(cat commit), $("$python" -c 'import torch
print("PyTorch", torch.__version__, "cuDNN", torch.backends.cudnn.version())' 2>/dev/null || echo "no PyTorch")"

# One small thing first: whether the device can be used at all.
if ! timeout -k 5 60 ./gpu "$device" small taehv >>"$log" 2>&1; then
    say "$device cannot be used: $(tail -n 1 "$log")"
    exit 1
fi
if [ "$device" != cpu ]; then
    # One test after the other: two threads that need the same kernels at first would both load them.
    say "kernels: $(limited 60 ./cuda --ignored --nocapture --test-threads=1 | tee -a "$log" | grep 'test result')"
fi
for dtype in f32 bf16; do
    # Without the short cuts that f32 products may take on a GPU.
    say "in $dtype: $(NVIDIA_TF32_OVERRIDE=0 PARITY_DEVICE=$device PARITY_DTYPE=$dtype \
        limited 90 ./parity | tee -a "$log" | grep '^parity')"
done
say "ours:"
limited 100 ./gpu "$device" "$size" | tee -a "$log" "$figures" | "$python" benches/gpu/table.py
say "whole streams: one worker, five blocks in flight on it, and spread over two workers on the one device"
for way in "$device 1" "$device 5" "$device,$device 5"; do
    limited 75 ./blockcascade bench "${model[@]}" --devices "${way% *}" --widths "${way#* }" | tee -a "$log"
done
limited 470 "$python" -W ignore benches/gpu/torch_gpu.py --device "$device" $small | tee -a "$log" >>"$figures"
say "beside PyTorch:"
"$python" benches/gpu/table.py <"$figures" | tee -a "$log"
