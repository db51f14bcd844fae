#pragma once
// Placement: which EP rank hosts which expert, per layer.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "workloads/trace/moet.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

// One layer: the experts of every rank. An expert that stands on several ranks is replicated.
struct LayerPlacement {
  std::uint32_t layer = 0;                           // number in the model
  std::vector<std::vector<ExpertIdx>> rank_experts;  // [num_ranks], each ascending
};

struct Placement {
  std::string strategy;
  std::string trained_on;  // trace and part, empty for placements that learn nothing
  std::uint32_t num_experts = 0;
  std::uint32_t num_ranks = 0;
  std::uint32_t ranks_per_node = 1;
  std::vector<LayerPlacement> layers;

  [[nodiscard]] std::uint32_t num_nodes() const {
    return (num_ranks + ranks_per_node - 1) / ranks_per_node;
  }
};

// Flat lookup of one layer: the ranks that host an expert, ascending.
struct ExpertHosts {
  std::vector<std::uint32_t> begin;  // [num_experts + 1]
  std::vector<std::uint32_t> ranks;  // [begin.back()]
  [[nodiscard]] bool replicated() const { return ranks.size() + 1 != begin.size(); }
};
ExpertHosts expert_hosts(const LayerPlacement& layer, std::uint32_t num_experts);

struct PlacementRequest {
  std::string strategy;
  std::uint32_t num_ranks = 1;
  std::uint32_t ranks_per_node = 1;
  std::uint64_t seed = 0;
  std::optional<double> max_imbalance;  // cap on max/mean of (token, expert) pairs per rank
  std::uint32_t num_replicas = 0;       // extra slots per layer, load_balanced only
};

// The training part of a trace, whole layers. Strategies that learn nothing accept an empty one but
// need num_experts and layers.
Placement make_placement(const Trace& training, const PlacementRequest& request);

// Names of the registered strategies, in the order of DESIGN section 5.
std::vector<std::string> placement_strategies();
bool strategy_learns(std::string_view strategy);  // throws InputError for unknown names

// Every violation: an expert on no rank, a rank twice, unequal counts beyond one, ids out of range.
std::vector<std::string> check(const Placement& placement);

// The placement's layers in the order of `layers` (a trace's layer numbers). Throws InputError
// naming the first one that it lacks. Rows of a `physical_to_logical_map` carry no numbers: where
// there are as many as layers, row i is layers[i].
Placement select_layers(const Placement& placement, std::span<const std::uint32_t> layers);

// What `trained_on` says of a placement learnt on a part of `trace`: the trace's name, the part and
// a digest of the whole trace. make_placement sees the part only, so its caller sets it.
std::string training_label(const Routing& trace, SequencePart part);
// That digest alone: of the sequences' lengths and of the first layer's experts.
std::string trace_digest(const Routing& trace);
// Whether the placement was learnt on sequences of this very trace (given whole, or by the digest of
// it whole) that lie in `part`. Throws InputError for a label of version 0.1, which cannot tell.
bool learnt_from(const Placement& placement, const std::string& digest, SequencePart part);
bool learnt_from(const Placement& placement, const Routing& trace, SequencePart part);

// JSON (workloads/README.md); also reads `physical_to_logical_map` files (EPLB, vLLM, SGLang) when
// num_ranks is given.
inline constexpr std::string_view kMapStrategy = "physical_to_logical_map";
enum class PlacementFormat : std::uint8_t {
  kCoterie,  // what read_placement reads without further help
  kEplb,     // physical_to_logical_map [MoE layers][slots], rank-major: EPLB and vLLM
  kSglang,   // the same with a row for every layer of the model up to the last MoE layer; layers
             // without experts hold slot mod num_experts
};
std::optional<PlacementFormat> parse_placement_format(std::string_view name);
// The maps need equal numbers of slots on all ranks; else InputError.
void write_placement(const std::filesystem::path& path, const Placement& placement,
                     PlacementFormat format = PlacementFormat::kCoterie);
Placement read_placement(const std::filesystem::path& path,
                         std::optional<std::uint32_t> num_ranks = std::nullopt);
// The same from text; `name` stands for the path in messages.
Placement parse_placement(std::string_view text, const std::string& name,
                          std::optional<std::uint32_t> num_ranks = std::nullopt);

}  // namespace coterie
