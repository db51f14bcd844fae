#pragma once
// Synthetic routing, seeded: the same description gives the same trace.

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "core/yaml.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

// Every expert is as likely as any other.
struct UniformKind {};
// The expert of popularity rank r (from 1; the ranks are shuffled per layer) is drawn with weight
// r^-exponent, without replacement.
struct ZipfKind {
  double exponent = 1.0;
};
// Group-limited routing (DeepSeek): experts stand in `num_groups` equal consecutive groups, a token
// takes its top-k inside the best `num_topk_groups` of them.
enum class GroupScore : std::uint8_t {
  kRandom,   // groups drawn uniformly: the assumption of the closed form of fan-out
  kBestOne,  // a group counts as its best expert (DeepSeek-V2)
  kBestTwo,  // as the sum of its two best experts (DeepSeek-V3)
};
struct GroupLimitedKind {
  std::uint32_t num_groups = 8;
  std::uint32_t num_topk_groups = 4;
  GroupScore score = GroupScore::kBestTwo;
};
// Experts collaborate in `num_groups` groups of near-equal size, shuffled per layer. A token
// belongs to one group per layer and takes each expert from it with probability `strength` (while
// the group has any left), else from all. Group g is drawn with weight (g + 1)^-exponent.
struct PlantedKind {
  std::uint32_t num_groups = 8;
  double strength = 0.5;
  double exponent = 0.0;
};

struct WorkloadSpec {
  std::string name;
  std::uint64_t seed = 0;
  std::uint32_t num_experts = 0;
  std::uint32_t num_topk = 0;
  std::vector<std::uint32_t> layers;
  std::uint32_t num_sequences = 0;
  std::uint32_t min_tokens = 0;  // per sequence, drawn uniformly
  std::uint32_t max_tokens = 0;
  bool weights = false;
  // How much tokens of a sequence, and a token's layers, have in common. Planted groups: the
  // probability that a token's group is its sequence's, or that of the layer before. Other kinds:
  // shares of the scores' noise; their sum is at most 1.
  double sequence_correlation = 0.0;
  double layer_correlation = 0.0;
  std::variant<UniformKind, ZipfKind, GroupLimitedKind, PlantedKind> kind;
};

// Throws InputError for anything that is not a workload description.
WorkloadSpec read_workload(const YamlValue& document);
Routing generate(const WorkloadSpec& spec);

}  // namespace coterie
