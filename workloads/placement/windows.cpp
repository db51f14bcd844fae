#include "workloads/placement/windows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/random.hpp"

namespace coterie {
Routing concatenate(std::span<const Routing> traces) {
  const Routing& first = traces.front();
  Routing all = routing_head(first);
  all.layers = first.layers;
  all.sequence_begin.push_back(0);
  const auto shape = [](const Routing& routing) {
    return fmt::format("{} ({} to {}), top-{} of {}", counted(routing.num_layers(), "layer"),
                       routing.layers.empty() ? 0 : routing.layers.front(),
                       routing.layers.empty() ? 0 : routing.layers.back(), routing.num_topk,
                       counted(routing.num_experts, "expert"));
  };
  for (const Routing& trace : traces) {
    if (shape(trace) != shape(first) || trace.layers != first.layers) {
      throw InputError(fmt::format("trace {}", trace.origin), shape(trace),
                       fmt::format("{}, as {} has", shape(first), first.origin));
    }
    const std::uint64_t begin = all.num_tokens();
    for (std::size_t s = 1; s < trace.sequence_begin.size(); ++s) {
      all.sequence_begin.push_back(begin + trace.sequence_begin[s]);
    }
  }
  for (std::size_t i = 0; i < all.num_layers(); ++i) {
    for (const Routing& trace : traces) {
      const auto layer = trace.layer_experts(i);
      all.experts.insert(all.experts.end(), layer.begin(), layer.end());
    }
  }
  return all;
}

std::vector<TokenRange> sequence_windows(const Routing& routing, std::uint64_t min_tokens) {
  if (routing.num_tokens() < min_tokens || routing.num_tokens() == 0) {
    throw InputError(fmt::format("trace {}", routing.origin),
                     counted(routing.num_tokens(), "token"),
                     fmt::format("at least {}, one window", min_tokens));
  }
  std::vector<TokenRange> windows;
  std::uint64_t first = 0;
  for (std::uint64_t s = 0; s < routing.num_sequences(); ++s) {
    if (routing.sequence_begin[s + 1] - routing.sequence_begin[first] < min_tokens) continue;
    windows.emplace_back(first, s + 1);
    first = s + 1;
  }
  windows.back().second = routing.num_sequences();
  return windows;
}

std::vector<Routing> steps_of(const Routing& routing, std::uint32_t num_ranks,
                              std::uint32_t tokens_per_rank) {
  const std::uint64_t per_step = std::uint64_t{num_ranks} * tokens_per_rank;
  std::vector<Routing> steps;
  for (std::uint64_t begin = 0; begin + per_step <= routing.num_tokens(); begin += per_step) {
    std::vector<TokenRange> ranges;
    for (std::uint64_t rank = 0; rank < num_ranks; ++rank) {
      const std::uint64_t first = begin + rank * tokens_per_rank;
      ranges.emplace_back(first, first + tokens_per_rank);
    }
    steps.push_back(select_tokens(routing, ranges));
  }
  return steps;
}

Routing draw_tokens(const Routing& routing, std::uint64_t num_tokens, std::uint64_t seed) {
  if (num_tokens > routing.num_tokens()) throw std::logic_error("no so many tokens");
  std::vector<std::size_t> order(routing.num_sequences());
  std::iota(order.begin(), order.end(), std::size_t{0});
  Random random(seed);
  random.shuffle(std::span(order));
  std::vector<TokenRange> ranges;
  std::uint64_t left = num_tokens;
  for (std::size_t i = 0; left > 0; ++i) {
    const std::uint64_t first = routing.sequence_begin[order[i]];
    const std::uint64_t length = std::min(left, routing.sequence_begin[order[i] + 1] - first);
    ranges.emplace_back(first, first + length);
    left -= length;
  }
  return select_tokens(routing, ranges);
}

}  // namespace coterie
