#pragma once
// The two things that only NVML knows. The library belongs to the driver, so it is opened at run
// time and its absence is no error.

#include <string>

namespace coterie {

// "580.159.04"; "unknown" without NVML.
std::string driver_version();

// Whether the GPU at this PCI bus id ("0000:1B:00.0") has an NVLink that is up.
bool has_nvlink(const std::string& pci_bus_id);

}  // namespace coterie
