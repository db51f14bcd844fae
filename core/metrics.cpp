#include "core/metrics.hpp"

#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <stdexcept>

#include "core/statistics.hpp"

namespace coterie {
namespace {

// When a rank is at something; absent where it never is.
using Interval = std::optional<std::pair<double, double>>;

// From the first begin to the last end of several phases on a rank, which may overlap.
Interval interval_of(const LayerReport& layer, std::size_t rank,
                     std::initializer_list<Phase> phases) {
  Interval found;
  for (const PhaseTimes& times : layer.phases) {
    if (std::find(phases.begin(), phases.end(), times.phase) == phases.end()) continue;
    if (rank >= times.end_s.size() || times.end_s[rank] <= times.begin_s[rank]) continue;
    if (!found) {
      found = {times.begin_s[rank], times.end_s[rank]};
    } else {
      found->first = std::min(found->first, times.begin_s[rank]);
      found->second = std::max(found->second, times.end_s[rank]);
    }
  }
  return found;
}

std::size_t num_ranks(const LayerReport& layer) {
  std::size_t ranks = 0;
  for (const PhaseTimes& times : layer.phases) ranks = std::max(ranks, times.end_s.size());
  return ranks;
}

// The combine of a rank, see combine_s; `merged_s` is when its own results are ready.
Interval combine_interval(const LayerReport& layer, std::size_t rank) {
  Interval combine = interval_of(layer, rank, {Phase::kGather, Phase::kCombine});
  if (!combine || rank >= layer.combine_ready_s.size()) return combine;
  double ready_s = layer.combine_ready_s[rank];
  if (const Interval merge = interval_of(layer, rank, {Phase::kMerge})) {
    ready_s = std::max(ready_s, merge->second);
  }
  combine->first = std::min(ready_s, combine->second);
  return combine;
}

template <class IntervalOf>
double slowest_s(const LayerReport& layer, const IntervalOf& interval) {
  double slowest = 0.0;
  for (std::size_t rank = 0; rank < num_ranks(layer); ++rank) {
    if (const Interval found = interval(rank)) {
      slowest = std::max(slowest, found->second - found->first);
    }
  }
  return slowest;
}

// Adds up the parts of one rank in order; see critical_rank.
class Walk {
 public:
  void add(Part part, const Interval& interval) {
    if (!interval || interval->second <= now_s_) return;
    parts_[Part::kWait] += std::max(0.0, interval->first - now_s_);
    parts_[part] += interval->second - std::max(now_s_, interval->first);
    now_s_ = interval->second;
  }
  [[nodiscard]] double now_s() const { return now_s_; }
  [[nodiscard]] const PartTimes& parts() const { return parts_; }

 private:
  PartTimes parts_;
  double now_s_ = 0.0;
};

// Cut off where the rank's next kernel begins: what it still sends then, nobody here waits for.
Interval until(Interval interval, const Interval& next) {
  if (interval && next) {
    interval->second = std::min(interval->second, next->first);
    interval->first = std::min(interval->first, interval->second);
  }
  return interval;
}

PartTimes parts_of(const LayerReport& layer, std::size_t rank) {
  const auto of = [&](std::initializer_list<Phase> phases) {
    return interval_of(layer, rank, phases);
  };
  const Interval expand = of({Phase::kExpand});
  const Interval mlp = of({Phase::kMlp});
  const Interval merge = of({Phase::kMerge});
  const Interval sum = of({Phase::kSum});
  const Interval dispatch = of({Phase::kDispatch, Phase::kForward});
  const Interval combine = combine_interval(layer, rank);
  Walk walk;
  walk.add(Part::kNotify, of({Phase::kNotify}));
  walk.add(Part::kPack, of({Phase::kPack}));
  walk.add(Part::kDispatch, until(dispatch, expand ? expand : mlp ? mlp : merge));
  walk.add(Part::kExpand, expand);
  walk.add(Part::kMlp, mlp);
  walk.add(Part::kMerge, merge);
  walk.add(Part::kCombine, until(combine, sum));
  walk.add(Part::kSum, sum);
  // What it still sends after its own sum.
  walk.add(Part::kDispatch, dispatch);
  walk.add(Part::kCombine, combine);
  return walk.parts();
}

std::size_t tier_position(std::string_view tier) {
  const auto found = std::find(kTierNames.begin(), kTierNames.end(), tier);
  if (found == kTierNames.end()) throw std::logic_error("a tier without a name");
  return static_cast<std::size_t>(found - kTierNames.begin());
}

}  // namespace

double layer_mean(const RunReport& run, double LayerReport::*member) {
  if (run.layers.empty()) return 0.0;
  double sum = 0.0;
  for (const LayerReport& layer : run.layers) sum += layer.*member;
  return sum / static_cast<double>(run.layers.size());
}

double layer_mean(const RunReport& run, double (*metric)(const LayerReport&)) {
  if (run.layers.empty()) return 0.0;
  double sum = 0.0;
  for (const LayerReport& layer : run.layers) sum += metric(layer);
  return sum / static_cast<double>(run.layers.size());
}

double layer_time_s(const RunReport& run) {
  return layer_mean(run, &LayerReport::time_s);
}

std::optional<double> relative_uncertainty(const RunReport& run) {
  std::optional<double> spread;
  for (const LayerReport& layer : run.layers) {
    if (layer.samples_s.size() < 2) continue;
    spread = std::max(spread.value_or(0.0), relative_spread(layer.samples_s));
  }
  if (spread || run.layers.empty()) return spread;
  const LayerReport& first = run.layers.front();
  if (!first.high_s || first.time_s <= 0.0) return std::nullopt;
  return *first.high_s / first.time_s - 1.0;
}

const LinkLoad* busiest_link(const RunReport& run) {
  const LinkLoad* busiest = nullptr;
  for (const LayerReport& layer : run.layers) {
    if (!layer.busiest_link) continue;
    if (busiest == nullptr ||
        layer.busiest_link->utilization.value_or(0.0) > busiest->utilization.value_or(0.0)) {
      busiest = &*layer.busiest_link;
    }
  }
  return busiest;
}

double dispatch_s(const LayerReport& layer) {
  return slowest_s(layer, [&](std::size_t rank) {
    return interval_of(layer, rank, {Phase::kDispatch, Phase::kForward});
  });
}

double mlp_s(const LayerReport& layer) {
  return slowest_s(layer,
                   [&](std::size_t rank) { return interval_of(layer, rank, {Phase::kMlp}); });
}

double combine_s(const LayerReport& layer) {
  return slowest_s(layer, [&](std::size_t rank) { return combine_interval(layer, rank); });
}

double combine_span_s(const LayerReport& layer) {
  return slowest_s(layer, [&](std::size_t rank) {
    return interval_of(layer, rank, {Phase::kGather, Phase::kCombine});
  });
}

std::string to_string(Part part) {
  constexpr std::array<const char*, kNumParts> kNames{
      "notify", "pack", "dispatch", "expand", "mlp", "merge", "combine", "sum", "wait"};
  return kNames.at(static_cast<std::size_t>(part));
}

double PartTimes::total_s() const {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

double PartTimes::communication_s() const {
  return (*this)[Part::kNotify] + (*this)[Part::kDispatch] + (*this)[Part::kCombine];
}

std::optional<CriticalRank> critical_rank(const LayerReport& layer) {
  std::optional<std::pair<double, std::size_t>> last;
  for (std::size_t rank = 0; rank < num_ranks(layer); ++rank) {
    for (const PhaseTimes& times : layer.phases) {
      if (rank < times.end_s.size() && (!last || times.end_s[rank] > last->first)) {
        last = {times.end_s[rank], rank};
      }
    }
  }
  if (!last) return std::nullopt;
  return CriticalRank{static_cast<std::uint32_t>(last->second), parts_of(layer, last->second)};
}

std::optional<PartTimes> critical_parts(const RunReport& run) {
  std::optional<PartTimes> sum;
  for (const LayerReport& layer : run.layers) {
    const std::optional<CriticalRank> critical = critical_rank(layer);
    if (!critical) return std::nullopt;
    if (!sum) sum.emplace();
    for (std::size_t i = 0; i < kNumParts; ++i) sum->seconds[i] += critical->parts.seconds[i];
  }
  return sum;
}

const RunReport* baseline(std::span<const RunReport> runs, std::string_view policy) {
  for (const RunReport& run : runs) {
    if (run.exact && run.has_results() && run.policy == policy && run.placement == "contiguous") {
      return &run;
    }
  }
  return nullptr;
}

Speedups speedups(std::span<const RunReport> runs, const RunReport& run) {
  const auto over = [&](std::string_view policy) -> std::optional<double> {
    const RunReport* base = baseline(runs, policy);
    if (base == nullptr || !run.has_results() || run.time_s() <= 0.0) return std::nullopt;
    return base->time_s() / run.time_s();
  };
  return {over("standard"), over("dedup")};
}

void TransferSums::add(const Transfer& transfer) {
  const auto [found, added] = sums_.try_emplace({transfer.phase, tier_position(transfer.tier)});
  Sum& sum = found->second;
  TransferGroup& group = sum.group;
  if (added) {
    group.phase = transfer.phase;
    group.tier = transfer.tier;
    sum.sent.assign(num_gpus_, 0);
    sum.received.assign(num_gpus_, 0);
  }
  ++group.num_transfers;
  group.num_rows += transfer.num_rows;
  group.bytes += transfer.bytes;
  if (transfer.begin_s) {
    group.begin_s = std::min(group.begin_s.value_or(*transfer.begin_s), *transfer.begin_s);
  }
  if (transfer.end_s) {
    group.end_s = std::max(group.end_s.value_or(*transfer.end_s), *transfer.end_s);
  }
  sum.sent.at(transfer.src) += transfer.bytes;
  sum.received.at(transfer.dst) += transfer.bytes;
}

std::vector<TransferGroup> TransferSums::take() {
  std::vector<TransferGroup> out;
  for (auto& [key, sum] : sums_) {
    sum.group.max_rank_send = *std::max_element(sum.sent.begin(), sum.sent.end());
    sum.group.max_rank_receive = *std::max_element(sum.received.begin(), sum.received.end());
    out.push_back(std::move(sum.group));
  }
  sums_.clear();
  return out;
}

}  // namespace coterie
