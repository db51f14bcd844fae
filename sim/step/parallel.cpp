#include "sim/step/parallel.hpp"

namespace coterie {

RankCoordinates coordinates_of(const ParallelSizes& parallel, std::uint32_t rank) {
  RankCoordinates at;
  const std::uint32_t stage_ranks = parallel.tp * parallel.cp * parallel.dp;
  const std::uint32_t in_stage = rank % stage_ranks;
  at.pp = rank / stage_ranks;
  at.tp = in_stage % parallel.tp;
  at.cp = in_stage / parallel.tp % parallel.cp;
  at.dp = in_stage / (parallel.tp * parallel.cp);
  at.ep = in_stage % parallel.ep;
  at.edp = in_stage / parallel.ep;
  return at;
}

std::uint32_t rank_of(const ParallelSizes& parallel, const RankCoordinates& at) {
  return at.tp + parallel.tp * (at.cp + parallel.cp * (at.dp + parallel.dp * at.pp));
}

std::vector<std::uint32_t> group_of(const ParallelSizes& parallel, GroupKind kind,
                                    std::uint32_t rank) {
  const RankCoordinates at = coordinates_of(parallel, rank);
  const std::uint32_t stage_ranks = parallel.tp * parallel.cp * parallel.dp;
  const std::uint32_t stage = at.pp * stage_ranks;
  const std::uint32_t in_stage = rank - stage;
  const auto strided = [](std::uint32_t first, std::uint32_t stride, std::uint32_t num) {
    std::vector<std::uint32_t> ranks(num);
    for (std::uint32_t i = 0; i < num; ++i) ranks[i] = first + i * stride;
    return ranks;
  };
  switch (kind) {
    case GroupKind::kTensor:
      return strided(rank - at.tp, 1, parallel.tp);
    case GroupKind::kContext:
      return strided(rank - at.cp * parallel.tp, parallel.tp, parallel.cp);
    case GroupKind::kData:
      return strided(stage + at.tp + at.cp * parallel.tp, parallel.tp * parallel.cp, parallel.dp);
    case GroupKind::kDataContext:
      return strided(stage + at.tp, parallel.tp, parallel.cp * parallel.dp);
    case GroupKind::kExpert:
      return strided(rank - at.ep, 1, parallel.ep);
    case GroupKind::kExpertData:
      return strided(stage + at.ep, parallel.ep, parallel.edp());
    case GroupKind::kPipeline:
      return strided(in_stage, stage_ranks, parallel.pp);
    case GroupKind::kEmbedding: {
      const std::uint32_t last = parallel.pp - 1;
      if (at.pp != 0 && at.pp != last) return {rank};
      std::vector<std::uint32_t> ends{in_stage};
      if (last > 0) ends.push_back(in_stage + last * stage_ranks);
      return ends;
    }
  }
  return {};
}

std::vector<std::vector<std::uint32_t>> groups_of(const ParallelSizes& parallel, GroupKind kind) {
  std::vector<std::vector<std::uint32_t>> groups;
  for (std::uint32_t rank = 0; rank < parallel.num_ranks(); ++rank) {
    std::vector<std::uint32_t> group = group_of(parallel, kind, rank);
    if (group.front() == rank) groups.push_back(std::move(group));
  }
  return groups;
}

}  // namespace coterie
