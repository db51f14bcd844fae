#include "runtime/session/measure.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>

#include "core/error.hpp"
#include "core/statistics.hpp"
#include "runtime/control/channel.hpp"

namespace coterie {

std::string pack_times(const RankTimes& times) {
  Packer packer;
  packer.number<std::uint64_t>(times.size());
  for (const auto& layers : times) {
    packer.number<std::uint64_t>(layers.size());
    for (const LayerTimes& layer : layers) {
      packer.number<std::uint64_t>(layer.phases.size());
      for (const PhaseSpan& span : layer.phases) {
        packer.number(static_cast<std::uint8_t>(span.phase))
            .number(span.begin_s)
            .number(span.end_s);
      }
    }
  }
  return packer.take();
}

RankTimes unpack_times(const std::string& bytes) {
  Unpacker unpacker(bytes);
  RankTimes times(unpacker.number<std::uint64_t>());
  for (auto& layers : times) {
    layers.resize(unpacker.number<std::uint64_t>());
    for (LayerTimes& layer : layers) {
      layer.phases.resize(unpacker.number<std::uint64_t>());
      for (PhaseSpan& span : layer.phases) {
        span.phase = static_cast<Phase>(unpacker.number<std::uint8_t>());
        span.begin_s = unpacker.number<double>();
        span.end_s = unpacker.number<double>();
      }
    }
  }
  return times;
}

void fill_times(const std::vector<RankTimes>& ranks, std::size_t layer_idx, LayerReport& report) {
  const std::size_t num_iterations = ranks.front().size();
  report.samples_s.assign(num_iterations, 0.0);
  for (std::size_t i = 0; i < num_iterations; ++i) {
    for (const RankTimes& rank : ranks) {
      report.samples_s[i] = std::max(report.samples_s[i], rank[i][layer_idx].time_s());
    }
  }
  const std::size_t typical = median_position(report.samples_s);
  report.time_s = report.samples_s[typical];
  const std::size_t num_phases = ranks.front()[typical][layer_idx].phases.size();
  for (std::size_t p = 0; p < num_phases; ++p) {
    PhaseTimes times;
    times.phase = ranks.front()[typical][layer_idx].phases[p].phase;
    times.samples_s.assign(num_iterations, 0.0);
    for (const RankTimes& rank : ranks) {
      times.begin_s.push_back(rank[typical][layer_idx].phases[p].begin_s);
      times.end_s.push_back(rank[typical][layer_idx].phases[p].end_s);
      for (std::size_t i = 0; i < num_iterations; ++i) {
        const PhaseSpan& span = rank[i][layer_idx].phases[p];
        times.samples_s[i] = std::max(times.samples_s[i], span.end_s - span.begin_s);
      }
    }
    report.phases.push_back(std::move(times));
  }
}

std::vector<TransferGroup> transfer_groups(const LayerPlan& plan, const Network& network,
                                           const PayloadSizes& sizes, const LayerReport& report) {
  struct Direction {
    Phase phase;
    std::size_t stage_idx;
    bool dispatch;
  };
  std::vector<Direction> directions{{Phase::kDispatch, 0, true}};
  if (plan.stages.size() > 1) {
    directions.push_back({Phase::kForward, 1, true});
    directions.push_back({Phase::kGather, 1, false});
  }
  directions.push_back({Phase::kCombine, 0, false});

  std::vector<TransferGroup> groups;
  for (const Direction& direction : directions) {
    const Stage& stage = plan.stages[direction.stage_idx];
    struct Sums {
      TransferGroup group;
      std::vector<std::int64_t> sent, received;
    };
    std::map<Tier, Sums> tiers;
    for (std::size_t t = 0; t < stage.num_transfers(); ++t) {
      const Tier tier = network.tier(GpuId{stage.src[t]}, GpuId{stage.dst[t]});
      Sums& sums = tiers[tier];
      if (sums.sent.empty()) {
        sums.sent.assign(plan.num_ranks, 0);
        sums.received.assign(plan.num_ranks, 0);
      }
      const std::int64_t bytes = direction.dispatch ? dispatch_bytes(stage, t, sizes).value
                                                    : combine_bytes(stage, t, sizes).value;
      ++sums.group.num_transfers;
      sums.group.num_rows += stage.num_rows[t];
      sums.group.bytes += bytes;
      sums.sent[direction.dispatch ? stage.src[t] : stage.dst[t]] += bytes;
      sums.received[direction.dispatch ? stage.dst[t] : stage.src[t]] += bytes;
    }
    for (auto& [tier, sums] : tiers) {
      sums.group.phase = direction.phase;
      sums.group.tier = to_string(tier);
      sums.group.max_rank_send = *std::max_element(sums.sent.begin(), sums.sent.end());
      sums.group.max_rank_receive = *std::max_element(sums.received.begin(), sums.received.end());
      for (const PhaseTimes& times : report.phases) {
        if (times.phase != direction.phase) continue;
        sums.group.begin_s = *std::min_element(times.begin_s.begin(), times.begin_s.end());
        sums.group.end_s = *std::max_element(times.end_s.begin(), times.end_s.end());
      }
      groups.push_back(std::move(sums.group));
    }
  }
  return groups;
}

Timeline make_timeline(const RunReport& report) {
  Timeline timeline;
  double start_s = 0.0;
  for (const LayerReport& layer : report.layers) {
    for (std::uint32_t rank = 0; rank < report.num_ranks; ++rank) {
      for (const PhaseTimes& times : layer.phases) {
        if (times.end_s[rank] <= times.begin_s[rank]) continue;
        timeline.spans.push_back({"ranks", fmt::format("rank {}", rank),
                                  fmt::format("{} (layer {})", to_string(times.phase), layer.layer),
                                  start_s + times.begin_s[rank], start_s + times.end_s[rank]});
      }
    }
    double end_s = layer.time_s;
    for (const PhaseTimes& times : layer.phases) {
      end_s = std::max(end_s, *std::max_element(times.end_s.begin(), times.end_s.end()));
    }
    start_s += end_s;
  }
  return timeline;
}

}  // namespace coterie
