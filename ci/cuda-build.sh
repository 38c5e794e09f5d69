#!/bin/sh
# ci/cuda-build.sh [COMMAND...]
# Runs a command of cargo's, `build --release --features cuda` where none is given, or nvcc, on a machine that
# has neither a GPU nor CUDA. nvcc comes from PyPI, into the target folder, once; CUDA's libraries are looked for
# when the program runs (src/device/cuda/delayed.rs), so that empty ones will do to link with.
# CUDA_COMPUTE_CAP is the oldest GPU that is built for: 80.
set -eu
cd "$(dirname "$0")/.."

CUDA=13.0
CURAND=10.4
root=$(realpath -m "${CARGO_TARGET_DIR:-target}")/cuda

install_nvcc() {
    python3 -m venv "$root/venv"
    "$root/venv/bin/pip" install --quiet --disable-pip-version-check "nvidia-curand==$CURAND.*" \
        "nvidia-cuda-nvcc==$CUDA.*" "nvidia-nvvm==$CUDA.*" "nvidia-cuda-crt==$CUDA.*" \
        "nvidia-cuda-runtime==$CUDA.*" "nvidia-cuda-cccl==$CUDA.*"
}

# stub LIBRARY: one with no symbols.
stub() {
    cc -shared -x c /dev/null -o "$stubs/lib$1.so"
}

python3 -c 'import ensurepip' 2>/dev/null || ci/setup.sh python3-venv >&2
[ -x "$root/venv/bin/python" ] && ls "$root"/venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc >/dev/null 2>&1 ||
    install_nvcc
toolkit=$(echo "$root"/venv/lib/python3*/site-packages/nvidia/cu13)
stubs=$toolkit/lib/stubs
mkdir -p "$stubs"
for library in cuda cudart cublas cublasLt curand nvrtc; do stub $library; done

export CUDA_ROOT="$toolkit" CUDA_HOME="$toolkit" CUDA_PATH="$toolkit" PATH="$toolkit/bin:$PATH" \
    CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"
[ $# -gt 0 ] || set -- build --release --features cuda
[ "$1" = nvcc ] || set -- cargo "$@"
exec "$@"
