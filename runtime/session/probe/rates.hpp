#pragma once
// Plain rates of one GPU: a large copy, a large product, a small launch.

#include <cublas_v2.h>

#include <cstdint>
#include <memory>

#include "kernels/cuda.hpp"

namespace coterie {

// C = A B in BF16 with float sums, size cubed, on random values (zeros run faster than data does).
class SquareProduct {
 public:
  explicit SquareProduct(std::uint32_t size);
  void run(cudaStream_t stream) const;
  [[nodiscard]] double flop() const { return 2.0 * size_ * size_ * size_; }

 private:
  int size_;
  kernels::DeviceBuffer<kernels::Bf16> a_, b_, c_;
  std::unique_ptr<cublasContext, cublasStatus_t (*)(cublasHandle_t)> handle_;
};

// Of this rank's GPU, medians; blocking.
double copy_rate(const kernels::Stream& stream);    // bytes read plus written per second
double gemm_rate(const kernels::Stream& stream);    // FLOP/s of 8192 cubed
double launch_cost(const kernels::Stream& stream);  // seconds of one small operation

}  // namespace coterie
