// `ideal`: the wires alone. A message takes what its route's latency and its share of the links
// take; at most `sends_in_flight` of a rank's are under way at once, as that is the hardware's.

#include "sim/transports/makers.hpp"
#include "sim/transports/parts.hpp"

namespace coterie {
namespace {

class IdealPhase : public PhaseTransport {
 public:
  IdealPhase(ProgramBuilder& builder, const Cluster& cluster, SendQueues& queues,
             const PhaseTraffic& traffic)
      : builder_(builder),
        cluster_(cluster),
        queues_(queues),
        first_gpu_(traffic.first_gpu),
        ready_(traffic.ready.begin(), traffic.ready.end()) {}

  std::optional<std::uint32_t> send(const Message& message, std::uint32_t after,
                                    std::span<const std::uint32_t> signals) override {
    if (message.src == message.dst) return std::nullopt;
    const Tier tier = tier_of(cluster_, message.src, message.dst);
    return builder_.add(
        {.src = message.src,
         .dst = message.dst,
         .amount = message.bytes,
         .queue = queues_.of(builder_, message.src, tier),
         .waits_for = when_both(builder_, message.src, ready_[message.src - first_gpu_], after),
         .signals = signals});
  }

 private:
  ProgramBuilder& builder_;
  const Cluster& cluster_;
  SendQueues& queues_;
  std::uint32_t first_gpu_;
  std::vector<std::uint32_t> ready_;
};

class Ideal : public Transport {
 public:
  explicit Ideal(const Cluster& cluster) : cluster_(cluster), queues_(cluster) {}
  std::unique_ptr<PhaseTransport> begin(ProgramBuilder& builder, GpuResources& /*gpus*/,
                                        const PhaseTraffic& traffic) override {
    return std::make_unique<IdealPhase>(builder, cluster_, queues_, traffic);
  }

 private:
  const Cluster& cluster_;
  SendQueues queues_;
};

}  // namespace

std::unique_ptr<Transport> make(const Cluster& cluster, const IdealParameters& /*parameters*/) {
  return std::make_unique<Ideal>(cluster);
}

}  // namespace coterie
