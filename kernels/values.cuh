#pragma once
// Values in registers, shared by the .cu files of this folder: BF16 and FP8, and accesses of 16 bytes.

#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda.hpp"

namespace coterie::kernels {

inline constexpr unsigned kAllLanes = 0xffffffffU;
inline constexpr float kE4m3Max = 448.0F;
inline constexpr float kSmallestGroup =
    0x1p-100F;  // below, the scale is 1 and all is rounded to zero

// 16 bytes that are read once: do not keep them in L1.
__device__ inline uint4 load_once(const uint4* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}
// Written once and not read again by this kernel: first to be evicted.
__device__ inline void store_once(uint4* address, uint4 v) {
  __stcs(address, v);
}

__device__ inline float2 unpack(std::uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U));
}
__device__ inline std::uint32_t pack_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
__device__ inline void unpack8(uint4 v, float (&x)[8]) {
  const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack(words[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}
__device__ inline uint4 pack8(const float (&x)[8]) {
  return make_uint4(pack_pair(x[0], x[1]), pack_pair(x[2], x[3]), pack_pair(x[4], x[5]),
                    pack_pair(x[6], x[7]));
}
// x / scale with one rounding, for normal numbers: a product with the reciprocal, corrected by the
// residual (Markstein), at a third of the cost of a division.
__device__ inline float divide(float x, float scale, float reciprocal) {
  const float quotient = x * reciprocal;
  return fmaf(fmaf(-quotient, scale, x), reciprocal, quotient);
}
// The larger magnitudes of two words of two BF16, half by half, with signs that mean nothing.
__device__ inline std::uint32_t larger(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 860
  std::uint32_t larger;
  asm("max.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
#else
  return __vmaxu2(a & 0x7fff7fffU, b & 0x7fff7fffU);  // magnitudes ascend as integers do
#endif
}
// The largest magnitude of 16 values, in both halves, likewise.
__device__ inline std::uint32_t largest_of(uint4 v, uint4 w) {
  const std::uint32_t pair = larger(larger(larger(v.x, v.y), larger(v.z, v.w)),
                                    larger(larger(w.x, w.y), larger(w.z, w.w)));
  return larger(pair, __funnelshift_l(pair, pair, 16));
}
// Of eight values, likewise.
__device__ inline std::uint32_t largest_of(uint4 v) {
  const std::uint32_t pair = larger(larger(v.x, v.y), larger(v.z, v.w));
  return larger(pair, __funnelshift_l(pair, pair, 16));
}
// 1 / scale, rounded once, for a scale of scale_of, which is far from the ends of the range: the
// approximation and one step of Newton's (Markstein: exact but for a significand of ones alone, and
// a BF16 over 448 has none). The library's reciprocal has a branch, which would keep the compiler
// from working on several groups at once.
__device__ inline float reciprocal_of(float scale) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(scale));
  return fmaf(fmaf(-scale, r, 1.0F), r, r);
}
// The scale of a group of 128 (kScaleGroup) whose largest magnitude this is.
__device__ inline float scale_of(float largest) {
  return largest >= kSmallestGroup ? divide(largest, kE4m3Max, 1.0F / kE4m3Max) : 1.0F;
}
__device__ inline std::uint32_t quantise4(float a, float b, float c, float d) {
  const std::uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const std::uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}
__device__ inline uint2 quantise8(uint4 v, float reciprocal) {
  float x[8];
  unpack8(v, x);
#pragma unroll
  for (float& value : x) value *= reciprocal;
  return make_uint2(quantise4(x[0], x[1], x[2], x[3]), quantise4(x[4], x[5], x[6], x[7]));
}
__device__ inline float2 dequantise2(std::uint32_t pair) {
  const __half2_raw half =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
  return __half22float2(__half2(half));
}

}  // namespace coterie::kernels
