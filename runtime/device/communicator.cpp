#include "runtime/device/communicator.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "runtime/device/errors.hpp"
#include "runtime/device/polling.hpp"

namespace coterie {

GpuShare share_gpus(const RankEnvironment& environment) {
  GpuShare share;
  share.num_gpus = kernels::num_gpus();
  if (share.num_gpus == 0) throw DeviceError("no CUDA device is visible to this process");
  const auto num_gpus = static_cast<std::uint32_t>(share.num_gpus);
  share.ranks_per_gpu = (environment.num_local_ranks + num_gpus - 1) / num_gpus;
  share.device = static_cast<int>(environment.local_rank / share.ranks_per_gpu);
  return share;
}

void use_gpu(const GpuShare& share, const RankEnvironment& environment) {
  if (share.ranks_per_gpu > 1) {
    std::array<char, 256> host{};
    ::gethostname(host.data(), host.size() - 1);
    const std::uint32_t turn = environment.local_rank % share.ranks_per_gpu;
    const std::string id = fmt::format("{}-{}-{}", host.data(), environment.job, turn);
    ::setenv("NCCL_HOSTID", id.c_str(), 0);
  }
  check_cuda(cudaSetDevice(share.device), "cudaSetDevice");
  check_cuda(cudaFree(nullptr), "cudaFree (creation of the context)");
}

std::string nccl_version() {
  int version = 0;
  ncclGetVersion(&version);
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

Communicator::Communicator(ControlGroup& group) : group_(group) {
  ncclUniqueId id{};
  std::string id_bytes;
  if (group.rank() == 0) {
    check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId", nullptr);
    id_bytes.assign(id.internal, sizeof id.internal);
  }
  id_bytes = group.broadcast("exchange of the NCCL id", id_bytes);
  if (id_bytes.size() != sizeof id.internal) throw NcclError("rank 0 sent no NCCL id");
  std::memcpy(id.internal, id_bytes.data(), sizeof id.internal);

  group.watch_stage("NCCL initialisation");
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t status = ncclCommInitRankConfig(&comm_, static_cast<int>(group.num_ranks()),
                                                     id, static_cast<int>(group.rank()), &config);
  try {
    prefer_verdict([&] {
      check_nccl(status, "ncclCommInitRankConfig", comm_);
      settle("ncclCommInitRankConfig");
    });
  } catch (...) {
    if (comm_ != nullptr) ncclCommAbort(comm_);
    throw;
  }
}

Communicator::~Communicator() {
  if (comm_ != nullptr) ncclCommAbort(comm_);
}

void Communicator::prefer_verdict(const std::function<void()>& body) {
  try {
    body();
  } catch (const NcclError&) {
    await_verdict(group_);
    throw;
  }
}

void Communicator::check(const char* call) {
  ncclResult_t state = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError", comm_);
  check_nccl(state, call, comm_);
}

void Communicator::wait_until(const std::function<bool()>& done, const char* call) {
  poll_until(group_, done, [&] { check(call); });
}

void Communicator::settle(const char* call) {
  wait_until(
      [&] {
        ncclResult_t state = ncclSuccess;
        check_nccl(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError", comm_);
        check_nccl(state, call, comm_);
        return state == ncclSuccess;
      },
      call);
}

void Communicator::exchange(std::span<const Message> sends, std::span<const Message> receives,
                            cudaStream_t stream) {
  const auto has_bytes = [](std::span<const Message> messages) {
    for (const Message& message : messages) {
      if (message.num_bytes > 0) return true;
    }
    return false;
  };
  if (!has_bytes(sends) && !has_bytes(receives)) return;
  prefer_verdict([&] {
    check_nccl(ncclGroupStart(), "ncclGroupStart", comm_);
    for (const Message& message : sends) {
      if (message.num_bytes == 0) continue;
      check_nccl(ncclSend(message.data, message.num_bytes, ncclInt8, static_cast<int>(message.peer),
                          comm_, stream),
                 "ncclSend", comm_);
    }
    for (const Message& message : receives) {
      if (message.num_bytes == 0) continue;
      check_nccl(ncclRecv(message.data, message.num_bytes, ncclInt8, static_cast<int>(message.peer),
                          comm_, stream),
                 "ncclRecv", comm_);
    }
    check_nccl(ncclGroupEnd(), "ncclGroupEnd", comm_);
    // Work enqueued later on the stream must come after the group's kernels.
    settle("ncclGroupEnd");
  });
}

void Communicator::wait_for(const kernels::Event& event) {
  prefer_verdict([&] { wait_until([&] { return event.done(); }, "an exchange"); });
}

void Communicator::finish() {
  group_.watch_stage("NCCL finalisation");
  check_nccl(ncclCommFinalize(comm_), "ncclCommFinalize", comm_);
  settle("ncclCommFinalize");
  check_nccl(ncclCommDestroy(std::exchange(comm_, nullptr)), "ncclCommDestroy", nullptr);
}

}  // namespace coterie
