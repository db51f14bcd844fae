#pragma once
// Times work on the device as the executor does: enqueued behind a closed gate, between events,
// after a small exchange that lines the ranks up.

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda.hpp"
#include "runtime/control/group.hpp"
#include "runtime/device/communicator.hpp"
#include "runtime/device/gate.hpp"

namespace coterie {

struct TimedWork {
  std::string kind;
  std::function<void(cudaStream_t)> enqueue;
  // On the second stream, which starts when the sample does: runs beside the work of the first.
  bool beside = false;
};

struct SampleLimits {
  std::uint32_t least = 4;
  std::uint32_t most = 15;
  double budget_s = 0.25;  // of the device, for all samples; decides between least and most
  // Samples behind one gate. All that is enqueued behind it must fit the device's queue, some
  // hundred launches and events, or the host would wait for the gate that it has to open.
  std::uint32_t per_gate = 1;
  // Samples of more than a millisecond stand behind a gate of their own, and for this part of its time
  // the device rests behind each: what draws as much power as the products of a layer would run
  // slower without the pauses that a layer has.
  double rest = 0.0;
  // Two more streams wait for the end of every sample, as the streams of the hops wait beside the main
  // one in a plan of two hops.
  bool among_streams = false;
};

// One work's samples over the ranks; at rank 0 only, empty elsewhere.
struct WorkSamples {
  std::vector<double> slowest_us;
  std::vector<double> fastest_us;
  std::vector<double> ranks_us;  // [num_ranks] the median of each rank's own samples
};

class Sampler {
 public:
  // `communicator`: null for a single rank.
  Sampler(ControlGroup& group, Communicator* communicator);

  // Collective: all works in sequence per sample, after two passes that are not counted (the first
  // without a gate: connections, kernels and plans that are made at their first use wait for the
  // device). `before` is enqueued ahead of every sample and not timed.
  std::vector<WorkSamples> measure(const std::string& name, std::span<const TimedWork> works,
                                   const SampleLimits& limits,
                                   const std::function<void(cudaStream_t)>& before = {});

 private:
  // Seconds, [num_samples][works].
  std::vector<double> pass(const std::string& name, std::span<const TimedWork> works,
                           std::uint32_t num_samples, bool gated, bool among_streams,
                           const std::function<void(cudaStream_t)>& before);
  void line_up();

  ControlGroup& group_;
  Communicator* communicator_;
  kernels::Stream main_;
  kernels::Stream beside_;
  kernels::Stream waiting_[2];
  kernels::DeviceBuffer<std::byte> waited_;  // a byte of each of these
  kernels::DeviceBuffer<std::byte> line_up_;
  std::vector<kernels::Event> events_;
  kernels::Event fork_;
  Gate gate_;  // opens before the streams go
};

}  // namespace coterie
