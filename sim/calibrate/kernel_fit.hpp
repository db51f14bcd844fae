#pragma once
// Parameters of the kernel transports (CopyKernel, PutKernel) from measured exchanges of rows. The
// model is what the simulator bounds a phase with (kernel_phase_s): the kernel's start and the most
// loaded of senders, receivers, ports and pairs.

#include <string>
#include <vector>

#include "sim/calibrate/row_exchanges.hpp"

namespace coterie {

template <class Kernel>
struct KernelFit {
  Kernel kernel;
  std::vector<std::string> undetermined;
};

// Seconds of an exchange. `port_limit`: what the hardware's links carry per rank and direction,
// bytes per second.
double copy_kernel_s(const CopyKernel& kernel, const RowExchange& exchange, double port_limit);
double put_kernel_s(const PutKernel& kernel, const RowExchange& exchange, double port_limit);

// All exchanges must be of one direction; at least as many as there are parameters. Deterministic.
// Throws InputError for fewer than eight.
KernelFit<CopyKernel> fit_copy_kernel(const std::vector<RowExchange>& exchanges, double port_limit);
KernelFit<PutKernel> fit_put_kernel(const std::vector<RowExchange>& exchanges, double port_limit);

// The median of the notify steps that exchanges were measured with, seconds; absent without any.
std::optional<double> notify_of(const std::vector<RowExchange>& exchanges);

}  // namespace coterie
