#include "workloads/placement/placement.hpp"

#include <algorithm>
#include <array>
#include <regex>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/random.hpp"
#include "workloads/placement/distance.hpp"
#include "workloads/placement/layer_times.hpp"
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

// That the times are those of as many ranks.
void check_times(const PlacementRequest& request) {
  const LayerCost& cost = request.times->cost();
  if (cost.num_ranks == request.num_ranks && cost.ranks_per_node == request.ranks_per_node) return;
  throw InputError(
      fmt::format("{}, {} per node", counted(request.num_ranks, "rank"), request.ranks_per_node),
      fmt::format("times predicted for {}, {} per node", counted(cost.num_ranks, "rank"),
                  cost.ranks_per_node),
      "the same ranks");
}

void check_request(const PlacementRequest& request, const PlacementStrategy& strategy,
                   const TraceShape& shape) {
  if (request.num_ranks == 0) throw InputError("ranks: found 0, expected at least 1");
  if (request.ranks_per_node == 0) {
    throw InputError("ranks per node: found 0, expected at least 1");
  }
  if (strategy.needs_times && request.times == nullptr) {
    throw InputError(fmt::format(
        "strategy {}: found no cluster to predict times on, expected one: it is placed "
        "for a topology, a transport and a dispatch policy (`coterie place --topology`)",
        strategy.name));
  }
  if (strategy.needs_times) check_times(request);
  if (request.num_starts == 0) throw InputError("starts: found 0, expected at least 1");
  if (request.num_replicas > 0 && !strategy.takes_replicas) {
    throw InputError(
        fmt::format("replicas: found {} with the strategy {}, expected none: only "
                    "the strategies that learn replicate experts",
                    request.num_replicas, strategy.name));
  }
  const auto check_cap = [&](std::string_view name, const std::optional<double>& cap,
                             std::string_view part) {
    if (cap && !strategy.takes_balance_cap) {
      throw InputError(
          fmt::format("{}: found {} with the strategy {}, expected none: "
                      "only the collaboration strategies take a balance cap",
                      name, *cap, strategy.name));
    }
    if (cap && !(*cap >= 1.0)) {
      throw InputError(fmt::format(
          "{}: found {}, expected at least 1 (the load of the fullest {} over the mean)", name,
          *cap, part));
    }
  };
  check_cap("max-imbalance", request.max_imbalance, "rank");
  check_cap("max-node-imbalance", request.max_node_imbalance, "node");
  if (shape.num_experts == 0) {
    throw InputError(fmt::format("{}: found 0 experts, expected at least 1", shape.name));
  }
  const std::uint64_t slots = std::uint64_t{shape.num_experts} + request.num_replicas;
  if (slots > kMaxExperts) {
    throw InputError(fmt::format("replicas: found {}, expected at most {} expert slots in a layer",
                                 request.num_replicas, kMaxExperts));
  }
  if (request.num_ranks > slots) {
    throw InputError(
        fmt::format("ranks: found {}, expected at most {}, the {} of a layer: use fewer ranks, or "
                    "load_balanced with at least {}",
                    request.num_ranks, slots, request.num_replicas > 0 ? "expert slots" : "experts",
                    counted(request.num_ranks - shape.num_experts, "replica")));
  }
  if (request.ranks_per_node < request.num_ranks &&
      request.num_ranks % request.ranks_per_node != 0) {
    throw InputError(
        fmt::format("ranks per node: found {} for {}, which leaves a last node of {}, "
                    "expected a number that divides the ranks",
                    request.ranks_per_node, counted(request.num_ranks, "rank"),
                    request.num_ranks % request.ranks_per_node));
  }
}

std::vector<std::uint64_t> count_load(std::span<const ExpertIdx> experts,
                                      std::uint32_t num_experts) {
  std::vector<std::uint64_t> load(num_experts, 0);
  for (const ExpertIdx expert : experts) ++load[expert];
  return load;
}

// The rank of every token where sequence i is dealt to rank i mod P.
std::vector<std::uint32_t> round_robin_ranks(const Routing& routing, std::uint32_t num_ranks) {
  std::vector<std::uint32_t> ranks;
  ranks.reserve(routing.num_tokens());
  for (std::size_t s = 0; s + 1 < routing.sequence_begin.size(); ++s) {
    ranks.insert(ranks.end(), routing.sequence_begin[s + 1] - routing.sequence_begin[s],
                 static_cast<std::uint32_t>(s % num_ranks));
  }
  return ranks;
}

constexpr std::array<std::pair<ReplicaChoice, std::string_view>, 4> kReplicaChoices = {{
    {ReplicaChoice::kLocality, "locality"},
    {ReplicaChoice::kStatic, "static"},
    {ReplicaChoice::kRandom, "random"},
    {ReplicaChoice::kRoundRobin, "round_robin"},
}};

}  // namespace

std::string to_string(ReplicaChoice choice) {
  for (const auto& [value, name] : kReplicaChoices) {
    if (value == choice) return std::string(name);
  }
  throw Error(ExitCode::kInternalError, "a choice among replicas has no name");
}

std::optional<ReplicaChoice> parse_replica_choice(std::string_view name) {
  for (const auto& [value, known] : kReplicaChoices) {
    if (known == name) return value;
  }
  return std::nullopt;
}

std::string replica_choice_names() {
  std::string names;
  for (const auto& [value, name] : kReplicaChoices) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  }
  return names;
}

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
  placement.replica_choice = request.replica_choice;
  const std::vector<std::uint32_t> token_rank =
      strategy.learns == Learns::kTokens && request.num_replicas > 0
          ? round_robin_ranks(*routing, request.num_ranks)
          : std::vector<std::uint32_t>{};
  for_each_layer(request.num_jobs, shape.layers.size(), [&](std::size_t i) {
    std::vector<std::uint64_t> load;
    LayerTask task{shape.layers[i], shape.num_experts, 0, {}, {}, request, token_rank};
    if (routing != nullptr) task.sequence_begin = routing->sequence_begin;
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

bool strategy_needs_times(std::string_view strategy) {
  return find_strategy(strategy).needs_times;
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
      add(layer, fmt::format("found {}, expected {}", counted(layer.rank_experts.size(), "rank"),
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
      add(layer, fmt::format("found between {} and {} per rank, expected counts that "
                             "differ by at most one",
                             fewest, counted(most, "expert")));
    }
  }
  return violations;
}

namespace {

// Rows of the multi-token prediction layers that a map may have after those of the model's layers.
constexpr std::size_t kMaxMtpRows = 3;

// The row of every layer in a map of bare rows.
std::vector<std::size_t> map_rows(const Placement& placement,
                                  std::span<const std::uint32_t> layers) {
  const std::size_t num_rows = placement.layers.size();
  std::vector<std::size_t> rows;
  // As many rows as MoE layers; or a row for every layer of the model, the dense ones included; or
  // too few for that, so that what is more than the MoE layers can only follow them.
  const bool by_number = placement.layer_rows == LayerRows::kBare && num_rows != layers.size() &&
                         num_rows > layers.back();
  if (!by_number && (num_rows < layers.size() || num_rows > layers.size() + kMaxMtpRows)) {
    throw InputError(fmt::format(
        "placement: found {}, expected {} (a row per MoE layer of the trace), up to {} more "
        "for MTP layers, or at least {} (a row per layer of the model)",
        counted(num_rows, "row"), layers.size(), kMaxMtpRows, layers.back() + 1));
  }
  for (std::size_t i = 0; i < layers.size(); ++i) rows.push_back(by_number ? layers[i] : i);
  return rows;
}

}  // namespace

Placement select_layers(const Placement& placement, std::span<const std::uint32_t> layers) {
  Placement result = placement;
  result.layers.clear();
  if (layers.empty()) return result;
  if (placement.layer_rows != LayerRows::kNumbered) {
    const std::vector<std::size_t> rows = placement.layer_rows == LayerRows::kShared
                                              ? std::vector<std::size_t>(layers.size(), 0)
                                              : map_rows(placement, layers);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      result.layers.push_back(placement.layers[rows[i]]);
      result.layers.back().layer = layers[i];
    }
    result.layer_rows = LayerRows::kNumbered;
    return result;
  }
  for (const std::uint32_t number : layers) {
    const auto found =
        std::find_if(placement.layers.begin(), placement.layers.end(),
                     [&](const LayerPlacement& layer) { return layer.layer == number; });
    if (found == placement.layers.end()) {
      throw InputError(
          fmt::format("placement: found no layer {}, expected every layer of the trace ({}, "
                      "{} to {})",
                      number, counted(layers.size(), "layer"), layers.front(), layers.back()));
    }
    result.layers.push_back(*found);
  }
  return result;
}

std::string trace_digest(const Routing& trace) {
  ContentHash hash;
  hash.add(trace.sequence_begin);
  if (trace.num_layers() > 0) hash.add(trace.layer_experts(0));
  return kDigestMark + hex64(hash.digest());
}

void expect_experts(const Placement& placement, std::uint32_t num_experts,
                    const std::string& name) {
  if (placement.num_experts == num_experts) return;
  if (placement.layer_rows != LayerRows::kNumbered && placement.num_experts < num_experts) {
    throw InputError(name, fmt::format("no slot of expert {}", placement.num_experts),
                     fmt::format("every one of the trace's {}", counted(num_experts, "expert")));
  }
  throw InputError(name, fmt::format("a placement of {}", counted(placement.num_experts, "expert")),
                   fmt::format("{}, as the trace has", num_experts));
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
