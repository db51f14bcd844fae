#pragma once
// Placement: which EP rank hosts which expert, per layer.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "workloads/trace/moet.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

// The rule by which an engine chooses among the replicas of an expert. What each does with a token
// stands in plan/host_choice.hpp.
enum class ReplicaChoice : std::uint8_t {
  kLocality,  // ours: the own rank, the own node, a rank that the token goes to anyway
  kStatic,    // SGLang's `static`: every rank has one replica of each expert, near if there is one
  kRandom,    // SGLang's `dynamic`: drawn anew for every token
  kRoundRobin,  // vLLM, TensorRT-LLM: by the position in the batch modulo the number of replicas
};
std::string to_string(ReplicaChoice choice);
std::optional<ReplicaChoice> parse_replica_choice(std::string_view name);
// "locality, static, random, round_robin".
std::string replica_choice_names();

// One layer: the experts of every rank. An expert that stands on several ranks is replicated.
struct LayerPlacement {
  std::uint32_t layer = 0;                           // number in the model
  std::vector<std::vector<ExpertIdx>> rank_experts;  // [num_ranks], each ascending
};

// What LayerPlacement::layer says, which depends on the file that a placement was read from.
enum class LayerRows : std::uint8_t {
  kNumbered,  // the layer's number in the model
  kBare,      // the row's position in a file that does not number its rows
  kMoeOnly,   // the same where dense layers have no rows
  kShared,    // nothing: there is one row, for all layers
};

struct Placement {
  std::string strategy;
  std::string trained_on;  // trace and part, empty for placements that learn nothing
  std::uint32_t num_experts = 0;
  std::uint32_t num_ranks = 0;
  std::uint32_t ranks_per_node = 1;
  ReplicaChoice replica_choice = ReplicaChoice::kLocality;  // the rule it was made for
  LayerRows layer_rows = LayerRows::kNumbered;
  std::vector<std::string> keys_left_aside;  // of an engine's file: known to be there, not used
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

class LayerTimes;  // layer_times.hpp

struct PlacementRequest {
  std::string strategy;
  std::uint32_t num_ranks = 1;
  std::uint32_t ranks_per_node = 1;  // divides num_ranks, or is at least as large
  std::uint64_t seed = 0;
  // Caps on the (token, expert) pairs of the fullest rank, and of the fullest node, over the mean.
  // Replicas share a load equally under random and round_robin, by the number of ranks that use
  // each under static, and as the training tokens choose under locality.
  std::optional<double> max_imbalance;
  std::optional<double> max_node_imbalance;
  std::uint32_t num_replicas = 0;  // extra slots per layer
  ReplicaChoice replica_choice = ReplicaChoice::kLocality;
  std::uint32_t num_starts = 4;  // of the fan-out search, which keeps the best; at least 1
  // Threads that place layers; 0: as many as the machine has cores. The result is the same.
  unsigned num_jobs = 0;
  // What predicts times, for the strategies that need it (strategy_needs_times).
  std::shared_ptr<const LayerTimes> times = nullptr;
};

// The training part of a trace, whole layers. Strategies that learn nothing accept an empty one but
// need num_experts and layers.
Placement make_placement(const Trace& training, const PlacementRequest& request);

// Names of the registered strategies, in the order of the registry.
std::vector<std::string> placement_strategies();
bool strategy_learns(std::string_view strategy);       // throws InputError for unknown names
bool strategy_needs_times(std::string_view strategy);  // likewise

// Every violation: an expert on no rank, a rank twice, unequal counts beyond one, ids out of range.
std::vector<std::string> check(const Placement& placement);

// The placement's layers in the order of `layers` (a trace's layer numbers). Throws InputError
// naming the first one that it lacks. Bare rows are the layers of the whole model where they reach
// beyond the trace's last layer; else as many rows as layers are those layers, and up to
// three more are of the multi-token prediction (MTP) layers at a model's end.
Placement select_layers(const Placement& placement, std::span<const std::uint32_t> layers);

// Throws InputError, naming the file, where the placement is not one of `num_experts` experts per
// layer. Engines' files do not say the number: an expert that they miss at the end is named.
void expect_experts(const Placement& placement, std::uint32_t num_experts, const std::string& name);

// What `trained_on` says of a placement learnt on a part of `trace`: the trace's name, the part and
// a digest of the whole trace. make_placement sees the part only, so its caller sets it.
std::string training_label(const Routing& trace, SequencePart part);
// That digest alone: of the sequences' lengths and of the first layer's experts.
std::string trace_digest(const Routing& trace);
// Whether the placement was learnt on sequences of this very trace (given whole, or by the digest of
// it whole) that lie in `part`. Throws InputError for a label of version 0.1, which cannot tell.
bool learnt_from(const Placement& placement, const std::string& digest, SequencePart part);
bool learnt_from(const Placement& placement, const Routing& trace, SequencePart part);

// Files: our JSON (workloads/PLACEMENTS.md) and what serving engines read (engine_formats.cpp).
inline constexpr std::string_view kMapStrategy = "physical_to_logical_map";
enum class PlacementFormat : std::uint8_t {
  kCoterie,     // what read_placement reads without further help
  kEplb,        // physical_to_logical_map [MoE layers][slots], rank-major, as EPLB returns it
  kSglang,      // the same with a row for every layer of the model: SGLang's --init-expert-location
  kTrtllm,      // YAML, initial_global_assignments by layer number: TensorRT-LLM's load balancer
  kVllmAscend,  // JSON, a list of devices per MoE layer: vLLM-Ascend's expert_map_path
};
std::optional<PlacementFormat> parse_placement_format(std::string_view name);
// "coterie, eplb, sglang, trtllm, vllm-ascend".
std::string placement_format_names();
// The rule that the engine of a format applies by default; locality for our own.
ReplicaChoice default_replica_choice(PlacementFormat format);

// What a model says beyond the trace, where it is known.
struct ModelLayers {
  std::uint32_t num_layers = 0;           // of the whole model
  std::vector<std::uint32_t> moe_layers;  // ascending
};
// Why the engine of the format could not load the placement from this path, one sentence each.
std::vector<std::string> loading_problems(const Placement& placement, PlacementFormat format,
                                          const std::filesystem::path& path,
                                          const std::optional<ModelLayers>& model);
// The options that make the engine load the file, as text with comments; empty for formats that no
// engine reads by an option.
std::string launch_flags(const Placement& placement, PlacementFormat format,
                         const std::filesystem::path& path);
// Throws InputError where loading_problems has something to say, and for unsound placements.
void write_placement(const std::filesystem::path& path, const Placement& placement,
                     PlacementFormat format = PlacementFormat::kCoterie,
                     const std::optional<ModelLayers>& model = std::nullopt);
// Reads all of the formats, told apart by what they hold, and bare rows: a list of rows, one row
// that all layers share, or {"model_maps": {NAME: {"physical_to_logical_map": ...}}} with one name.
// Engines' files need `num_ranks`, but for vLLM-Ascend's, which lists devices.
Placement read_placement(const std::filesystem::path& path,
                         std::optional<std::uint32_t> num_ranks = std::nullopt);
// The same from text; `name` stands for the path in messages.
Placement parse_placement(std::string_view text, const std::string& name,
                          std::optional<std::uint32_t> num_ranks = std::nullopt);

}  // namespace coterie
