#pragma once
// What the GPU tests of this folder share.

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda.hpp"

namespace coterie::kernels {

// First line of a GPU test: skips it, visibly, on a machine without a GPU.
#define COTERIE_NEEDS_GPU() \
  if (num_gpus() == 0) GTEST_SKIP() << "no GPU on this machine"

inline std::vector<Bf16> to_device_type(std::span<const float> values) {
  std::vector<Bf16> result;
  result.reserve(values.size());
  for (const float value : values) result.push_back(__float2bfloat16_rn(value));
  return result;
}
inline std::vector<float> to_float(std::span<const Bf16> values) {
  std::vector<float> result;
  result.reserve(values.size());
  for (const Bf16 value : values) result.push_back(__bfloat162float(value));
  return result;
}

// Device memory with every byte 0xff: NaN as BF16, kNoRow as an index.
template <class T>
DeviceBuffer<T> poisoned(std::size_t size) {
  DeviceBuffer<T> buffer(size);
  if (size > 0) buffer.fill_bytes(0xff);
  return buffer;
}

}  // namespace coterie::kernels
