#pragma once
// A private MPS control daemon, so that several ranks can use one GPU at the same time (without it
// the driver gives each process its own time slice and every exchange waits for the slices).
//
// A guardian process starts the daemon, holds the read end of a pipe to its creator, and is the
// subreaper of everything the daemon starts. When the creator closes the pipe, or dies in whatever
// way, the guardian ends the daemon (`quit`, then SIGKILL), waits until nothing of it is left, and
// removes the folder that held its pipes and logs.

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/control/channel.hpp"

namespace coterie {

class MpsDaemon {
 public:
  // Starts `nvidia-cuda-mps-control` (or what COTERIE_MPS_CONTROL names) with pipes and logs in a
  // fresh folder under the system's temporary one. Throws DeviceError with the reason.
  MpsDaemon();
  ~MpsDaemon();  // blocks until the daemon and its folder are gone
  MpsDaemon(const MpsDaemon&) = delete;
  MpsDaemon& operator=(const MpsDaemon&) = delete;

  // What the clients need as CUDA_MPS_PIPE_DIRECTORY and CUDA_MPS_LOG_DIRECTORY.
  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }

 private:
  std::filesystem::path folder_;
  Descriptor lifeline_;
  pid_t guardian_ = 0;
};

// What CUDA_VISIBLE_DEVICES has to be for the clients of a daemon that was started with `visible`: an
// MPS server counts the devices that it sees from 0 ("CUDA_VISIBLE_DEVICES" in NVIDIA's description of
// MPS), so that "2,3" becomes "0,1". Absent where it may stay: it names no index, or UUIDs.
std::optional<std::string> devices_of_clients(std::string_view visible);

}  // namespace coterie
