#pragma once
// The kernels of the expert MLP that are not products: weights, activation and quantisation to FP8.
// All enqueue on the stream they are given and synchronise nothing.

#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda.hpp"
#include "kernels/expert_mlp.hpp"

namespace coterie::kernels {

using E4m3 = __nv_fp8_storage_t;

// weights[i] = expert_weight(shape, seed, layer, expert, matrix, i) for all i of the matrix.
void draw_weights(const MlpShape& shape, std::uint64_t seed, std::uint32_t layer,
                  std::uint32_t expert, std::uint32_t matrix, Bf16* weights, cudaStream_t stream);

// Slots of all experts, on the device: begin [num_experts + 1]. `max_rows` bounds
// begin[num_experts] and sizes the launch; the rows there are decide what is done.
struct SlotRows {
  const std::uint32_t* begin = nullptr;
  std::uint32_t num_experts = 0;
  std::uint32_t max_rows = 0;
};

// activated[r][i] = silu(gate_up[r][i]) * gate_up[r][intermediate + i], silu(x) = x / (1 + e^-x).
// intermediate % 8 == 0.
void activate(const Bf16* gate_up, Bf16* activated, std::uint32_t intermediate,
              const SlotRows& rows, cudaStream_t stream);

// FP8: q[r][i] = e4m3(v[r][i] * (1 / s)), s the largest magnitude of its 128 values over 448 (1 where
// that magnitude is below 2^-100), written for expert e as [width / 128][rows of e] from begin[e] *
// width / 128 on. v = x, or the activation of gate_up rounded to BF16. width % 128 == 0.
void quantise_rows(const Bf16* x, E4m3* q, float* scales, std::uint32_t width, const SlotRows& rows,
                   cudaStream_t stream);
void activate_fp8(const Bf16* gate_up, E4m3* q, float* scales, std::uint32_t intermediate,
                  const SlotRows& rows, cudaStream_t stream);

// q[r][c] = e4m3(w[r][c] * (1 / s)) with one s per 128 x 128 block, as above; scales[c / 128][r / 128].
// n, k: multiples of 128; w and q are [n][k].
void quantise_weights(const Bf16* w, E4m3* q, float* scales, std::uint32_t n, std::uint32_t k,
                      cudaStream_t stream);

}  // namespace coterie::kernels
