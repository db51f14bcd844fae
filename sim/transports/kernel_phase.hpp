#pragma once
// Transports whose kernels move the rows: what they share. A kernel starts on every rank after a
// time of its own, holds some of the GPU's multiprocessors from then until the last of the rank's
// messages has gone and come, and moves rows no faster than its sender, its receiver, its port and
// its share for one pair of ranks allow.
//
// Sender, receiver and port are resources of the rank, the port of its GPU; they live for the phase.
// Their capacities are set so that the whole of what the rank moves takes what the transport says it
// takes: a message of m bytes of a rank's M flows at most at M / send_s beside nothing else, and all
// together end after send_s if nothing else holds them up. Rows that stay on their rank go through
// sender, receiver and memory, and cross no port.

#include <functional>
#include <memory>
#include <vector>

#include "sim/transports/transport.hpp"

namespace coterie {

// What one rank moves in a phase.
struct RankVolume {
  double rows_out = 0.0, rows_in = 0.0;
  double rows_own = 0.0;  // of both: those that stay on the rank
  double bytes_out = 0.0, bytes_in = 0.0;
  // Bytes to and from other GPUs; of kernels whose group spans domains, other domains.
  double port_out = 0.0, port_in = 0.0;
  double largest_out = 0.0;   // bytes, the most that it has for one rank of another GPU
  double largest_near = 0.0;  // likewise, of its own GPU, itself included
  double tokens = 0.0;        // whose rows these are: its own in both directions
};
struct PhaseVolumes {
  std::vector<RankVolume> ranks;       // [num_ranks]
  double row_bytes = 0.0;              // mean over all rows
  std::uint32_t num_destinations = 1;  // ranks that a sender may have rows for in this hop
  std::uint32_t ranks_per_gpu = 1;     // neighbours that share a port
  double link_s = 0.0;                 // latency between two GPUs
  bool crosses_nodes = false;          // the group spans several scale-up domains
  bool has_rounds = false;             // several messages between the same two ranks
  bool reuses_kernel = false;          // PhaseTraffic::continues
};
// Where the tokens are not given, a rank has as many as the largest of its messages has rows (those
// that it sends in a dispatch, receives in a combine).
PhaseVolumes phase_volumes(const Cluster& cluster, const PhaseTraffic& traffic);

// What a transport says of one rank; zero seconds limit nothing.
struct KernelTimes {
  double start_s = 0.0;
  double send_s = 0.0, receive_s = 0.0;
  double least_s = 0.0;  // the whole phase takes no less: where it would, all its ranks start later
  // Bytes per second between two ranks of different GPUs, and of one; zero: no limit.
  double pair_rate = 0.0, near_pair_rate = 0.0;
  double port_rate = 0.0;  // likewise, of each direction of a GPU's port
};
using KernelModel = std::function<KernelTimes(const PhaseVolumes&, const RankVolume&)>;

// The makespan of a phase whose ranks all start at zero, were every resource used without a pause:
// the latest start, and the most loaded sender, receiver, port or pair. What fits minimise; of a
// second hop the flow alone. `port_limit`: bytes per second of the hardware's links per GPU and
// direction.
double kernel_flow_s(const KernelModel& model, const PhaseVolumes& volumes, double port_limit);
double kernel_phase_s(const KernelModel& model, const PhaseVolumes& volumes, double port_limit);

// Kernels of one transport on the GPUs of a program, over all its phases.
class KernelTransport : public Transport {
 public:
  KernelTransport(const Cluster& cluster, std::uint32_t sms) : cluster_(cluster), sms_(sms) {}

  std::unique_ptr<PhaseTransport> begin(ProgramBuilder& builder, GpuResources& gpus,
                                        const PhaseTraffic& traffic) override;
  [[nodiscard]] bool moves_tokens() const override { return true; }

 protected:
  // The model of a direction, and a chance to refuse what the library cannot do.
  virtual KernelModel model(Direction direction, const PhaseVolumes& volumes) const = 0;
  // What the library makes of a message.
  [[nodiscard]] virtual Message adapted(const Message& message) const { return message; }
  [[nodiscard]] double sms() const { return sms_; }

 private:
  const Cluster& cluster_;
  std::uint32_t sms_;
  // [gpu] the event that ends the hold of the kernel begun last; the second hop of a phase signals
  // it too. Zero: none.
  std::vector<std::uint32_t> kernel_ends_;
};

}  // namespace coterie
