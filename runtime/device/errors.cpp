#include "runtime/device/errors.hpp"

#include <fmt/format.h>

#include <string_view>

#include "kernels/cuda.hpp"

namespace coterie {
namespace {

std::string place(const std::source_location& where) {
  const std::string_view file = where.file_name();
  const std::size_t folder = file.rfind("runtime/");
  return fmt::format("{}:{}", folder == std::string_view::npos ? file : file.substr(folder),
                     where.line());
}

}  // namespace

void check_cuda(cudaError_t status, const char* call, std::source_location where) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw CudaError(fmt::format("{} at {} failed: {} ({})", call, place(where),
                              cudaGetErrorString(status), cudaGetErrorName(status)));
}

void check_nccl(ncclResult_t status, const char* call, ncclComm_t comm,
                std::source_location where) {
  if (status == ncclSuccess || status == ncclInProgress) return;
  const char* detail = ncclGetLastError(comm);
  const bool has_detail = detail != nullptr && *detail != '\0';
  throw NcclError(fmt::format("{} at {} failed: {}{}{}", call, place(where),
                              ncclGetErrorString(status), has_detail ? "; NCCL says: " : "",
                              has_detail ? detail : ""));
}

void with_device_errors(const std::function<void()>& body) {
  try {
    body();
  } catch (const kernels::CudaError& error) {
    throw CudaError(error.what());
  }
}

}  // namespace coterie
