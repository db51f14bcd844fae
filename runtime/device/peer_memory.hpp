#pragma once
// Device memory that all ranks of a machine see: every rank allocates a region, and maps those of the
// others on its machine into its own address space through CUDA's interprocess handles. Ranks may
// share a GPU.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/control/group.hpp"

namespace coterie {

class PeerMemory {
 public:
  // `name` says in errors what the memory is for; `near` [num_ranks] which ranks are on this machine.
  PeerMemory(ControlGroup& group, std::string name, std::vector<bool> near);
  // Not collective: whoever leaves first must know that nobody uses its memory any more.
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  // Collective: makes every rank's region at least as large as the largest request. Where they have
  // to grow, all are replaced: their contents are lost, their addresses change, and no rank may still
  // use the old ones. Returns whether that happened; new regions are zero. Throws DeviceError at
  // every rank where one of them cannot allocate or map.
  bool reserve(std::size_t num_bytes);

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::byte* own() const { return regions_[group_.rank()]; }
  // Null: the rank is on another machine.
  [[nodiscard]] std::byte* of(std::uint32_t rank) const { return regions_[rank]; }
  // All regions as this rank sees them, by rank.
  [[nodiscard]] const std::vector<std::byte*>& regions() const { return regions_; }

 private:
  void unmap();
  void free_own();
  // What went wrong at this rank, or an empty string.
  std::string allocate(cudaIpcMemHandle_t& handle);
  std::string map(const std::vector<std::string>& handles);
  // Throws the first failure, by rank.
  void agree(const std::string& stage, const std::string& failure);

  ControlGroup& group_;
  const std::string name_;
  const std::vector<bool> near_;
  std::vector<std::byte*> regions_;
  std::size_t size_ = 0;
};

}  // namespace coterie
