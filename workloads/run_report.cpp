#include "workloads/run_report.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/provenance.hpp"
#include "workloads/placement/strategies.hpp"

namespace coterie {
namespace {

// What the experiment says of every run.
RunReport common_header(const Experiment& experiment, const RunSpec& spec) {
  RunReport report;
  report.name = spec.name;
  report.policy = to_string(spec.policy);
  report.exact = !spec.prune.has_value();
  report.topology = experiment.cluster.name;
  report.model = experiment.model.name;
  report.trace = experiment.trace.file.filename().string();
  report.num_ranks = experiment.num_ranks;
  report.num_groups = experiment.num_groups;
  report.dispatch_payload = to_string(experiment.dispatch_payload);
  report.combine_payload = to_string(experiment.combine_payload);
  if (experiment.expert_type) report.expert_type = to_string(*experiment.expert_type);
  report.provenance["version"] = version();
  report.provenance["experiment"] = experiment.name;
  report.provenance["seed"] = experiment.seed;
  for (const auto& [key, value] : experiment.cluster.provenance) {
    report.provenance["topology." + key] = value;
  }
  return report;
}

bool from_file(const RunSpec& spec) {
  const std::vector<std::string> strategies = placement_strategies();
  return std::find(strategies.begin(), strategies.end(), spec.placement) == strategies.end();
}

std::string file_name(const RunSpec& spec) {
  return std::filesystem::path(spec.placement).filename().string();
}

// "262144", grouped: "262,144".
std::string grouped(std::uint64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

}  // namespace

RunReport run_header(const Experiment& experiment, const PreparedRun& run) {
  RunReport report = common_header(experiment, run.spec);
  report.exact = run.exact;
  report.placement = run.spec.placement;
  if (from_file(run.spec)) {
    const std::string& strategy = run.placement.strategy;
    report.placement = strategy.empty() ? file_name(run.spec) : strategy;
    report.provenance["placement_file"] = file_name(run.spec);
  }
  report.weight_lost = run.weight_lost;
  report.top1_changed = run.top1_changed;

  std::uint64_t num_owned = 0;
  for (const RankTokens& tokens : *run.group_tokens) {
    num_owned += tokens.token_begin.back();
    for (std::size_t rank = 0; rank + 1 < tokens.token_begin.size(); ++rank) {
      report.tokens_per_rank = std::max(
          report.tokens_per_rank,
          static_cast<std::uint32_t>(tokens.token_begin[rank + 1] - tokens.token_begin[rank]));
    }
  }
  const std::uint64_t num_evaluated = run.routing->num_tokens();
  report.token_repeats = static_cast<double>(num_owned) / static_cast<double>(num_evaluated);
  if (num_owned > num_evaluated) {
    report.warnings.push_back(fmt::format(
        "the {} evaluated tokens of {} stand for {}, so each repeats {:.{}f} times; a batch of as "
        "many different tokens would be balanced otherwise",
        grouped(num_evaluated), report.trace, grouped(num_owned), *report.token_repeats,
        *report.token_repeats < 10.0 ? 1 : 0));
  }
  return report;
}

RunReport failed_run(const Experiment& experiment, const RunSpec& spec,
                     const std::string& failure) {
  RunReport report = common_header(experiment, spec);
  report.placement = from_file(spec) ? file_name(spec) : spec.placement;
  report.failure = failure;
  return report;
}

std::vector<FanOut> count_groups(const Experiment& experiment, const PreparedRun& run,
                                 std::size_t layer_idx) {
  std::vector<FanOut> counts;
  for (const RankTokens& tokens : *run.group_tokens) {
    counts.push_back(fan_out(*run.routing, layer_idx, run.placement.layers[layer_idx],
                             experiment.ranks_per_node(), tokens, run.placement.replica_choice));
  }
  return counts;
}

void add_counts(const PreparedRun& run, std::size_t layer_idx, std::span<const FanOut> groups,
                LayerReport& report) {
  report.layer = run.routing->layers[layer_idx];
  double num_tokens = 0.0;
  for (const RankTokens& tokens : *run.group_tokens) {
    num_tokens += static_cast<double>(tokens.token_begin.back());
  }
  for (std::size_t group = 0; group < groups.size(); ++group) {
    const RankTokens& tokens = (*run.group_tokens)[group];
    const FanOut& counts = groups[group];
    const double weight = static_cast<double>(tokens.token_begin.back()) / num_tokens;
    report.copies += weight * counts.copies;
    report.fanout_ranks += weight * counts.fanout_ranks;
    report.remote_fanout_ranks += weight * counts.remote_fanout_ranks;
    report.fanout_nodes += weight * counts.fanout_nodes;
    report.remote_fanout_nodes += weight * counts.remote_fanout_nodes;
    report.rank_load_max_over_mean += weight * counts.rank_load_max_over_mean;
  }
}

std::vector<double> combine_ready_s(std::span<const LayerPlan> groups,
                                    const std::vector<double>& merge_end_s) {
  std::vector<double> ready_s(merge_end_s.size(), 0.0);
  std::uint32_t first_rank = 0;
  for (const LayerPlan& plan : groups) {
    // The last stage brings the rows to the experts; its first stage says whose they are.
    const Stage& first = plan.stages.front();
    const Stage& last = plan.stages.back();
    for (std::size_t i = 0; i < last.num_transfers(); ++i) {
      const std::uint32_t owner = plan.stages.size() > 1 ? first.src[last.parent[i]] : last.src[i];
      double& ready = ready_s[first_rank + owner];
      ready = std::max(ready, merge_end_s[first_rank + last.dst[i]]);
    }
    first_rank += plan.num_ranks;
  }
  return ready_s;
}

}  // namespace coterie
