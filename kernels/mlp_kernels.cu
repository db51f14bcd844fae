#include <cmath>

#include "kernels/mlp_kernels.hpp"

namespace coterie::kernels {
namespace {

// --- weights ------------------------------------------------------------------------------------

// SplitMix64's finaliser, as in core/random.hpp (kernels/ uses nothing but CUDA).
__host__ __device__ constexpr std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}
__host__ __device__ constexpr std::uint64_t weight_stream(std::uint64_t seed, std::uint32_t layer,
                                                          std::uint32_t expert,
                                                          std::uint32_t matrix) {
  return mix(mix(seed) ^ (std::uint64_t{layer} << 32 | expert)) ^ mix(matrix);
}
__host__ __device__ inline float uniform_weight(std::uint64_t stream, std::uint64_t element,
                                                float limit) {
  const std::uint64_t bits = mix(stream + element) >> 40;  // 24 bits: exact as float
  return (static_cast<float>(bits) * 0x1p-23F - 1.0F) * limit;
}
float weight_limit(const MlpShape& shape, std::uint32_t matrix) {
  const std::uint32_t length = matrix == 2 ? shape.intermediate : shape.hidden;
  return std::sqrt(3.0F / static_cast<float>(length));
}

// weights[e] = uniform_weight(stream, e). Any grid; one thread per element and stride.
__global__ void draw_matrix(Bf16* weights, std::uint64_t count, std::uint64_t stream, float limit) {
  const std::uint64_t stride = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    weights[i] = __float2bfloat16_rn(uniform_weight(stream, i, limit));
  }
}

// --- activation ---------------------------------------------------------------------------------

__device__ inline float2 unpack(std::uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U));
}
__device__ inline std::uint32_t gated(std::uint32_t gate, std::uint32_t up) {
  const float2 g = unpack(gate);
  const float2 u = unpack(up);
  const float x = __fdividef(g.x, 1.0F + __expf(-g.x)) * u.x;
  const float y = __fdividef(g.y, 1.0F + __expf(-g.y)) * u.y;
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
__device__ inline uint4 gated(const uint4& gate, const uint4& up) {
  return make_uint4(gated(gate.x, up.x), gated(gate.y, up.y), gated(gate.z, up.z),
                    gated(gate.w, up.w));
}

// As declared for activate(), in 16-byte vectors. Grid: blocks of kThreads per row along x, rows
// and their stride along y; bound by memory.
__global__ void activate_rows(const uint4* gate_up, uint4* activated, unsigned vectors_per_row,
                              const std::uint32_t* num_rows) {
  const unsigned v = blockIdx.x * blockDim.x + threadIdx.x;
  if (v >= vectors_per_row) return;
  const unsigned end = *num_rows;
  for (std::uint64_t row = blockIdx.y; row < end; row += gridDim.y) {
    const uint4* from = gate_up + row * 2 * vectors_per_row + v;
    activated[row * vectors_per_row + v] = gated(__ldcs(from), __ldcs(from + vectors_per_row));
  }
}

// --- FP8 ----------------------------------------------------------------------------------------

constexpr float kLargestE4m3 = 448.0F;

__device__ inline float largest_of(const float2& pair, float largest) {
  return fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
}
__device__ inline float scale_for(float largest) {
  return largest >= 0x1p-100F ? largest / kLargestE4m3 : 1.0F;  // as pack() does
}
__device__ inline std::uint32_t quantise2(const float2& pair, float reciprocal) {
  return __nv_cvt_float2_to_fp8x2(make_float2(pair.x * reciprocal, pair.y * reciprocal),
                                  __NV_SATFINITE, __NV_E4M3);
}
__device__ inline uint2 quantise8(const uint4& eight, float scale) {
  const float reciprocal = 1.0F / scale;
  return make_uint2(
      quantise2(unpack(eight.x), reciprocal) | quantise2(unpack(eight.y), reciprocal) << 16,
      quantise2(unpack(eight.z), reciprocal) | quantise2(unpack(eight.w), reciprocal) << 16);
}

// The expert that slot `row` belongs to: the last e with begin[e] <= row.
__device__ inline unsigned expert_of(const std::uint32_t* begin, unsigned num_experts,
                                     unsigned row) {
  unsigned low = 0;
  unsigned high = num_experts;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    (begin[middle] <= row ? low : high) = middle;
  }
  return low;
}

// quantise_rows() and activate_fp8(). 16 lanes hold the 128 values of a scale, 8 each. Grid: blocks
// of whole warps along x cover the vectors of a row, rows and their stride along y.
template <bool kGated>
__global__ void quantise_slots(const uint4* x, uint2* q, float* scales, unsigned vectors_per_row,
                               SlotRows rows) {
  const unsigned v = blockIdx.x * blockDim.x + threadIdx.x;
  const bool inside = v < vectors_per_row;
  const unsigned end = rows.begin[rows.num_experts];
  for (unsigned row = blockIdx.y; row < end; row += gridDim.y) {
    uint4 eight = make_uint4(0, 0, 0, 0);
    if (inside) {
      const uint4* from = x + std::size_t{row} * (kGated ? 2 : 1) * vectors_per_row + v;
      eight = __ldcs(from);
      if constexpr (kGated) eight = gated(eight, __ldcs(from + vectors_per_row));
    }
    float largest = largest_of(unpack(eight.x), largest_of(unpack(eight.y), 0.0F));
    largest = largest_of(unpack(eight.z), largest_of(unpack(eight.w), largest));
#pragma unroll
    for (int lane = 8; lane > 0; lane /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, lane, 16));
    }
    if (!inside) continue;
    const float scale = scale_for(largest);
    q[std::size_t{row} * vectors_per_row + v] = quantise8(eight, scale);
    if (v % 16 == 0) {
      const unsigned e = expert_of(rows.begin, rows.num_experts, row);
      const std::size_t first = rows.begin[e];
      const std::size_t num_rows = rows.begin[e + 1] - first;
      scales[first * (vectors_per_row / 16) + v / 16 * num_rows + (row - first)] = scale;
    }
  }
}

// One block of 256 threads per 128 x 128 block: blockIdx.x along k, blockIdx.y along n.
__global__ void __launch_bounds__(256)
    quantise_weight_block(const uint4* w, uint2* q, float* scales, unsigned vectors_per_row) {
  const unsigned column = blockIdx.x * 16 + threadIdx.x % 16;
  const unsigned first_row = blockIdx.y * 128 + threadIdx.x / 16;
  uint4 eight[8];
  float largest = 0.0F;
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    eight[i] = w[std::size_t{first_row + 16 * i} * vectors_per_row + column];
    largest = largest_of(unpack(eight[i].x), largest_of(unpack(eight[i].y), largest));
    largest = largest_of(unpack(eight[i].z), largest_of(unpack(eight[i].w), largest));
  }
  __shared__ float of_warp[8];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, lane));
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (float of_other : of_warp) largest = fmaxf(largest, of_other);
  const float scale = scale_for(largest);
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    q[std::size_t{first_row + 16 * i} * vectors_per_row + column] = quantise8(eight[i], scale);
  }
  if (threadIdx.x == 0) scales[std::size_t{blockIdx.x} * gridDim.y + blockIdx.y] = scale;
}

constexpr unsigned kThreads = 256;

// Threads along a row and rows, for kernels with one 16-byte vector per thread.
struct RowGrid {
  dim3 grid;
  unsigned threads;
};
RowGrid row_grid(std::uint32_t vectors_per_row, std::uint32_t max_rows) {
  const unsigned threads = vectors_per_row < kThreads ? (vectors_per_row + 31) / 32 * 32 : kThreads;
  constexpr unsigned kMaxGridY = 32768;
  return {
      dim3((vectors_per_row + threads - 1) / threads, max_rows < kMaxGridY ? max_rows : kMaxGridY),
      threads};
}

}  // namespace

float expert_weight(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                    std::uint32_t expert, std::uint32_t matrix, std::uint64_t element) {
  const float drawn = uniform_weight(weight_stream(seed, layer, expert, matrix), element,
                                     weight_limit(shape, matrix));
  return __bfloat162float(__float2bfloat16_rn(drawn));
}

void draw_weights(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                  std::uint32_t expert, std::uint32_t matrix, Bf16* weights, cudaStream_t stream) {
  const std::uint64_t count = std::uint64_t{shape.hidden} * shape.intermediate;
  const std::uint64_t blocks = (count + kThreads - 1) / kThreads;
  draw_matrix<<<static_cast<unsigned>(blocks < 8192 ? blocks : 8192), kThreads, 0, stream>>>(
      weights, count, weight_stream(seed, layer, expert, matrix), weight_limit(shape, matrix));
  check_launch("draw_weights");
}

void activate(const Bf16* gate_up, Bf16* activated, std::uint32_t intermediate,
              const SlotRows& rows, cudaStream_t stream) {
  if (rows.max_rows == 0) return;
  const RowGrid shape = row_grid(intermediate / 8, rows.max_rows);
  activate_rows<<<shape.grid, shape.threads, 0, stream>>>(
      reinterpret_cast<const uint4*>(gate_up), reinterpret_cast<uint4*>(activated),
      intermediate / 8, rows.begin + rows.num_experts);
  check_launch("activate");
}

void quantise_rows(const Bf16* x, E4m3* q, float* scales, std::uint32_t width, const SlotRows& rows,
                   cudaStream_t stream) {
  if (rows.max_rows == 0) return;
  const RowGrid shape = row_grid(width / 8, rows.max_rows);
  quantise_slots<false><<<shape.grid, shape.threads, 0, stream>>>(
      reinterpret_cast<const uint4*>(x), reinterpret_cast<uint2*>(q), scales, width / 8, rows);
  check_launch("quantise_rows");
}

void activate_fp8(const Bf16* gate_up, E4m3* q, float* scales, std::uint32_t intermediate,
                  const SlotRows& rows, cudaStream_t stream) {
  if (rows.max_rows == 0) return;
  const RowGrid shape = row_grid(intermediate / 8, rows.max_rows);
  quantise_slots<true><<<shape.grid, shape.threads, 0, stream>>>(
      reinterpret_cast<const uint4*>(gate_up), reinterpret_cast<uint2*>(q), scales,
      intermediate / 8, rows);
  check_launch("activate_fp8");
}

void quantise_weights(const Bf16* w, E4m3* q, float* scales, std::uint32_t n, std::uint32_t k,
                      cudaStream_t stream) {
  quantise_weight_block<<<dim3(k / 128, n / 128), 256, 0, stream>>>(
      reinterpret_cast<const uint4*>(w), reinterpret_cast<uint2*>(q), scales, k / 8);
  check_launch("quantise_weights");
}

}  // namespace coterie::kernels
