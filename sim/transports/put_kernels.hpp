#pragma once
// The model of kernels that put rows straight into the receiver's memory: `deepep_low_latency`
// and `nvlink_one_sided`.

#include "sim/transports/kernel_phase.hpp"

namespace coterie {

// PutKernel in topologies/transports.hpp has the formula. `pulls`: a combine fetches its rows.
KernelModel put_kernel_model(const PutKernel& kernel, Direction direction, double sms, bool pulls);
}  // namespace coterie
