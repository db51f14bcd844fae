#include "workloads/placement/placement.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <regex>
#include <thread>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/random.hpp"
#include "workloads/placement/strategies.hpp"

namespace coterie {
namespace {

// Which function made the digest: version 0.1 wrote another one, without a mark.
constexpr const char* kDigestMark = "xxh3:";

std::string label_end(SequencePart part, const std::string& digest) {
  const char* const name = part == SequencePart::kAll    ? "all"
                           : part == SequencePart::kEven ? "even"
                                                         : "odd";
  return fmt::format(" {} {}", name, digest);
}

// What every kind of trace tells.
struct TraceShape {
  std::string name;  // for messages
  std::uint32_t num_experts;
  std::span<const std::uint32_t> layers;
};

TraceShape shape_of(const Trace& trace) {
  return std::visit(
      [](const auto& t) {
        return TraceShape{t.origin.empty() ? "the trace" : t.origin, t.num_experts, t.layers};
      },
      trace);
}

void check_request(const PlacementRequest& request, const PlacementStrategy& strategy,
                   const TraceShape& shape) {
  if (request.num_ranks == 0) throw InputError("ranks: found 0, expected at least 1");
  if (request.ranks_per_node == 0) {
    throw InputError("ranks per node: found 0, expected at least 1");
  }
  if (request.num_replicas > 0 && !strategy.takes_replicas) {
    throw InputError(
        fmt::format("replicas: found {} with the strategy {}, expected none: only "
                    "load_balanced replicates experts",
                    request.num_replicas, strategy.name));
  }
  if (request.max_imbalance && !strategy.takes_balance_cap) {
    throw InputError(
        fmt::format("max-imbalance: found {} with the strategy {}, expected none: "
                    "only the collaboration strategies take a balance cap",
                    *request.max_imbalance, strategy.name));
  }
  if (request.max_imbalance && !(*request.max_imbalance >= 1.0)) {
    throw InputError(fmt::format(
        "max-imbalance: found {}, expected at least 1 (the load of the fullest rank over the mean)",
        *request.max_imbalance));
  }
  if (shape.num_experts == 0) {
    throw InputError(fmt::format("{}: found 0 experts, expected at least 1", shape.name));
  }
  const std::uint64_t slots = std::uint64_t{shape.num_experts} + request.num_replicas;
  if (request.num_ranks > slots) {
    throw InputError(
        fmt::format("ranks: found {}, expected at most {}, the {} of a layer: use fewer ranks, or "
                    "load_balanced with at least {} replicas",
                    request.num_ranks, slots, request.num_replicas > 0 ? "expert slots" : "experts",
                    request.num_ranks - shape.num_experts));
  }
}

std::vector<std::uint64_t> count_load(std::span<const ExpertIdx> experts,
                                      std::uint32_t num_experts) {
  std::vector<std::uint64_t> load(num_experts, 0);
  for (const ExpertIdx expert : experts) ++load[expert];
  return load;
}

// Layers are independent, so they are shared out to threads; the result does not depend on how. The
// error of the lowest layer is thrown.
void for_each_layer(std::size_t num_layers, const std::function<void(std::size_t)>& body) {
  std::vector<std::exception_ptr> errors(num_layers);
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < num_layers; i = next++) {
      try {
        body(i);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  std::vector<std::jthread> helpers;
  const std::size_t num_threads =
      std::min<std::size_t>(num_layers, std::max(1u, std::thread::hardware_concurrency()));
  for (std::size_t i = 1; i < num_threads; ++i) helpers.emplace_back(work);
  work();
  helpers.clear();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace

ExpertHosts expert_hosts(const LayerPlacement& layer, std::uint32_t num_experts) {
  ExpertHosts hosts;
  hosts.begin.assign(num_experts + 1, 0);
  for (std::size_t rank = 0; rank < layer.rank_experts.size(); ++rank) {
    for (const ExpertIdx expert : layer.rank_experts[rank]) {
      if (expert >= num_experts) {
        throw InputError(
            fmt::format("placement of layer {}, rank {}: found expert {}, expected "
                        "one below {}",
                        layer.layer, rank, expert, num_experts));
      }
      ++hosts.begin[expert + 1u];
    }
  }
  for (std::uint32_t expert = 0; expert < num_experts; ++expert) {
    if (hosts.begin[expert + 1] == 0) {
      throw InputError(
          fmt::format("placement of layer {}: expert {} is on no rank, expected "
                      "at least one",
                      layer.layer, expert));
    }
    hosts.begin[expert + 1] += hosts.begin[expert];
  }
  hosts.ranks.resize(hosts.begin.back());
  std::vector<std::uint32_t> next(hosts.begin.begin(), hosts.begin.end() - 1);
  for (std::size_t rank = 0; rank < layer.rank_experts.size(); ++rank) {
    for (const ExpertIdx expert : layer.rank_experts[rank]) {
      hosts.ranks[next[expert]++] = static_cast<std::uint32_t>(rank);
    }
  }
  return hosts;
}

Placement make_placement(const Trace& training, const PlacementRequest& request) {
  const PlacementStrategy& strategy = find_strategy(request.strategy);
  const TraceShape shape = shape_of(training);
  check_request(request, strategy, shape);
  const auto* routing = std::get_if<Routing>(&training);
  const auto* counts = std::get_if<ExpertCounts>(&training);
  if (strategy.learns == Learns::kTokens && routing == nullptr) {
    throw InputError(
        fmt::format("{}: found expert counts only, expected a trace of tokens: {} "
                    "learns which experts are chosen together (load_balanced works "
                    "on counts)",
                    shape.name, strategy.name));
  }
  if (strategy.learns != Learns::kNothing && routing != nullptr && routing->num_tokens() == 0) {
    throw InputError(
        fmt::format("{}: found no tokens in the training part, expected some for {} "
                    "to learn from",
                    shape.name, strategy.name));
  }

  Placement placement;
  placement.strategy = request.strategy;
  placement.num_experts = shape.num_experts;
  placement.num_ranks = request.num_ranks;
  placement.ranks_per_node = request.ranks_per_node;
  placement.layers.resize(shape.layers.size());
  for_each_layer(shape.layers.size(), [&](std::size_t i) {
    std::vector<std::uint64_t> load;
    LayerTask task{shape.layers[i], shape.num_experts, 0, {}, {}, request};
    if (strategy.learns != Learns::kNothing) {
      if (routing != nullptr) {
        task.num_topk = routing->num_topk;
        task.experts = routing->layer_experts(i);
        load = count_load(task.experts, shape.num_experts);
      } else {
        const auto row =
            std::span(counts->counts).subspan(i * shape.num_experts, shape.num_experts);
        load.assign(row.begin(), row.end());
      }
      task.load = load;
    }
    LayerPlacement layer{shape.layers[i], strategy.place(task)};
    for (auto& experts : layer.rank_experts) std::sort(experts.begin(), experts.end());
    placement.layers[i] = std::move(layer);
  });
  return placement;
}

std::vector<std::string> placement_strategies() {
  std::vector<std::string> names;
  for (const PlacementStrategy& strategy : strategy_registry()) names.emplace_back(strategy.name);
  return names;
}

bool strategy_learns(std::string_view strategy) {
  return find_strategy(strategy).learns != Learns::kNothing;
}

std::vector<std::string> check(const Placement& placement) {
  std::vector<std::string> violations;
  const auto add = [&](const LayerPlacement& layer, const std::string& what) {
    violations.push_back(fmt::format("layer {}: {}", layer.layer, what));
  };
  if (placement.num_ranks == 0) violations.push_back("found 0 ranks, expected at least 1");
  if (placement.num_experts == 0) violations.push_back("found 0 experts, expected at least 1");
  if (placement.ranks_per_node == 0) {
    violations.push_back("found 0 ranks per node, expected at least 1");
  }
  for (const LayerPlacement& layer : placement.layers) {
    if (layer.rank_experts.size() != placement.num_ranks) {
      add(layer, fmt::format("found {} ranks, expected {}", layer.rank_experts.size(),
                             placement.num_ranks));
    }
    std::vector<std::uint32_t> hosts(placement.num_experts, 0);
    std::size_t fewest = layer.rank_experts.empty() ? 0 : layer.rank_experts[0].size();
    std::size_t most = fewest;
    for (std::size_t rank = 0; rank < layer.rank_experts.size(); ++rank) {
      const auto& experts = layer.rank_experts[rank];
      fewest = std::min(fewest, experts.size());
      most = std::max(most, experts.size());
      for (std::size_t i = 0; i < experts.size(); ++i) {
        if (experts[i] >= placement.num_experts) {
          add(layer, fmt::format("rank {}: found expert {}, expected one below {}", rank,
                                 experts[i], placement.num_experts));
          continue;
        }
        ++hosts[experts[i]];
        if (i > 0 && experts[i] == experts[i - 1]) {
          add(layer, fmt::format("rank {}: expert {} stands there twice", rank, experts[i]));
        } else if (i > 0 && experts[i] < experts[i - 1]) {
          add(layer, fmt::format("rank {}: expert {} follows {}, expected ascending order", rank,
                                 experts[i], experts[i - 1]));
        }
      }
    }
    bool replicated = false;
    for (std::uint32_t expert = 0; expert < placement.num_experts; ++expert) {
      replicated = replicated || hosts[expert] > 1;
      if (hosts[expert] == 0) add(layer, fmt::format("expert {} is on no rank", expert));
    }
    if (!replicated && most > fewest + 1) {
      add(layer, fmt::format("found between {} and {} experts per rank, expected counts that "
                             "differ by at most one",
                             fewest, most));
    }
  }
  return violations;
}

Placement select_layers(const Placement& placement, std::span<const std::uint32_t> layers) {
  Placement result = placement;
  result.layers.clear();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto found =
        std::find_if(placement.layers.begin(), placement.layers.end(),
                     [&](const LayerPlacement& layer) { return layer.layer == layers[i]; });
    if (placement.strategy == kMapStrategy && placement.layers.size() == layers.size()) {
      // Such a file numbers no layers: row i is the i-th MoE layer.
      result.layers.push_back(placement.layers[i]);
      result.layers.back().layer = layers[i];
    } else if (found != placement.layers.end()) {
      result.layers.push_back(*found);
    } else {
      throw InputError(
          fmt::format("placement: found no layer {}, expected every layer of the trace ({} layers, "
                      "{} to {})",
                      layers[i], layers.size(), layers.front(), layers.back()));
    }
  }
  return result;
}

std::string trace_digest(const Routing& trace) {
  ContentHash hash;
  hash.add(trace.sequence_begin);
  if (trace.num_layers() > 0) hash.add(trace.layer_experts(0));
  return kDigestMark + hex64(hash.digest());
}

std::string training_label(const Routing& trace, SequencePart part) {
  return fmt::format("{}{}", trace.origin.empty() ? "trace" : trace.origin,
                     label_end(part, trace_digest(trace)));
}

bool learnt_from(const Placement& placement, const std::string& digest, SequencePart part) {
  static const std::regex kOlderEnd(" (all|even|odd) [0-9a-f]{16}$");
  if (std::regex_search(placement.trained_on, kOlderEnd)) {
    throw InputError("placement",
                     fmt::format("trained_on \"{}\", which does not tell this version what it was "
                                 "learnt from",
                                 placement.trained_on),
                     fmt::format("a digest \"{}...\"; learn the placement again", kDigestMark));
  }
  // The name of the trace, at the beginning of the label, does not matter.
  const auto learnt = [&](SequencePart trained) {
    return placement.trained_on.ends_with(label_end(trained, digest));
  };
  if (learnt(SequencePart::kAll)) return true;
  if (part == SequencePart::kAll) {
    return learnt(SequencePart::kEven) || learnt(SequencePart::kOdd);
  }
  return learnt(part);
}

bool learnt_from(const Placement& placement, const Routing& trace, SequencePart part) {
  return learnt_from(placement, trace_digest(trace), part);
}

}  // namespace coterie
