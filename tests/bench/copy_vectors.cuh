#pragma once
// The copy that the benchmarks of kernels measure themselves against.

#include <cstdint>

#include "kernels/cuda.hpp"

namespace coterie::kernels {

// output = input. One 16-byte vector per thread and step, four steps in flight.
static __global__ void __launch_bounds__(256)
    copy_vectors(const uint4* input, uint4* output, std::uint64_t count) {
  const std::uint64_t first = std::uint64_t{blockIdx.x} * 1024 + threadIdx.x;
  uint4 v[4];
#pragma unroll
  for (unsigned u = 0; u < 4; ++u) {
    if (first + u * 256 < count) v[u] = __ldcs(input + first + u * 256);
  }
#pragma unroll
  for (unsigned u = 0; u < 4; ++u) {
    if (first + u * 256 < count) __stcs(output + first + u * 256, v[u]);
  }
}

}  // namespace coterie::kernels
