#pragma once
// What a run report says in numbers: the metrics that tables, CSV, JSON, comparisons and pages show.
// Each is computed here and nowhere else, for predicted and measured runs alike.
//
// Times of one MoE layer come in two kinds, which must not be mixed:
//
//   on its own      a phase on the rank on which it takes longest. Phases have different slowest
//                   ranks, so these do not add up to anything.
//   critical rank   what the rank that ends the layer spends its time on. These add up to the
//                   layer's time.

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/report.hpp"

namespace coterie {

// ------------------------------------------------------------ over the layers

// Means over the layers of a run; zero for a run without layers.
double layer_mean(const RunReport& run, double LayerReport::*member);
double layer_mean(const RunReport& run, double (*metric)(const LayerReport&));
// The mean time of a layer: RunReport::time_s() / number of layers.
double layer_time_s(const RunReport& run);

// The relative half width of a run's time, where one is known: of the first layer's interval on a
// calibrated topology (predicted), or the greatest relative_spread of its layers (measured).
std::optional<double> relative_uncertainty(const RunReport& run);

// The link of all layers with the highest utilisation; where none is known, the first layer's.
const LinkLoad* busiest_link(const RunReport& run);

// ------------------------------------------------------------ phases on their own

// Dispatch, the forwards of the hierarchical policy included: from a rank's first transfer (or the
// start cost before it) to its last, on the slowest rank.
double dispatch_s(const LayerReport& layer);
// The expert MLP on the slowest rank.
double mlp_s(const LayerReport& layer);
// Combine, gathers included, without the wait for the slowest MLP. On a rank it lasts from the
// moment when the rank itself and all ranks whose results it needs have merged them
// (LayerReport::combine_ready_s) to the end of the rank's last transfer; on the slowest rank. In
// reports without that moment it lasts from the rank's first transfer.
double combine_s(const LayerReport& layer);
// The same with the wait: from a rank's first transfer to its last. For comparisons with reports
// that do not say when the slowest MLP had ended.
double combine_span_s(const LayerReport& layer);

// ------------------------------------------------------------ the critical rank

// What a rank can be at. Forwards belong to the dispatch, gathers to the combine.
enum class Part : std::uint8_t {
  kNotify,
  kPack,
  kDispatch,
  kExpand,
  kMlp,
  kMerge,
  kCombine,
  kSum,
  kWait,  // nothing of the above: for slower ranks, or for a resource that is held
};
inline constexpr std::size_t kNumParts = 9;
std::string to_string(Part part);

struct PartTimes {
  std::array<double, kNumParts> seconds{};

  [[nodiscard]] double operator[](Part part) const {
    return seconds[static_cast<std::size_t>(part)];
  }
  double& operator[](Part part) { return seconds[static_cast<std::size_t>(part)]; }
  [[nodiscard]] double total_s() const;
  // notify, dispatch and combine: what no computation hides
  [[nodiscard]] double communication_s() const;
};

struct CriticalRank {
  std::uint32_t rank = 0;
  PartTimes parts;  // they add up to the end of that rank, which is the layer's time
};

// The rank that ends last, the lowest of several; absent where the report knows no phases (engine
// `bound`). Its time from zero to its end is split in the order of the parts: a part counts from
// where the ones before it ended, and time that no part covers is waiting. The dispatch ends for it
// when its expand begins, even where its own sends go on; the combine begins at combine_ready_s and
// ends with its sum's begin.
std::optional<CriticalRank> critical_rank(const LayerReport& layer);
// The parts of all layers added up, each on its own critical rank; absent as above.
std::optional<PartTimes> critical_parts(const RunReport& run);

// ------------------------------------------------------------ baselines

// The run that others are measured against: the first exact one with this policy and contiguous
// placement that has results. Null where there is none.
const RunReport* baseline(std::span<const RunReport> runs, std::string_view policy);

// Ratio of the baseline's time to the run's; absent without baseline, or for a run without results.
struct Speedups {
  std::optional<double> over_standard;
  std::optional<double> over_dedup_contiguous;
};
Speedups speedups(std::span<const RunReport> runs, const RunReport& run);

// ------------------------------------------------------------ transfer groups

// In the order in which tables list them.
inline constexpr std::array<const char*, 3> kTierNames{"local", "scale_up", "network"};

// Sums transfers by phase and tier.
class TransferSums {
 public:
  explicit TransferSums(std::size_t num_gpus) : num_gpus_(num_gpus) {}

  struct Transfer {
    Phase phase = Phase::kDispatch;
    std::string tier;  // one of kTierNames
    std::uint32_t src = 0, dst = 0;
    std::uint64_t num_rows = 0;
    std::int64_t bytes = 0;
    std::optional<double> begin_s, end_s;  // where they are known
  };
  void add(const Transfer& transfer);
  // By phase, then by tier. Leaves nothing behind.
  std::vector<TransferGroup> take();

 private:
  struct Sum {
    TransferGroup group;
    std::vector<std::int64_t> sent, received;  // [num_gpus]
  };
  std::size_t num_gpus_;
  std::map<std::pair<Phase, std::size_t>, Sum> sums_;
};

}  // namespace coterie
