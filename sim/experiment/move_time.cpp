#include "sim/experiment/move_time.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "sim/engines/engine.hpp"

namespace coterie {

double move_time_s(const Network& network, const MoveCounts& moves, std::uint32_t num_ranks,
                   double expert_bytes) {
  if (num_ranks > network.num_gpus()) {
    throw InputError(fmt::format("topology {}", network.cluster().name),
                     fmt::format("{} GPUs", network.num_gpus()),
                     fmt::format("at least {}, one per rank", num_ranks));
  }
  if (moves.total == 0) return 0.0;
  ProgramBuilder builder;
  for (std::uint32_t src = 0; src < num_ranks; ++src) {
    for (std::uint32_t dst = 0; dst < num_ranks; ++dst) {
      const std::uint64_t experts = moves.pairs[std::size_t{src} * num_ranks + dst];
      if (experts == 0) continue;
      builder.add_transfer(src, dst, static_cast<double>(experts) * expert_bytes, kStartEvent, {});
    }
  }
  const Program program = std::move(builder).finish();
  return run_engine("flow", resolve(program, network), {}).makespan_s;
}

}  // namespace coterie
