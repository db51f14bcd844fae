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
// Throws InputError for fewer than eight. `token`: what to assume of PutKernel::token where the
// exchanges do not show it.
KernelFit<CopyKernel> fit_copy_kernel(const std::vector<RowExchange>& exchanges, double port_limit);
KernelFit<PutKernel> fit_put_kernel(const std::vector<RowExchange>& exchanges, double port_limit,
                                    Seconds token);

// What to assume of PutKernel::token. Kernels that start a block for every token, as
// `nvlink_one_sided`, do so in both directions, and each exchange of either says that a block costs
// no more than the token's rows take over the port: the shortest of these times is the most that it
// can be unseen. The least that any exchange could show is the time of one row of the shortest.
// Whatever lies between the two, their harmonic mean is off by (most - least) / (most + least) at
// worst, and every other number by more. 1 us for other kernels.
Seconds assumed_token(const std::vector<RowExchange>& exchanges, double port_limit);

// Whether an exchange asks no more of its kernels than another of its direction: as many ranks and
// GPUs, no more tokens, no larger rows and (but for `tolerance`) no more of them for any pair, and
// no fewer multiprocessors. False where a matrix is not given.
bool asks_no_more(const RowExchange& exchange, const RowExchange& other, double tolerance);

// The exchanges with the times that they would have taken undisturbed, as far as they tell. What
// holds a kernel up (a host that starts it late, a clock that is down, a neighbour) only adds to
// its time, so that one that asks no more than another and took longer (by more than 4 %, the
// scatter that fits assume; the same for its rows) was held up for the difference.
std::vector<RowExchange> undisturbed(std::vector<RowExchange> exchanges);

// Parameters of a whole transport, and how far they are off.
struct TransportFit {
  TransportParameters parameters;
  std::vector<std::string> undetermined;  // "dispatch.fill"
  // Signed relative errors of exchanges that a fit did not see: every fourth was left out in turn.
  // In the order of the exchanges that were fitted.
  std::vector<double> held_out;
};
// All exchanges of one transport (`deepep_normal`, `deepep_low_latency`, `nvlink_one_sided`), both
// directions, over one node or several. What the cluster knows of the transport is kept
// where the exchanges say nothing of it. Throws InputError for other transports, and where the
// exchanges lack a direction that nothing is known of.
TransportFit fit_transport(const Cluster& cluster, const std::vector<RowExchange>& exchanges);

// The median of the notify steps that exchanges were measured with, seconds; absent without any.
std::optional<double> notify_of(const std::vector<RowExchange>& exchanges);

}  // namespace coterie
