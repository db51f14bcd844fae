#pragma once
// The little of CUDA's runtime that kernels/ and runtime/ share: errors, and owners of streams,
// events and memory. Owners are move-only; their destructors never throw.

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace coterie::kernels {

using Bf16 = __nv_bfloat16;

// A CUDA or cuBLAS call failed, or a kernel did. Carries "<what>: <CUDA's name>: <its sentence>".
// Where the error is not fatal to the context, CUDA's sticky state has been cleared.
class CudaError : public std::runtime_error {
 public:
  explicit CudaError(const std::string& message) : std::runtime_error(message) {}
};

// Throws CudaError unless `status` is cudaSuccess. `what` names the call or the kernel.
void check(cudaError_t status, const char* what);
// For use right after a kernel launch: throws if the launch was refused (not if the kernel later
// fails; that surfaces at the next synchronising call).
void check_launch(const char* kernel);

// The GPUs this process sees; 0 where there is no driver or no GPU.
int num_gpus();

class Stream {
 public:
  Stream();  // non-blocking with respect to the default stream
  ~Stream();
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  [[nodiscard]] cudaStream_t get() const { return stream_; }
  void synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event();  // records times
  ~Event();
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  [[nodiscard]] cudaEvent_t get() const { return event_; }
  void record(cudaStream_t stream) const;
  void synchronize() const;
  [[nodiscard]] bool done() const;  // throws CudaError if the stream failed

 private:
  cudaEvent_t event_ = nullptr;
};
// Seconds between two events that have both completed.
double seconds_between(const Event& begin, const Event& end);

// Device memory that nobody owns twice. Contents are undefined after construction.
template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t size) : size_(size) {
    if (size_ > 0) {
      check(cudaMalloc(reinterpret_cast<void**>(&data_), size_ * sizeof(T)), "cudaMalloc");
    }
  }
  explicit DeviceBuffer(std::span<const T> host) : DeviceBuffer(host.size()) { upload(host); }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }

  // Copies from and to the host, of the first host.size() and of all elements. They have happened
  // when the call returns (plain cudaMemcpy may return before a pageable source has reached the
  // device, and streams here do not wait for the default stream).
  void upload(std::span<const T> host) {
    check(cudaMemcpy(data_, host.data(), host.size_bytes(), cudaMemcpyHostToDevice), "upload");
    check(cudaStreamSynchronize(nullptr), "upload");
  }
  [[nodiscard]] std::vector<T> download() const {
    std::vector<T> host(size_);
    check(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "download");
    return host;
  }
  // Sets every byte, before the call returns; the tests poison outputs with it.
  void fill_bytes(int value) {
    check(cudaMemset(data_, value, size_ * sizeof(T)), "cudaMemset");
    check(cudaStreamSynchronize(nullptr), "cudaMemset");
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace coterie::kernels
