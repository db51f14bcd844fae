#pragma once
// An NCCL communicator with deadlines. Non-blocking: every call that can wait for another rank is
// polled, and the poll looks at the control group, so that a dead peer ends the wait. When an
// exception unwinds, the communicator is aborted, which ends its kernels on the device.

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "kernels/cuda.hpp"
#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"

namespace coterie {

// How the ranks of a machine share its GPUs.
struct GpuShare {
  int num_gpus = 0;                 // visible on this machine
  int device = 0;                   // of this rank: neighbours share, so that a GPU can be a node
  std::uint32_t ranks_per_gpu = 1;  // of the fullest GPU
};
// Throws DeviceError where no GPU is visible.
GpuShare share_gpus(const RankEnvironment& environment);
// Selects the rank's GPU. Where GPUs are shared, gives NCCL a host identity (NCCL_HOSTID) that no
// other rank of the same GPU has: NCCL refuses two ranks of one host on one GPU.
void use_gpu(const GpuShare& share, const RankEnvironment& environment);

// One message of a grouped exchange.
struct Message {
  std::uint32_t peer = 0;
  std::byte* data = nullptr;  // device memory
  std::size_t num_bytes = 0;  // messages of zero bytes are skipped, on both sides
};

class Communicator {
 public:
  // Collective over the group; rank 0's unique id goes through it.
  explicit Communicator(ControlGroup& group);
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // Enqueues all messages as one NCCL group.
  void exchange(std::span<const Message> sends, std::span<const Message> receives,
                cudaStream_t stream);
  // Waits until `event` has passed, at most the group's step deadline, in the group's current
  // stage. Throws PeerError or NcclError.
  void wait_for(const kernels::Event& event);
  // Throws NcclError, in the name of `call`, where something has gone wrong since. Cheap.
  void check(const char* call);
  // Orderly end; without it the destructor aborts.
  void finish();

 private:
  // Runs `body`; an error of NCCL's gives way to the group's verdict, if one comes.
  void prefer_verdict(const std::function<void()>& body);
  // Polls until the communicator is idle.
  void settle(const char* call);
  // Throws after the group failed, the communicator failed, or the deadline passed.
  void wait_until(const std::function<bool()>& done, const char* call);

  ControlGroup& group_;
  ncclComm_t comm_ = nullptr;
};

std::string nccl_version();

}  // namespace coterie
