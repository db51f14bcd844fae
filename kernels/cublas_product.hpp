#pragma once
// Grouped products by cuBLAS, BF16: what the expert MLP uses where CUTLASS or its GPU is missing.
// The numbers of rows are host values here.

#include <cublas_v2.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda.hpp"
#include "kernels/grouped_gemm.hpp"

namespace coterie::kernels {

// Owns a cuBLAS handle with a workspace of its own (so that products can be captured).
class CublasHandle {
 public:
  CublasHandle();
  ~CublasHandle();
  CublasHandle(const CublasHandle&) = delete;
  CublasHandle& operator=(const CublasHandle&) = delete;
  [[nodiscard]] cublasHandle_t get() const { return handle_; }
  // The products that follow go to this stream. (cuBLAS forgets the workspace with the stream.)
  void use(cudaStream_t stream) const;

 private:
  cublasHandle_t handle_ = nullptr;
  DeviceBuffer<std::byte> workspace_;
};

class CublasProduct {
 public:
  // `begin`: host, [num_groups + 1]. Groups without rows are left out.
  CublasProduct(const GroupedProduct& product, std::span<const std::uint32_t> begin);

  // One cublasGemmGroupedBatchedEx for all groups.
  void run_grouped(const CublasHandle& blas, cudaStream_t stream) const;
  // One cublasGemmEx per group.
  void run_per_group(const CublasHandle& blas, cudaStream_t stream) const;

 private:
  int n_ = 0;
  int k_ = 0;
  std::vector<int> num_rows_;   // [groups]
  std::vector<const void*> w_;  // [groups]
  std::vector<const void*> x_;
  std::vector<void*> y_;
  DeviceBuffer<const void*> device_w_;
  DeviceBuffer<const void*> device_x_;
  DeviceBuffer<void*> device_y_;
  // cuBLAS wants every parameter once per group, in host memory.
  std::vector<cublasOperation_t> transpose_;
  std::vector<cublasOperation_t> keep_;
  std::vector<int> ns_;
  std::vector<int> ks_;
  std::vector<int> group_sizes_;
  std::vector<float> ones_;
  std::vector<float> zeros_;
};

}  // namespace coterie::kernels
