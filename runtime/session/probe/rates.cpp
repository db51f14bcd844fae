#include "runtime/session/probe/rates.hpp"

#include <fmt/format.h>

#include "core/statistics.hpp"
#include "kernels/mlp_kernels.hpp"
#include "runtime/device/errors.hpp"

namespace coterie {
namespace {

using kernels::Bf16;
using kernels::DeviceBuffer;
using kernels::Event;

// Seconds of `body`, enqueued on the stream: the median of `num_samples`.
template <class Body>
double time_of(const kernels::Stream& stream, int num_samples, const Body& body) {
  std::vector<double> seconds;
  for (int i = -2; i < num_samples; ++i) {
    const Event begin;
    const Event end;
    begin.record(stream.get());
    body();
    end.record(stream.get());
    end.synchronize();
    if (i >= 0) seconds.push_back(kernels::seconds_between(begin, end));
  }
  return median(seconds);
}

void check_cublas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw kernels::CudaError(fmt::format("{} failed: {}", call, cublasGetStatusString(status)));
  }
}

cublasHandle_t make_handle() {
  cublasHandle_t raw = nullptr;
  check_cublas(cublasCreate(&raw), "cublasCreate");
  return raw;
}

}  // namespace

SquareProduct::SquareProduct(std::uint32_t size)
    : size_(static_cast<int>(size)),
      a_(std::size_t{size} * size),
      b_(std::size_t{size} * size),
      c_(std::size_t{size} * size),
      handle_(make_handle(), cublasDestroy) {
  kernels::draw_weights({size, size}, 1, 0, 0, 0, a_.data(), nullptr);
  kernels::draw_weights({size, size}, 1, 0, 1, 0, b_.data(), nullptr);
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

void SquareProduct::run(cudaStream_t stream) const {
  const float one = 1.0F;
  const float zero = 0.0F;
  check_cublas(cublasSetStream(handle_.get(), stream), "cublasSetStream");
  check_cublas(cublasGemmEx(handle_.get(), CUBLAS_OP_N, CUBLAS_OP_N, size_, size_, size_, &one,
                            a_.data(), CUDA_R_16BF, size_, b_.data(), CUDA_R_16BF, size_, &zero,
                            c_.data(), CUDA_R_16BF, size_, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
               "cublasGemmEx");
}

// Far larger than the cache.
double copy_rate(const kernels::Stream& stream) {
  constexpr std::size_t kBytes = std::size_t{2} << 30;
  const DeviceBuffer<std::byte> from(kBytes);
  const DeviceBuffer<std::byte> to(kBytes);
  const double seconds = time_of(stream, 9, [&] {
    check_cuda(
        cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream.get()),
        "cudaMemcpyAsync");
  });
  return 2.0 * static_cast<double>(kBytes) / seconds;
}

double gemm_rate(const kernels::Stream& stream) {
  const SquareProduct product(8192);
  return product.flop() / time_of(stream, 9, [&] { product.run(stream.get()); });
}

double launch_cost(const kernels::Stream& stream) {
  constexpr int kMany = 200;
  const DeviceBuffer<std::byte> target(256);
  return time_of(stream, 9,
                 [&] {
                   for (int i = 0; i < kMany; ++i) {
                     check_cuda(cudaMemsetAsync(target.data(), i, target.size(), stream.get()),
                                "cudaMemsetAsync");
                   }
                 }) /
         kMany;
}

}  // namespace coterie
