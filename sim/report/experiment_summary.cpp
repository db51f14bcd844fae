// What an experiment's results say, in words.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "core/counted.hpp"
#include "core/metrics.hpp"
#include "core/units.hpp"
#include "sim/report/pages.hpp"

namespace coterie {
namespace {

std::string name_of(const RunReport& run) {
  return fmt::format("<b>{}</b>", escape_html(run.name));
}

std::string percent(double share) {
  return fmt::format("{:.0f} percent", 100.0 * share);
}

class ExperimentSummary {
 public:
  explicit ExperimentSummary(const Results& results) : all_(results.runs) {
    for (const RunReport& run : all_) {
      if (!run.layers.empty()) runs_.push_back(run);
    }
    standard_ = baseline(runs_, "standard");
    dedup_ = baseline(runs_, "dedup");
    for (const RunReport& run : runs_) {
      if (!run.exact) continue;
      if (fastest_ == nullptr || run.time_s() < fastest_->time_s()) fastest_ = &run;
    }
  }

  std::vector<std::string> write() {
    if (fastest_ != nullptr) {
      add_fastest();
      add_separate_gains();
      add_where_time_goes();
    }
    add_slower_placements();
    add_not_exact();
    add_failed();
    add_warnings();
    add_certainty();
    return std::move(paragraphs_);
  }

 private:
  void add_fastest() {
    std::string text = fmt::format(
        "{} is the fastest {}run: {} per MoE layer on the slowest rank{}", name_of(*fastest_),
        runs_.size() > 1 ? "exact " : "", format_seconds(Seconds{layer_time_s(*fastest_)}),
        fastest_->layers.size() > 1
            ? fmt::format(" (mean of {})", counted(fastest_->layers.size(), "layer"))
            : "");
    if (standard_ != nullptr && standard_ != fastest_) {
      text +=
          fmt::format(", {:.2f}x over standard dispatch", standard_->time_s() / fastest_->time_s());
    }
    if (dedup_ != nullptr && dedup_ != fastest_) {
      text += fmt::format(
          "{} {:.2f}x over the honest baseline, de-duplicated dispatch with "
          "contiguous placement",
          standard_ != nullptr && standard_ != fastest_ ? " and" : ",",
          dedup_->time_s() / fastest_->time_s());
    }
    paragraphs_.push_back(text + ".");
  }

  // De-duplication, placement and the second level, each against what differs in it alone.
  void add_separate_gains() {
    std::vector<std::string> gains;
    if (standard_ != nullptr && dedup_ != nullptr) {
      gains.push_back(fmt::format("de-duplication gives {:.2f}x ({} over {})",
                                  standard_->time_s() / dedup_->time_s(), name_of(*dedup_),
                                  name_of(*standard_)));
    }
    for (const char* policy : {"dedup", "hierarchical"}) {
      const RunReport* contiguous = nullptr;
      const RunReport* placed = nullptr;
      for (const RunReport& run : runs_) {
        if (!run.exact || run.policy != policy) continue;
        const RunReport*& best = run.placement == "contiguous" ? contiguous : placed;
        if (best == nullptr || run.time_s() < best->time_s()) best = &run;
      }
      if (contiguous != nullptr && contiguous->policy == "hierarchical" && dedup_ != nullptr) {
        gains.push_back(fmt::format("the second level gives {:.2f}x ({} over {})",
                                    dedup_->time_s() / contiguous->time_s(), name_of(*contiguous),
                                    name_of(*dedup_)));
      }
      if (contiguous != nullptr && placed != nullptr) {
        gains.push_back(
            fmt::format("the best placement under {} dispatch gives {:.2f}x ({} over "
                        "{})",
                        policy, contiguous->time_s() / placed->time_s(), name_of(*placed),
                        name_of(*contiguous)));
      }
    }
    if (!gains.empty()) {
      paragraphs_.push_back(fmt::format("Each on its own: {}.", fmt::join(gains, "; ")));
    }
  }

  void add_where_time_goes() {
    const std::optional<PartTimes> parts = critical_parts(*fastest_);
    if (!parts || parts->total_s() <= 0.0) return;
    std::string text = fmt::format(
        "The rank of {} that ends its layer spends {} of it in communication, {} waiting for "
        "slower "
        "ranks and {} in the expert MLP",
        name_of(*fastest_), percent(parts->communication_s() / parts->total_s()),
        percent((*parts)[Part::kWait] / parts->total_s()),
        percent((*parts)[Part::kMlp] / parts->total_s()));
    const LinkLoad* busiest = busiest_link(*fastest_);
    if (busiest != nullptr && busiest->utilization) {
      text += fmt::format("; the busiest link ({}) is used to {} while traffic is under way",
                          escape_html(busiest->name), percent(*busiest->utilization));
    }
    paragraphs_.push_back(text + ".");
  }

  // Placements that send less and still lose, which their load explains.
  void add_slower_placements() {
    if (dedup_ == nullptr) return;
    std::vector<std::string> slower;
    for (const RunReport& run : runs_) {
      if (!run.exact || run.policy != "dedup" || run.time_s() <= dedup_->time_s()) continue;
      const double fanout = layer_mean(run, &LayerReport::fanout_ranks);
      const double load = layer_mean(run, &LayerReport::rank_load_max_over_mean);
      if (fanout < layer_mean(*dedup_, &LayerReport::fanout_ranks) &&
          load > layer_mean(*dedup_, &LayerReport::rank_load_max_over_mean)) {
        slower.push_back(
            fmt::format("{} (fan-out {:.2f}, load max/mean {:.2f})", name_of(run), fanout, load));
      }
    }
    if (slower.empty()) return;
    paragraphs_.push_back(fmt::format(
        "Lower fan-out than contiguous placement ({:.2f}, load {:.2f}) and yet slower, because the "
        "load concentrates on fewer ranks: {}.",
        layer_mean(*dedup_, &LayerReport::fanout_ranks),
        layer_mean(*dedup_, &LayerReport::rank_load_max_over_mean), fmt::join(slower, ", ")));
  }

  void add_not_exact() {
    std::vector<std::string> names;
    for (const RunReport& run : runs_) {
      if (run.exact) continue;
      std::string text = name_of(run);
      if (run.weight_lost) {
        text += fmt::format(" (loses {:.1f} percent of the router's weight{})",
                            100.0 * *run.weight_lost,
                            run.top1_changed ? fmt::format(", changes the first expert of {:.1f} "
                                                           "percent of the tokens",
                                                           100.0 * *run.top1_changed)
                                             : "");
      }
      names.push_back(text);
    }
    if (names.empty()) return;
    paragraphs_.push_back(
        fmt::format("<span class=\"warn\">Not exact</span>: {}. Pruning changes the model's "
                    "output; these times "
                    "compare with the others only together with that loss.",
                    fmt::join(names, ", ")));
  }

  void add_failed() {
    for (const RunReport& run : all_) {
      if (!run.failure) continue;
      paragraphs_.push_back(fmt::format("<span class=\"warn\">Failed</span>: {}: {}.", name_of(run),
                                        escape_html(*run.failure)));
    }
  }

  // What the reports warn of, each once.
  void add_warnings() {
    std::vector<std::string> said;
    for (const RunReport& run : runs_) {
      for (const std::string& warning : run.warnings) {
        if (std::find(said.begin(), said.end(), warning) != said.end()) continue;
        said.push_back(warning);
        paragraphs_.push_back(
            fmt::format("<span class=\"warn\">Take care</span>: {}.", escape_html(warning)));
      }
    }
  }

  void add_certainty() {
    const RunReport& run = runs_.front();
    const LayerReport& layer = run.layers.front();
    if (run.engine == "bound") {
      paragraphs_.emplace_back(
          "Times are lower bounds, and ratios those of lower bounds: nothing was simulated.");
    } else if (run.kind == "measured") {
      paragraphs_.push_back(fmt::format(
          "Times are measured: medians of {} iterations of the slowest rank; intervals go from the "
          "5th to the 95th percentile of a layer's iterations, averaged over layers for a run.",
          layer.samples_s.size()));
    } else if (layer.high_s && layer.time_s > 0.0) {
      const double width = *layer.high_s / layer.time_s - 1.0;
      paragraphs_.push_back(fmt::format(
          "Times are predicted on a calibrated topology: plus or minus {:.0f} percent. Runs whose "
          "times differ by less may be in the other order in truth.",
          100.0 * width));
    } else {
      paragraphs_.emplace_back(
          "Times are predicted on a topology that is not calibrated: they carry no interval, and "
          "ratios are more trustworthy than times.");
    }
  }

  const std::vector<RunReport>& all_;
  std::vector<RunReport> runs_;  // those that succeeded
  const RunReport* standard_ = nullptr;
  const RunReport* dedup_ = nullptr;
  const RunReport* fastest_ = nullptr;
  std::vector<std::string> paragraphs_;
};

}  // namespace

std::vector<std::string> experiment_summary(const Results& results) {
  return ExperimentSummary(results).write();
}

}  // namespace coterie
