#!/bin/sh
# Builds kernels/ for the GPU of this machine, runs its tests, compute-sanitizer's memcheck and
# racecheck over them, and the benchmark. Stops at the first failure.
#
#   kernels/check_on_gpu.sh [ROUTING]      ROUTING as for bench_kernels
#
# Results: build/gpu/bench_kernels.json and bench_mlp.json. With COTERIE_GPU_BIN set to a folder that holds
# kernels_tests, bench_kernels and bench_mlp, those are used and nothing is built.
set -eu
cd "$(dirname "$0")/.."
routing=${1:-}
if [ -n "${COTERIE_GPU_BIN:-}" ]; then
  bin=$COTERIE_GPU_BIN
else
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
  cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DCOTERIE_SIM=OFF -DCOTERIE_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$capability"
  cmake --build build/gpu --target kernels_tests bench_kernels bench_mlp
  bin=build/gpu/bin
fi
mkdir -p build/gpu
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$bin/kernels_tests" --gtest_brief=1
compute-sanitizer --tool memcheck --error-exitcode 9 "$bin/kernels_tests" --gtest_brief=1
# Over our own kernels; the products of the expert MLP are CUTLASS's and cuBLAS's.
compute-sanitizer --tool racecheck --error-exitcode 9 "$bin/kernels_tests" --gtest_brief=1 \
  --gtest_filter='-Ways/*'
# shellcheck disable=SC2086  # an absent routing is no argument
"$bin/bench_kernels" $routing --json build/gpu/bench_kernels.json
"$bin/bench_mlp" --json build/gpu/bench_mlp.json
