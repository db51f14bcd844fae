#pragma once
// Runs the messages of one phase through a transport and an engine, for known answers.

#include <vector>

#include "sim/engines/engine.hpp"
#include "sim/transports/transport.hpp"

namespace coterie::testing {

// One phase whose ranks are ready at the start; all messages may leave at once.
struct PhaseRun {
  Program program;
  Execution execution;
  std::vector<std::optional<std::uint32_t>> ops;  // what send() returned, per message

  [[nodiscard]] double finish_s(std::size_t message) const {
    return execution.finish_s[ops[message].value()];
  }
};

inline PhaseRun run_phase(const Cluster& cluster, const TransportChoice& choice,
                          const std::vector<Message>& messages,
                          Direction direction = Direction::kDispatch, bool continues = false,
                          const std::vector<std::uint32_t>& num_tokens = {}) {
  const auto transport = make_transport(cluster, choice);
  PhaseRun run;
  ProgramBuilder builder;
  const std::vector<std::uint32_t> ready(cluster.num_gpus(), kStartEvent);
  GpuResources gpus(builder, cluster.gpu, cluster.ranks_per_gpu);
  const auto phase =
      transport->begin(builder, gpus, {direction, continues, messages, 0, ready, num_tokens});
  for (const Message& message : messages) {
    run.ops.push_back(phase->send(message, kStartEvent, {}));
  }
  run.program = std::move(builder).finish();
  const Network network(cluster);
  run.execution = run_flow(resolve(run.program, network), {.relative_precision = 0.0});
  return run;
}

}  // namespace coterie::testing
