#pragma once
// Which GPU does what: the order of Megatron-LM, in which a rank's coordinates change from fastest
// to slowest as tp, cp, dp, pp for attention and dense parts, and ep, edp, pp for routed experts.
//
//   rank = tp_idx + tp * (cp_idx + cp * (dp_idx + dp * pp_idx))
//        = ep_idx + ep * (edp_idx + edp * pp_idx)
//
// So EP groups are consecutive GPUs of one pipeline stage, and span tp, cp and dp ranks.

#include <cstdint>
#include <vector>

#include "workloads/step.hpp"

namespace coterie {

struct RankCoordinates {
  std::uint32_t tp = 0, cp = 0, dp = 0, pp = 0;
  std::uint32_t ep = 0, edp = 0;
  bool operator==(const RankCoordinates&) const = default;
};

enum class GroupKind : std::uint8_t {
  kTensor,       // all-reduce, or reduce-scatter and all-gather, of activations
  kContext,      // keys and values of other parts of a sequence
  kData,         // dp alone
  kDataContext,  // dp x cp: gradients of attention and dense parts
  kExpert,       // dispatch and combine
  kExpertData,   // gradients of routed experts
  kPipeline,     // stages that pass activations on
  kEmbedding,    // first and last stage, which share tied embeddings
};

RankCoordinates coordinates_of(const ParallelSizes& parallel, std::uint32_t rank);
std::uint32_t rank_of(const ParallelSizes& parallel,
                      const RankCoordinates& at);  // ep, edp not read
// Ranks of every group of a kind, ascending along the varying coordinate; groups in order of their
// first rank. Every rank is in exactly one group (kEmbedding: first and last stage alone).
std::vector<std::vector<std::uint32_t>> groups_of(const ParallelSizes& parallel, GroupKind kind);
// The group of one rank.
std::vector<std::uint32_t> group_of(const ParallelSizes& parallel, GroupKind kind,
                                    std::uint32_t rank);

}  // namespace coterie
