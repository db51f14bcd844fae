#pragma once
// Device-side access to transfer blocks, shared by the .cu files of this folder.

#include <cstdint>

#include "kernels/cuda.hpp"
#include "kernels/layout.hpp"

namespace coterie::kernels {

// The number of the block that holds row (or copy) `position`: the last that begins at or before
// it, because blocks without rows begin where their successor does. `begins(b)` is the first row
// (copy) of block b. All lanes of the warp call it, each with a position of its own; the table is
// read once per warp and searched by broadcasts, because dependent loads would cost more than the
// row's bytes.
template <class Begins>
__device__ inline std::uint32_t find_block(std::uint32_t num_blocks, std::uint32_t position,
                                           const Begins& begins) {
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t num_before = 0;
  for (std::uint32_t first = 0; first < num_blocks; first += 32) {
    const std::uint32_t own = first + lane < num_blocks ? begins(first + lane) : 0xffffffffU;
    const std::uint32_t count = min(32U, num_blocks - first);
    for (std::uint32_t i = 0; i < count; ++i) {
      num_before += static_cast<std::uint32_t>(__shfl_sync(0xffffffffU, own, static_cast<int>(i)) <=
                                               position);
    }
  }
  return num_before > 0 ? num_before - 1 : 0;
}
// The same for a position that all lanes share.
template <class Begins>
__device__ inline std::uint32_t find_block_uniform(std::uint32_t num_blocks, std::uint32_t position,
                                                   const Begins& begins) {
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t num_before = 0;
  for (std::uint32_t first = 0; first < num_blocks; first += 32) {
    const bool before = first + lane < num_blocks && begins(first + lane) <= position;
    num_before += static_cast<std::uint32_t>(__popc(__ballot_sync(0xffffffffU, before)));
  }
  return num_before > 0 ? num_before - 1 : 0;
}

struct RowBegins {
  const TransferBlock* blocks;
  __device__ std::uint32_t operator()(std::uint32_t b) const { return blocks[b].row_begin; }
};
struct CopyBegins {
  const TransferBlock* blocks;
  __device__ std::uint32_t operator()(std::uint32_t b) const { return blocks[b].copy_begin; }
};

__device__ inline Copy* block_copies(const TransferBlock& block, RowType type,
                                     std::uint32_t hidden) {
  return reinterpret_cast<Copy*>(block.data + copies_offset(type, hidden, block.num_rows));
}
__device__ inline float* block_scales(const TransferBlock& block, RowType type,
                                      std::uint32_t hidden) {
  return reinterpret_cast<float*>(block.data +
                                  scales_offset(type, hidden, block.num_rows, block.num_copies));
}
__device__ inline std::uint32_t* block_words(const TransferBlock& block, RowType type,
                                             std::uint32_t hidden) {
  return reinterpret_cast<std::uint32_t*>(
      block.data + words_offset(type, hidden, block.num_rows, block.num_copies));
}

// Programmatic dependent launch (sm_90 on): the second of two kernels starts while the first still
// runs, and waits here before it reads what the first wrote. Elsewhere it starts afterwards anyway.
__device__ inline void start_dependent_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_for_previous_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Launches a kernel that calls wait_for_previous_launch.
template <class... Parameters, class... Arguments>
void launch_dependent(void (*kernel)(Parameters...), unsigned grid, unsigned threads,
                      std::size_t shared, cudaStream_t stream, const Arguments&... arguments) {
  int device = 0;
  int major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = major >= 9 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "cudaLaunchKernelEx");
}

// Lets a kernel use `bytes` of dynamic shared memory; throws CudaError where the device has less.
inline void allow_shared(const void* kernel, std::size_t bytes) {
  if (bytes <= std::size_t{48} * 1024) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
}

}  // namespace coterie::kernels
