#pragma once
// Failed CUDA and NCCL calls as DeviceError, with the call and its place.

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <functional>
#include <source_location>
#include <string>

#include "core/error.hpp"

namespace coterie {

class CudaError : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

class NcclError : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

// Throws CudaError unless `status` is cudaSuccess, and clears CUDA's sticky state where it can be.
void check_cuda(cudaError_t status, const char* call,
                std::source_location where = std::source_location::current());

// Throws NcclError unless `status` is ncclSuccess or (non-blocking communicators) ncclInProgress.
// `comm` may be null; it adds NCCL's own last error.
void check_nccl(ncclResult_t status, const char* call, ncclComm_t comm,
                std::source_location where = std::source_location::current());

// Runs `body`; what the kernels throw (they know nothing of core/) goes on as CudaError.
void with_device_errors(const std::function<void()>& body);

}  // namespace coterie
