#include "runtime/device/peer_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/control/channel.hpp"
#include "runtime/device/errors.hpp"

namespace coterie {
namespace {

// A handle names a whole allocation of the driver, which is never smaller than this: regions that
// fill theirs begin where the handle says.
constexpr std::size_t kGranularity = std::size_t{2} << 20;

// CUDA's sentence for a call that failed; the sticky state is cleared.
std::string failure_of(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return {};
  cudaGetLastError();
  return fmt::format("{}: {} ({})", call, cudaGetErrorString(status), cudaGetErrorName(status));
}

}  // namespace

PeerMemory::PeerMemory(ControlGroup& group, std::string name, std::vector<bool> near)
    : group_(group),
      name_(std::move(name)),
      near_(std::move(near)),
      regions_(group.num_ranks(), nullptr) {}

PeerMemory::~PeerMemory() {
  unmap();
  free_own();
}

void PeerMemory::unmap() {
  for (std::uint32_t r = 0; r < regions_.size(); ++r) {
    if (r == group_.rank() || regions_[r] == nullptr) continue;
    cudaIpcCloseMemHandle(regions_[r]);
    regions_[r] = nullptr;
  }
}

void PeerMemory::free_own() {
  std::byte*& own = regions_[group_.rank()];
  cudaFree(own);
  own = nullptr;
}

std::string PeerMemory::allocate(cudaIpcMemHandle_t& handle) {
  std::byte*& own = regions_[group_.rank()];
  std::string failure = failure_of(cudaMalloc(reinterpret_cast<void**>(&own), size_), "cudaMalloc");
  if (failure.empty()) failure = failure_of(cudaMemset(own, 0, size_), "cudaMemset");
  if (failure.empty()) failure = failure_of(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  if (failure.empty())
    failure = failure_of(cudaIpcGetMemHandle(&handle, own), "cudaIpcGetMemHandle");
  return failure;
}

std::string PeerMemory::map(const std::vector<std::string>& handles) {
  for (std::uint32_t r = 0; r < handles.size(); ++r) {
    if (r == group_.rank() || !near_[r]) continue;
    cudaIpcMemHandle_t handle{};
    if (handles[r].size() != sizeof handle) return fmt::format("no handle came from rank {}", r);
    std::memcpy(&handle, handles[r].data(), sizeof handle);
    void* region = nullptr;
    const std::string failure =
        failure_of(cudaIpcOpenMemHandle(&region, handle, cudaIpcMemLazyEnablePeerAccess),
                   "cudaIpcOpenMemHandle");
    if (!failure.empty()) return fmt::format("mapping of rank {}'s memory: {}", r, failure);
    regions_[r] = static_cast<std::byte*>(region);
  }
  return {};
}

void PeerMemory::agree(const std::string& stage, const std::string& failure) {
  const std::vector<std::string> failures = group_.all_gather(stage, failure);
  for (std::size_t r = 0; r < failures.size(); ++r) {
    if (failures[r].empty()) continue;
    throw DeviceError(fmt::format("{} of {} bytes on rank {}: {}", name_, size_, r, failures[r]));
  }
}

bool PeerMemory::reserve(std::size_t num_bytes) {
  std::size_t largest = kGranularity;
  for (const std::string& bytes :
       group_.all_gather(fmt::format("sizes of the {}", name_),
                         Packer().number<std::uint64_t>(num_bytes).take())) {
    largest = std::max<std::size_t>(largest, Unpacker(bytes).number<std::uint64_t>());
  }
  largest = (largest + kGranularity - 1) / kGranularity * kGranularity;
  if (largest <= size_) return false;
  unmap();
  // Freed only once nobody maps it.
  group_.barrier(fmt::format("release of the {}", name_));
  free_own();
  size_ = largest;
  cudaIpcMemHandle_t handle{};
  const std::string failure = allocate(handle);
  agree(fmt::format("allocation of the {}", name_), failure);
  std::string bytes(sizeof handle, '\0');
  std::memcpy(bytes.data(), &handle, sizeof handle);
  const std::string unmapped =
      map(group_.all_gather(fmt::format("handles of the {}", name_), bytes));
  agree(fmt::format("mapping of the {}", name_), unmapped);
  return true;
}

}  // namespace coterie
