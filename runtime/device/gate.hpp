#pragma once
// Holds a stream back until the host says so. With the gate closed the host can enqueue a whole
// iteration; opened, the device runs it without waiting for launches, as a captured graph would.
// Without it every short phase measures how fast the host enqueues.

#include <cuda_runtime_api.h>

#include <atomic>
#include <memory>
#include <thread>

#include "runtime/device/errors.hpp"

namespace coterie {

class Gate {
 public:
  Gate() = default;
  ~Gate() { open(); }  // a stream must never stay blocked when an exception unwinds
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  // Work enqueued on `stream` from here on waits for `open`. Nothing that waits for the device
  // (first use of a connection, allocation, synchronisation) may be called while it is closed.
  void close(cudaStream_t stream) {
    is_open_ = std::make_shared<Flag>(false);
    // The callback has its own share of the flag: it may come after the gate is gone.
    auto share = std::make_unique<std::shared_ptr<Flag>>(is_open_);
    check_cuda(cudaLaunchHostFunc(
                   stream,
                   [](void* data) {
                     const std::unique_ptr<std::shared_ptr<Flag>> flag(
                         static_cast<std::shared_ptr<Flag>*>(data));
                     while (!**flag) std::this_thread::yield();
                   },
                   share.get()),
               "cudaLaunchHostFunc");
    share.release();  // NOLINT: the callback owns it now
  }
  void open() { *is_open_ = true; }

 private:
  using Flag = std::atomic<bool>;
  std::shared_ptr<Flag> is_open_ = std::make_shared<Flag>(true);
};

}  // namespace coterie
