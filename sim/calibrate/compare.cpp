#include "sim/calibrate/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/statistics.hpp"

namespace coterie {
const RunReport* find_run(const Results& results, const std::string& name) {
  for (const RunReport& run : results.runs) {
    if (run.name == name) return &run;
  }
  return nullptr;
}

namespace {

void check_same(const RunReport& predicted, const RunReport& measured) {
  const auto differ = [&](const std::string& what, const std::string& a, const std::string& b) {
    if (a == b) return;
    throw InputError(fmt::format("run {}", predicted.name),
                     fmt::format("{} {} predicted and {} measured", what, a, b),
                     "the same experiment in both");
  };
  differ("policy", predicted.policy, measured.policy);
  differ("placement", predicted.placement, measured.placement);
  differ("ranks", std::to_string(predicted.num_ranks), std::to_string(measured.num_ranks));
}

// Adds the layers up by item, in order of first appearance.
class Sums {
 public:
  void add(const std::string& item, double value) {
    const auto [found, is_new] = position_.try_emplace(item, items_.size());
    if (is_new) items_.emplace_back(item, 0.0);
    items_[found->second].second += value;
  }
  [[nodiscard]] std::optional<double> find(const std::string& item) const {
    const auto found = position_.find(item);
    if (found == position_.end()) return std::nullopt;
    return items_[found->second].second;
  }
  [[nodiscard]] const std::vector<std::pair<std::string, double>>& items() const { return items_; }

 private:
  std::map<std::string, std::size_t> position_;
  std::vector<std::pair<std::string, double>> items_;
};

void add_layer(const LayerReport& layer, Sums& sums) {
  sums.add("total", layer.time_s);
  for (const PhaseTimes& phase : layer.phases) {
    sums.add("phase " + to_string(phase.phase), phase.slowest_s());
  }
  for (const TransferGroup& group : layer.groups) {
    if (!group.begin_s || !group.end_s) continue;
    sums.add(fmt::format("group {} {}", to_string(group.phase), group.tier),
             *group.end_s - *group.begin_s);
  }
}

// Of the summed iterations.
std::optional<double> spread(const std::vector<const std::vector<double>*>& samples) {
  std::size_t count = samples.empty() ? 0 : samples.front()->size();
  for (const auto* layer : samples) count = std::min(count, layer->size());
  if (count < 2) return std::nullopt;
  std::vector<double> sums(count, 0.0);
  for (const auto* layer : samples) {
    for (std::size_t i = 0; i < count; ++i) sums[i] += (*layer)[i];
  }
  return relative_spread(sums);
}

void compare_run(const RunReport& predicted, const RunReport& measured, Comparison& out) {
  check_same(predicted, measured);
  Sums predicted_sums;
  Sums measured_sums;
  std::vector<const std::vector<double>*> totals;
  std::map<std::string, std::vector<const std::vector<double>*>> phases;
  for (const LayerReport& layer : measured.layers) {
    const auto same =
        std::find_if(predicted.layers.begin(), predicted.layers.end(),
                     [&](const LayerReport& other) { return other.layer == layer.layer; });
    if (same == predicted.layers.end()) continue;
    add_layer(layer, measured_sums);
    add_layer(*same, predicted_sums);
    totals.push_back(&layer.samples_s);
    for (const PhaseTimes& phase : layer.phases) {
      phases["phase " + to_string(phase.phase)].push_back(&phase.samples_s);
    }
  }
  if (totals.empty()) {
    throw InputError(fmt::format("run {}", measured.name), "no layer that both reports hold",
                     "the same layers in both");
  }
  for (const auto& [item, measured_s] : measured_sums.items()) {
    const std::optional<double> predicted_s = predicted_sums.find(item);
    if (!predicted_s || measured_s <= 0.0) continue;
    const auto found = phases.find(item);
    out.times.push_back({measured.name, item, *predicted_s, measured_s,
                         item == "total"         ? spread(totals)
                         : found != phases.end() ? spread(found->second)
                                                 : std::nullopt});
  }
}

std::vector<double> total_errors(const Comparison& comparison) {
  std::vector<double> errors;
  for (const ComparedTime& time : comparison.times) {
    if (time.item == "total") errors.push_back(std::abs(time.error()));
  }
  return errors;
}

void compare_order(Comparison& out) {
  std::vector<const ComparedTime*> totals;
  for (const ComparedTime& time : out.times) {
    if (time.item == "total") totals.push_back(&time);
  }
  for (std::size_t i = 0; i < totals.size(); ++i) {
    for (std::size_t j = i + 1; j < totals.size(); ++j) {
      const ComparedTime& a = *totals[i];
      const ComparedTime& b = *totals[j];
      const double noise =
          a.spread.value_or(0.0) * a.measured_s + b.spread.value_or(0.0) * b.measured_s;
      if (std::abs(a.measured_s - b.measured_s) <= noise) {
        ++out.num_unclear_pairs;
        continue;
      }
      ++out.num_ordered_pairs;
      if ((a.measured_s < b.measured_s) == (a.predicted_s < b.predicted_s)) ++out.num_right_pairs;
    }
  }
}

}  // namespace

double Comparison::median_error() const {
  const std::vector<double> errors = total_errors(*this);
  return errors.empty() ? 0.0 : median(errors);
}

double Comparison::worst_error() const {
  const std::vector<double> errors = total_errors(*this);
  return errors.empty() ? 0.0 : *std::max_element(errors.begin(), errors.end());
}

Comparison compare(const Results& predicted, const Results& measured) {
  Comparison out;
  for (const RunReport& run : measured.runs) {
    if (const RunReport* other = find_run(predicted, run.name)) {
      compare_run(*other, run, out);
    } else {
      out.unmatched.push_back(run.name);
    }
  }
  for (const RunReport& run : predicted.runs) {
    if (find_run(measured, run.name) == nullptr) out.unmatched.push_back(run.name);
  }
  if (out.times.empty()) {
    throw InputError("the two reports", "no run of the same name in both",
                     "reports of the same experiment");
  }
  compare_order(out);
  return out;
}

Results read_results_or_report(const std::string& path) {
  std::filesystem::path file = path;
  if (is_folder(file)) file /= "results.json";
  const nlohmann::json document =
      parse_json(read_file(file), file.string(), "a results.json or a run report");
  if (document.is_object() && document.contains("runs")) {
    return results_from_json(document, file.string());
  }
  Results results;
  results.runs.push_back(report_from_json(document, file.string()));
  return results;
}

nlohmann::json to_json(const Comparison& comparison) {
  nlohmann::json times = nlohmann::json::array();
  for (const ComparedTime& time : comparison.times) {
    nlohmann::json entry{{"run", time.run},
                         {"item", time.item},
                         {"predicted_s", time.predicted_s},
                         {"measured_s", time.measured_s},
                         {"error", time.error()},
                         {"unclear", time.unclear()}};
    if (time.spread) entry["spread"] = *time.spread;
    times.push_back(std::move(entry));
  }
  return {{"schema_version", 1},
          {"times", std::move(times)},
          {"median_error", comparison.median_error()},
          {"worst_error", comparison.worst_error()},
          {"order",
           {{"pairs", comparison.num_ordered_pairs},
            {"right", comparison.num_right_pairs},
            {"unclear", comparison.num_unclear_pairs}}},
          {"unmatched", comparison.unmatched}};
}

}  // namespace coterie
