#include "runtime/device/nvml.hpp"

#include <dlfcn.h>

#include <array>
#include <memory>

namespace coterie {
namespace {

// The few declarations of nvml.h that are used, with its names for the constants.
using NvmlDevice = void*;
constexpr int kNvmlSuccess = 0;
constexpr unsigned kNvmlMaxLinks = 18;

class Nvml {
 public:
  Nvml() : library_(::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    const auto init = find<int()>("nvmlInit_v2");
    ready_ = init != nullptr && init() == kNvmlSuccess;
  }
  ~Nvml() {
    if (ready_) {
      if (const auto shutdown = find<int()>("nvmlShutdown")) shutdown();
    }
    if (library_ != nullptr) ::dlclose(library_);
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  [[nodiscard]] bool ready() const { return ready_; }
  template <class Signature>
  [[nodiscard]] Signature* find(const char* name) const {
    return reinterpret_cast<Signature*>(::dlsym(library_, name));  // NOLINT: dlsym's way
  }

 private:
  void* library_;
  bool ready_ = false;
};

}  // namespace

std::string driver_version() {
  const Nvml nvml;
  if (!nvml.ready()) return "unknown";
  std::array<char, 96> text{};
  const auto get = nvml.find<int(char*, unsigned)>("nvmlSystemGetDriverVersion");
  if (get == nullptr || get(text.data(), text.size()) != kNvmlSuccess) return "unknown";
  return text.data();
}

bool has_nvlink(const std::string& pci_bus_id) {
  const Nvml nvml;
  if (!nvml.ready()) return false;
  const auto by_id = nvml.find<int(const char*, NvmlDevice*)>("nvmlDeviceGetHandleByPciBusId_v2");
  const auto state = nvml.find<int(NvmlDevice, unsigned, unsigned*)>("nvmlDeviceGetNvLinkState");
  NvmlDevice device = nullptr;
  if (by_id == nullptr || state == nullptr || by_id(pci_bus_id.c_str(), &device) != kNvmlSuccess) {
    return false;
  }
  for (unsigned link = 0; link < kNvmlMaxLinks; ++link) {
    unsigned up = 0;
    if (state(device, link, &up) == kNvmlSuccess && up != 0) return true;
  }
  return false;
}

}  // namespace coterie
