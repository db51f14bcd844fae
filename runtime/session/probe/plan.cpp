#include "runtime/session/probe/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "core/error.hpp"
#include "core/random.hpp"

namespace coterie {
namespace {

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
constexpr std::uint32_t kTopk = 8;
// Skewed patterns begin here; below, the curves of the pair and of the all-to-all say it all.
constexpr std::uint64_t kSmallestSkewed = 1024;

struct ModelShape {
  std::uint32_t hidden;
  std::uint32_t intermediate;         // of one routed expert
  std::uint32_t shared_intermediate;  // of all shared experts
};
// DeepSeek-V2-Lite (two shared experts) and DeepSeek-V3 (one).
constexpr std::array<ModelShape, 2> kShapes{{{2048, 1408, 2816}, {7168, 2048, 2048}}};

std::vector<CommunicationCase> plan_communication(const ProbeSetting& setting) {
  std::vector<Pattern> patterns;
  patterns.reserve(7);
  if (setting.num_local_ranks > 1) patterns.push_back(Pattern::kSendRecv);
  if (setting.num_local_ranks < setting.num_ranks) patterns.push_back(Pattern::kSendRecvNodes);
  for (const Pattern pattern : {Pattern::kAllToAll, Pattern::kAllToOne, Pattern::kOneToAll,
                                Pattern::kShift, Pattern::kHotPair}) {
    patterns.push_back(pattern);
  }
  std::vector<CommunicationCase> cases;
  for (const Pattern pattern : patterns) {
    for (const std::uint64_t bytes : curve_sizes(setting.max_bytes)) {
      if (pattern >= Pattern::kAllToOne && bytes < kSmallestSkewed) continue;
      cases.push_back({"nccl", pattern, bytes});
    }
  }
  return cases;
}

std::vector<KernelCase> plan_kernels(const ProbeSetting& setting) {
  const std::uint32_t num_dests = std::min(setting.num_ranks, 512U);
  std::vector<KernelCase> cases;
  for (const ModelShape& shape : kShapes) {
    for (const auto type : {kernels::RowType::kBf16, kernels::RowType::kFp8}) {
      for (const std::uint32_t tokens : {128U, 512U, 1024U, 2048U, 4096U, 8192U, 16384U}) {
        // What expand writes is the largest of the buffers.
        const std::uint64_t bytes = std::uint64_t{tokens} * kTopk * shape.hidden * 2;
        if (bytes > 2 * kGiB / setting.ranks_per_gpu) continue;
        for (std::uint32_t rows = 1; rows <= std::min(num_dests, kTopk); rows *= 2) {
          cases.push_back({shape.hidden, type, tokens, kTopk, rows, num_dests, false});
        }
        cases.push_back({shape.hidden, type, tokens, kTopk, kTopk, num_dests, true});
      }
      const std::uint32_t rows = std::min(num_dests, kTopk);
      // What a plan of two hops adds to a launch shows where there is little else.
      cases.push_back({shape.hidden, type, 128, kTopk, rows, num_dests, false, true});
      for (const std::uint32_t tokens : {1024U, 4096U}) {
        cases.push_back({shape.hidden, type, tokens, kTopk, rows, num_dests, false, false, 4});
      }
    }
  }
  return cases;
}

std::vector<MlpCase> plan_expert_mlp(const ProbeSetting& setting) {
  std::vector<MlpCase> cases;
  for (const ModelShape& shape : kShapes) {
    for (const auto type : {kernels::GemmType::kBf16, kernels::GemmType::kFp8}) {
      if (type == kernels::GemmType::kFp8 && !setting.fp8_products) continue;
      for (const std::uint32_t experts : {8U, 16U, 32U}) {
        for (const std::uint32_t rows :
             {1U, 4U, 16U, 64U, 128U, 192U, 256U, 384U, 768U, 1536U, 4096U}) {
          const std::uint64_t bytes = std::uint64_t{experts} * rows * shape.hidden * 2;
          if (bytes > 2 * kGiB / setting.ranks_per_gpu) continue;
          for (const auto load : {ExpertLoad::kBalanced, ExpertLoad::kSkewed, ExpertLoad::kMixed}) {
            if (load != ExpertLoad::kBalanced && rows < 16) continue;  // too few rows to differ
            cases.push_back({false, shape.hidden, shape.intermediate, type, experts, load, rows});
          }
        }
        cases.push_back({false, shape.hidden, shape.intermediate, type, experts,
                         ExpertLoad::kBalanced, 16, true});
      }
    }
    for (const std::uint32_t tokens : {128U, 512U, 1024U, 2048U, 4096U, 8192U, 16384U}) {
      cases.push_back({true, shape.hidden, shape.shared_intermediate, kernels::GemmType::kBf16, 1,
                       ExpertLoad::kBalanced, tokens});
    }
    cases.push_back({true, shape.hidden, shape.shared_intermediate, kernels::GemmType::kBf16, 1,
                     ExpertLoad::kBalanced, 128, true});
  }
  return cases;
}

std::vector<OverlapCase> plan_overlap(const ProbeSetting& setting) {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  std::vector<OverlapCase> cases;
  for (const std::uint64_t bytes : {kMiB, 4 * kMiB, 16 * kMiB, 64 * kMiB}) {
    if (bytes > setting.max_bytes) continue;
    for (const std::uint64_t size : {2048U, 4096U, 8192U}) {
      cases.push_back({bytes, OverlapCase::Work::kProduct, size});
    }
    for (const std::uint64_t size : {4 * kMiB, 16 * kMiB, 64 * kMiB, 256 * kMiB, 1024 * kMiB}) {
      cases.push_back({bytes, OverlapCase::Work::kCopy, size / setting.ranks_per_gpu});
    }
  }
  return cases;
}

// The destinations that a rank's scope has, in the order in which its tokens go to them.
std::vector<std::uint32_t> scope_ranks(DirectScope scope, std::uint32_t num_ranks,
                                       std::uint32_t ranks_per_gpu, std::uint32_t rank) {
  std::vector<std::uint32_t> ranks;
  for (std::uint32_t step = 1; step < num_ranks; ++step) {
    const std::uint32_t other = (rank + step) % num_ranks;
    const bool same_gpu = other / ranks_per_gpu == rank / ranks_per_gpu;
    if (scope == DirectScope::kAll || same_gpu == (scope == DirectScope::kOwnGpu)) {
      ranks.push_back(other);
    }
  }
  return ranks;
}

std::vector<DirectCase> plan_direct(const ProbeSetting& setting) {
  using kernels::RowType;
  std::vector<DirectCase> cases;
  // Largest first, so that the shared memory is made once.
  for (const std::uint32_t hidden : {7168U, 2048U}) {
    for (const auto type : {RowType::kBf16, RowType::kFp8}) {
      for (const std::uint32_t tokens : {4096U, 1024U, 128U, 16U}) {
        if (type == RowType::kFp8 && tokens < 128) continue;  // the flags alone, as for BF16
        for (const auto scope :
             {DirectScope::kAll, DirectScope::kOtherGpus, DirectScope::kOwnGpu}) {
          const auto size = static_cast<std::uint32_t>(
              scope_ranks(scope, setting.num_ranks, setting.ranks_per_gpu, 0).size());
          if (size == 0) continue;
          const bool is_all = scope == DirectScope::kAll;
          // One GPU, or one rank per GPU: the scopes are the same.
          if (!is_all && size + 1 == setting.num_ranks) continue;
          for (const std::uint32_t rows : {1U, 4U, std::min(size, kDirectTopk)}) {
            if (rows > size || (rows == 4 && (!is_all || size <= 4)) || (rows == 1 && size == 1)) {
              continue;
            }
            cases.push_back(
                {Pattern::kAllToAll, scope, DispatchPolicy::kDedup, hidden, type, tokens, rows});
          }
          if (type == RowType::kFp8 || tokens < 128 || (hidden < 7168 && tokens < 4096)) continue;
          for (const auto pattern :
               {Pattern::kAllToOne, Pattern::kOneToAll, Pattern::kShift, Pattern::kHotPair}) {
            // Between two ranks a shift and a hot pair are the all-to-all.
            const bool needs_choice = pattern == Pattern::kShift || pattern == Pattern::kHotPair;
            if (size == 1 && needs_choice) continue;
            cases.push_back({pattern, scope, DispatchPolicy::kDedup, hidden, type, tokens, 1});
          }
        }
        if (direct_ranks_per_node(setting.num_ranks, setting.ranks_per_gpu) == 0) continue;
        for (const std::uint32_t rows : {1U, std::min({4U, setting.num_ranks - 1, kDirectTopk})}) {
          cases.push_back({Pattern::kAllToAll, DirectScope::kAll, DispatchPolicy::kHierarchical,
                           hidden, type, tokens, rows});
        }
      }
    }
  }
  return cases;
}

}  // namespace

std::string to_string(ProbePart part) {
  switch (part) {
    case ProbePart::kCommunication:
      return "communication";
    case ProbePart::kNotify:
      return "notify";
    case ProbePart::kKernels:
      return "kernels";
    case ProbePart::kExpertMlp:
      return "expert_mlp";
    case ProbePart::kOverlap:
      return "overlap";
    case ProbePart::kDirect:
      return "direct";
  }
  throw std::logic_error("no such part");
}

ProbePart probe_part(const std::string& name) {
  std::vector<std::string> names;
  for (const ProbePart part : kProbeParts) {
    if (to_string(part) == name) return part;
    names.push_back(to_string(part));
  }
  throw InputError("--parts", fmt::format("\"{}\"", name),
                   fmt::format("some of {}", fmt::join(names, ", ")));
}

std::string to_string(Pattern pattern) {
  switch (pattern) {
    case Pattern::kSendRecv:
      return "sendrecv";
    case Pattern::kSendRecvNodes:
      return "sendrecv_nodes";
    case Pattern::kAllToAll:
      return "alltoall";
    case Pattern::kAllToOne:
      return "all_to_one";
    case Pattern::kOneToAll:
      return "one_to_all";
    case Pattern::kShift:
      return "shift";
    case Pattern::kHotPair:
      return "hot_pair";
  }
  throw std::logic_error("no such pattern");
}

std::string to_string(DirectScope scope) {
  switch (scope) {
    case DirectScope::kOwnGpu:
      return "own_gpu";
    case DirectScope::kOtherGpus:
      return "other_gpus";
    case DirectScope::kAll:
      return "all";
  }
  throw std::logic_error("no such scope");
}

std::string to_string(ExpertLoad load) {
  switch (load) {
    case ExpertLoad::kBalanced:
      return "balanced";
    case ExpertLoad::kSkewed:
      return "skewed";
    case ExpertLoad::kMixed:
      return "mixed";
  }
  throw std::logic_error("no such load");
}

std::uint64_t pattern_bytes(const CommunicationCase& entry, std::uint32_t num_ranks,
                            std::uint32_t num_local_ranks, std::uint32_t src, std::uint32_t dst) {
  if (src == dst) return 0;
  const std::uint64_t bytes = entry.num_bytes;
  switch (entry.pattern) {
    case Pattern::kSendRecv:
      return src == 0 && dst == 1 ? bytes : 0;
    case Pattern::kSendRecvNodes:
      return src == 0 && dst == num_local_ranks ? bytes : 0;
    case Pattern::kAllToAll:
      return bytes;
    case Pattern::kAllToOne:
      return dst == 0 ? bytes : 0;
    case Pattern::kOneToAll:
      return src == 0 ? bytes : 0;
    case Pattern::kShift:
      return dst == (src + 1) % num_ranks ? bytes : 0;
    case Pattern::kHotPair:
      return src == 0 && dst == 1 ? kHotFactor * bytes : bytes;
  }
  throw std::logic_error("no such pattern");
}

std::vector<std::uint32_t> expert_rows(const MlpCase& entry) {
  std::vector<std::uint32_t> rows(entry.num_experts, entry.rows_per_expert);
  if (entry.load == ExpertLoad::kBalanced) return rows;
  const auto share = [&](std::uint32_t e) {
    if (entry.load == ExpertLoad::kSkewed) return 1.0 / (e + 1);
    // Steps of five reach every place of a rank's 8, 16 or 32 experts once.
    const std::uint32_t last = std::max(entry.num_experts - 1, 1U);
    return 0.5 + static_cast<double>(5 * e % entry.num_experts) / last;
  };
  double shares = 0.0;
  for (std::uint32_t e = 0; e < entry.num_experts; ++e) shares += share(e);
  const std::uint32_t total = entry.num_experts * entry.rows_per_expert;
  std::uint32_t given = 0;
  for (std::uint32_t e = 0; e < entry.num_experts; ++e) {
    rows[e] = static_cast<std::uint32_t>(total / shares * share(e));
    given += rows[e];
  }
  // What rounding down left over, one each from the first on.
  for (std::uint32_t e = 0; given < total; e = (e + 1) % entry.num_experts, ++given) ++rows[e];
  return rows;
}

std::vector<ProbePart> ProbePlan::parts() const {
  std::vector<ProbePart> parts;
  for (const ProbePart part : kProbeParts) {
    const bool empty = part == ProbePart::kCommunication ? communication.empty()
                       : part == ProbePart::kNotify      ? !notify
                       : part == ProbePart::kKernels     ? kernels.empty()
                       : part == ProbePart::kExpertMlp   ? expert_mlp.empty()
                       : part == ProbePart::kOverlap     ? overlap.empty()
                                                         : direct.empty();
    if (!empty) parts.push_back(part);
  }
  return parts;
}

ProbePlan plan_probe(const ProbeSetting& setting) {
  ProbePlan plan;
  if (setting.num_ranks > 1) {
    plan.communication = plan_communication(setting);
    plan.notify = true;
    plan.overlap = plan_overlap(setting);
    if (setting.direct) plan.direct = plan_direct(setting);
  }
  plan.kernels = plan_kernels(setting);
  plan.expert_mlp = plan_expert_mlp(setting);
  return plan;
}

std::uint32_t direct_tokens(const DirectCase& entry, std::uint32_t num_ranks,
                            std::uint32_t ranks_per_gpu, std::uint32_t rank) {
  if (entry.pattern == Pattern::kOneToAll) return rank == 0 ? entry.num_tokens : 0;
  if (entry.pattern != Pattern::kAllToOne) return entry.num_tokens;
  const auto ranks = scope_ranks(entry.scope, num_ranks, ranks_per_gpu, rank);
  const bool sends = std::find(ranks.begin(), ranks.end(), 0U) != ranks.end();
  return sends ? entry.num_tokens : 0;
}

std::vector<std::uint32_t> direct_destinations(const DirectCase& entry, std::uint32_t num_ranks,
                                               std::uint32_t ranks_per_gpu, std::uint32_t rank,
                                               std::uint32_t token) {
  const auto ranks = scope_ranks(entry.scope, num_ranks, ranks_per_gpu, rank);
  const auto size = static_cast<std::uint32_t>(ranks.size());
  switch (entry.pattern) {
    case Pattern::kAllToOne:
      return {0};
    case Pattern::kShift:
      return {ranks[0]};
    case Pattern::kHotPair: {
      if (rank != 0) return {ranks[token % size]};
      const std::uint32_t place = token % (size - 1 + kHotFactor);
      return {place < kHotFactor ? ranks[0] : ranks[place - kHotFactor + 1]};
    }
    case Pattern::kAllToAll:
    case Pattern::kOneToAll: {
      std::vector<std::uint32_t> out;
      for (std::uint32_t i = 0; i < entry.rows_per_token; ++i) {
        out.push_back(ranks[(std::uint64_t{token} * entry.rows_per_token + i) % size]);
      }
      return out;
    }
    case Pattern::kSendRecv:
    case Pattern::kSendRecvNodes:
      break;
  }
  throw std::logic_error("a pattern that the transport direct is not measured with");
}

std::uint32_t direct_ranks_per_node(std::uint32_t num_ranks, std::uint32_t ranks_per_gpu) {
  if (ranks_per_gpu > 1) return ranks_per_gpu < num_ranks ? ranks_per_gpu : 0;
  return num_ranks >= 4 && num_ranks % 2 == 0 ? num_ranks / 2 : 0;
}

LayerPlan make_direct_plan(const DirectCase& entry, std::uint32_t num_ranks,
                           std::uint32_t ranks_per_gpu) {
  Routing routing;
  routing.model = "probe";
  routing.num_experts = num_ranks * kDirectLocalExperts;
  routing.num_topk = kDirectTopk;
  routing.layers = {0};
  RankTokens tokens;
  tokens.token_begin = {0};
  LayerPlacement placement;
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    std::vector<ExpertIdx> experts(kDirectLocalExperts);
    std::iota(experts.begin(), experts.end(), static_cast<ExpertIdx>(rank * kDirectLocalExperts));
    placement.rank_experts.push_back(std::move(experts));
    const std::uint32_t num_tokens = direct_tokens(entry, num_ranks, ranks_per_gpu, rank);
    for (std::uint32_t t = 0; t < num_tokens; ++t) {
      const auto dests = direct_destinations(entry, num_ranks, ranks_per_gpu, rank, t);
      for (std::uint32_t j = 0; j < kDirectTopk; ++j) {
        const auto d = j % static_cast<std::uint32_t>(dests.size());
        const auto local = (t + j / static_cast<std::uint32_t>(dests.size())) % kDirectLocalExperts;
        routing.experts.push_back(static_cast<ExpertIdx>(dests[d] * kDirectLocalExperts + local));
      }
      tokens.trace_token.push_back(tokens.trace_token.size());
    }
    tokens.token_begin.push_back(tokens.trace_token.size());
  }
  routing.sequence_begin = {0, tokens.trace_token.size()};
  const std::uint32_t per_node = direct_ranks_per_node(num_ranks, ranks_per_gpu);
  return make_plan(routing, 0, placement, tokens,
                   {entry.policy, per_node == 0 ? ranks_per_gpu : per_node});
}

std::vector<std::uint64_t> curve_sizes(std::uint64_t max_bytes) {
  std::vector<std::uint64_t> sizes;
  for (std::uint64_t bytes = 1; bytes <= max_bytes; bytes *= 4) sizes.push_back(bytes);
  return sizes;
}

ProbeRouting make_probe_routing(const KernelCase& entry, std::uint64_t seed) {
  ProbeRouting out;
  // As many experts as DeepSeek-V2-Lite has, and enough on one destination for all copies.
  out.experts_per_dest = std::max(64 / entry.num_dests, entry.num_topk);
  out.num_experts = out.experts_per_dest * entry.num_dests;
  for (std::uint32_t e = 0; e < out.num_experts; ++e) {
    const std::uint32_t local = e % out.experts_per_dest;
    out.expert_dest.push_back(static_cast<std::uint16_t>(e / out.experts_per_dest));
    out.expert_local.push_back(static_cast<std::uint16_t>(local));
    out.second_dest.push_back(static_cast<std::uint16_t>(local % entry.num_dests));
  }
  out.weights.assign(std::size_t{entry.num_tokens} * entry.num_topk,
                     1.0F / static_cast<float>(entry.num_topk));
  out.first.assign(entry.num_dests, {0, 0});
  if (!entry.row_per_copy) out.second.assign(entry.num_dests, {0, 0});

  Random random(seed);
  std::vector<std::uint16_t> dests(entry.num_dests);
  std::vector<std::uint16_t> locals(out.experts_per_dest);
  std::iota(dests.begin(), dests.end(), std::uint16_t{0});
  std::iota(locals.begin(), locals.end(), std::uint16_t{0});
  const std::uint32_t used = std::min(entry.rows_per_token, entry.num_dests);
  for (std::uint32_t t = 0; t < entry.num_tokens; ++t) {
    random.shuffle(std::span(dests));
    std::vector<std::uint16_t> experts;
    for (std::uint32_t i = 0; i < used; ++i) {
      random.shuffle(std::span(locals));
      const std::uint32_t copies = entry.num_topk / used + (i < entry.num_topk % used ? 1U : 0U);
      kernels::BlockCounts& block = out.first[dests[i]];
      block.num_rows += entry.row_per_copy ? copies : 1;
      block.num_copies += copies;
      std::vector<std::uint32_t> passed(entry.num_dests, 0);
      for (std::uint32_t c = 0; c < copies; ++c) {
        experts.push_back(static_cast<std::uint16_t>(dests[i] * out.experts_per_dest + locals[c]));
        ++passed[out.second_dest[experts.back()]];
      }
      for (std::size_t d = 0; d < out.second.size(); ++d) {
        out.second[d].num_rows += passed[d] > 0 ? 1 : 0;
        out.second[d].num_copies += passed[d];
      }
    }
    random.shuffle(std::span(experts));
    out.experts.insert(out.experts.end(), experts.begin(), experts.end());
  }
  return out;
}

}  // namespace coterie
