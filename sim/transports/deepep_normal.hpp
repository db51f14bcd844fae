#pragma once
// The model of `deepep_normal`'s kernels, for the transport and for the fit of its parameters.

#include "sim/transports/kernel_phase.hpp"

namespace coterie {

// Sender, receiver and pairs of a kernel that holds `sms` multiprocessors.
KernelModel copy_kernel_model(const CopyKernel& kernel, Direction direction, double sms);

}  // namespace coterie
