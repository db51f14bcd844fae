#pragma once
// Inputs of the benchmarks of kernels: rows and weights drawn on the device.

#include <cstdint>

#include "kernels/cuda.hpp"
#include "kernels/layout.hpp"

namespace coterie::kernels {

// Uniform values in (-limit, limit), different for every seed.
static __global__ void fill_random(Bf16* data, std::uint64_t count, std::uint64_t seed,
                                   float limit) {
  const std::uint64_t stride = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    std::uint64_t x = (i + seed) * 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    data[i] = __float2bfloat16_rn((static_cast<float>(x >> 40) * 0x1p-23F - 1.0F) * limit);
  }
}
inline DeviceBuffer<Bf16> random_values(std::size_t count, std::uint64_t seed, float limit) {
  DeviceBuffer<Bf16> buffer(count);
  if (count > 0) fill_random<<<2048, 256>>>(buffer.data(), count, seed << 40, limit);
  check_launch("fill_random");
  check(cudaStreamSynchronize(nullptr), "fill_random");
  return buffer;
}

}  // namespace coterie::kernels
