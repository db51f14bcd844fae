#include "runtime/session/measure.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/clocks.hpp"
#include "core/metrics.hpp"
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

namespace {

// clock_leads of one iteration; zeros where there is no notify step.
std::vector<double> leads_of(const std::vector<RankTimes>& ranks, std::size_t iteration,
                             std::size_t layer_idx) {
  std::vector<double> notify_end_s;
  for (const RankTimes& rank : ranks) {
    for (const PhaseSpan& span : rank[iteration][layer_idx].phases) {
      if (span.phase == Phase::kNotify) notify_end_s.push_back(span.end_s);
    }
  }
  if (notify_end_s.size() != ranks.size()) return std::vector<double>(ranks.size(), 0.0);
  return clock_leads(notify_end_s);
}

}  // namespace

void fill_times(const std::vector<RankTimes>& ranks, std::size_t layer_idx, LayerReport& report) {
  const std::size_t num_iterations = ranks.front().size();
  report.samples_s.assign(num_iterations, 0.0);
  for (std::size_t i = 0; i < num_iterations; ++i) {
    const std::vector<double> leads = leads_of(ranks, i, layer_idx);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      report.samples_s[i] =
          std::max(report.samples_s[i], ranks[r][i][layer_idx].time_s() - leads[r]);
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
  align_clocks(report);
}

std::vector<TransferGroup> transfer_groups(const LayerPlan& plan, const Network& network,
                                           const PayloadSizes& sizes, const LayerReport& report) {
  TransferSums sums(plan.num_ranks);
  for (const Stage& stage : plan.stages) {
    for (std::size_t t = 0; t < stage.num_transfers(); ++t) {
      const std::uint32_t src = stage.src[t];
      const std::uint32_t dst = stage.dst[t];
      const std::string tier = to_string(network.tier(GpuId{src}, GpuId{dst}));
      const std::uint64_t rows = stage.num_rows[t];
      sums.add({stage.out, tier, src, dst, rows, dispatch_bytes(stage, t, sizes).value, {}, {}});
      sums.add({stage.back, tier, dst, src, rows, combine_bytes(stage, t, sizes).value, {}, {}});
    }
  }
  std::vector<TransferGroup> groups = sums.take();
  for (TransferGroup& group : groups) {
    for (const PhaseTimes& times : report.phases) {
      if (times.phase != group.phase) continue;
      group.begin_s = *std::min_element(times.begin_s.begin(), times.begin_s.end());
      group.end_s = *std::max_element(times.end_s.begin(), times.end_s.end());
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
