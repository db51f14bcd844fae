#include "kernels/cublas_product.hpp"

#include <string>

namespace coterie::kernels {
namespace {

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw CudaError(std::string(what) + ": " + cublasGetStatusName(status) + ": " +
                  cublasGetStatusString(status));
}

// What cuBLAS recommends for compute capability 9.0 and later.
constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

}  // namespace

void CublasHandle::use(cudaStream_t stream) const {
  check_blas(cublasSetStream(handle_, stream), "cublasSetStream");
  check_blas(cublasSetWorkspace(handle_, workspace_.data(), workspace_.size()),
             "cublasSetWorkspace");
}

CublasHandle::CublasHandle() : workspace_(kWorkspaceBytes) {
  check_blas(cublasCreate(&handle_), "cublasCreate");
}
CublasHandle::~CublasHandle() {
  cublasDestroy(handle_);
}

// Row-major [rows][n] = [rows][k] x [n][k]^T is, in cuBLAS's column-major terms, an (n x rows)
// = op(w) (n x k) x (k x rows).
CublasProduct::CublasProduct(const GroupedProduct& product, std::span<const std::uint32_t> begin)
    : n_(static_cast<int>(product.n)), k_(static_cast<int>(product.k)) {
  const std::size_t n = product.n;
  const std::size_t k = product.k;
  for (std::size_t g = 0; g < product.num_groups; ++g) {
    const std::uint32_t count = begin[g + 1] - begin[g];
    if (count == 0) continue;
    num_rows_.push_back(static_cast<int>(count));
    w_.push_back(static_cast<const Bf16*>(product.w) + g * n * k);
    x_.push_back(static_cast<const Bf16*>(product.x) + begin[g] * k);
    y_.push_back(product.y + begin[g] * n);
  }
  const std::size_t groups = num_rows_.size();
  transpose_.assign(groups, CUBLAS_OP_T);
  keep_.assign(groups, CUBLAS_OP_N);
  ns_.assign(groups, n_);
  ks_.assign(groups, k_);
  group_sizes_.assign(groups, 1);
  ones_.assign(groups, 1.0F);
  zeros_.assign(groups, 0.0F);
  device_w_ = DeviceBuffer<const void*>(std::span<const void* const>(w_));
  device_x_ = DeviceBuffer<const void*>(std::span<const void* const>(x_));
  device_y_ = DeviceBuffer<void*>(std::span<void* const>(y_));
}

void CublasProduct::run_grouped(const CublasHandle& blas, cudaStream_t stream) const {
  if (num_rows_.empty()) return;
  blas.use(stream);
  check_blas(cublasGemmGroupedBatchedEx(blas.get(), transpose_.data(), keep_.data(), ns_.data(),
                                        num_rows_.data(), ks_.data(), ones_.data(),
                                        device_w_.data(), CUDA_R_16BF, ks_.data(), device_x_.data(),
                                        CUDA_R_16BF, ks_.data(), zeros_.data(), device_y_.data(),
                                        CUDA_R_16BF, ns_.data(), static_cast<int>(num_rows_.size()),
                                        group_sizes_.data(), CUBLAS_COMPUTE_32F),
             "cublasGemmGroupedBatchedEx");
}

void CublasProduct::run_per_group(const CublasHandle& blas, cudaStream_t stream) const {
  const float one = 1.0F;
  const float zero = 0.0F;
  blas.use(stream);
  for (std::size_t g = 0; g < num_rows_.size(); ++g) {
    check_blas(cublasGemmEx(blas.get(), CUBLAS_OP_T, CUBLAS_OP_N, n_, num_rows_[g], k_, &one, w_[g],
                            CUDA_R_16BF, k_, x_[g], CUDA_R_16BF, k_, &zero, y_[g], CUDA_R_16BF, n_,
                            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
               "cublasGemmEx");
  }
}

}  // namespace coterie::kernels
