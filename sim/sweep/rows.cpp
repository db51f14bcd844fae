#include "sim/sweep/rows.hpp"

#include <optional>

#include "core/metrics.hpp"

namespace coterie {
namespace {

using nlohmann::ordered_json;

ordered_json optional_number(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

// Absent where the run knows no phases.
ordered_json metric(const RunReport& report, double (*of_layer)(const LayerReport&)) {
  if (report.layers.front().phases.empty()) return nullptr;
  return layer_mean(report, of_layer);
}

ordered_json phase_mean_s(const RunReport& report, Phase phase) {
  if (report.layers.front().phases.empty()) return nullptr;
  return report.phase_slowest_s(phase) / static_cast<double>(report.layers.size());
}

// The mean of an interval's end, where every layer has one.
ordered_json mean_of(const RunReport& report, std::optional<double> LayerReport::*end_s) {
  double sum = 0.0;
  for (const LayerReport& layer : report.layers) {
    if (!(layer.*end_s)) return nullptr;
    sum += *(layer.*end_s);
  }
  return sum / static_cast<double>(report.layers.size());
}

void add_identity(const Experiment& experiment, const RunReport& report, ordered_json& row) {
  const Cluster& cluster = experiment.cluster;
  row["run"] = report.name;
  if (report.failure) row["error"] = *report.failure;
  row["policy"] = report.policy;
  row["placement"] = report.placement;
  row["exact"] = report.exact;
  row["engine"] = report.engine;
  row["topology_name"] = report.topology;
  row["transport_name"] = report.transport;
  row["model_name"] = report.model;
  row["num_ranks"] = report.num_ranks;
  row["num_groups"] = report.num_groups;
  row["num_gpus"] = report.num_ranks * report.num_groups;
  row["gpus_per_node"] = cluster.gpus_per_node;
  row["scale_up_bandwidth_Bps"] =
      cluster.scale_up ? ordered_json(cluster.scale_up->bandwidth.value) : ordered_json(nullptr);
  row["nic_bandwidth_Bps"] = cluster.nic
                                 ? ordered_json(cluster.nic->bandwidth.value * cluster.nic->per_gpu)
                                 : ordered_json(nullptr);
}

void add_times(const RunReport& report, ordered_json& row) {
  row["run_time_s"] = report.time_s();
  row["layer_time_s"] = layer_time_s(report);
  row["layer_bound_s"] = layer_mean(report, &LayerReport::bound_s);
  row["layer_low_s"] = mean_of(report, &LayerReport::low_s);
  row["layer_high_s"] = mean_of(report, &LayerReport::high_s);
  for (int phase = 0; phase < kNumPhases; ++phase) {
    row[to_string(static_cast<Phase>(phase)) + "_slowest_rank_s"] =
        phase_mean_s(report, static_cast<Phase>(phase));
  }
  row["dispatch_s"] = metric(report, dispatch_s);
  row["mlp_s"] = metric(report, mlp_s);
  row["combine_s"] = metric(report, combine_s);
  const std::optional<PartTimes> parts = critical_parts(report);
  const auto num_layers = static_cast<double>(report.layers.size());
  row["communication_s"] =
      parts ? ordered_json(parts->communication_s() / num_layers) : ordered_json(nullptr);
  for (std::size_t i = 0; i < kNumParts; ++i) {
    row["critical_" + to_string(static_cast<Part>(i)) + "_s"] =
        parts ? ordered_json(parts->seconds[i] / num_layers) : ordered_json(nullptr);
  }
}

void add_counts_and_bytes(const RunReport& report, ordered_json& row) {
  row["fanout_ranks"] = layer_mean(report, &LayerReport::fanout_ranks);
  row["remote_fanout_ranks"] = layer_mean(report, &LayerReport::remote_fanout_ranks);
  row["fanout_nodes"] = layer_mean(report, &LayerReport::fanout_nodes);
  row["remote_fanout_nodes"] = layer_mean(report, &LayerReport::remote_fanout_nodes);
  row["rank_load_max_over_mean"] = layer_mean(report, &LayerReport::rank_load_max_over_mean);
  row["scale_up_bytes"] = report.tier_bytes("scale_up");
  row["network_bytes"] = report.tier_bytes("network");
  const LinkLoad* link = busiest_link(report);
  row["busiest_link"] = link != nullptr ? ordered_json(link->name) : ordered_json(nullptr);
  row["busiest_link_tier"] = link != nullptr ? ordered_json(link->tier) : ordered_json(nullptr);
  row["busiest_link_utilization"] =
      link != nullptr ? optional_number(link->utilization) : ordered_json(nullptr);
}

void add_step(const StepReport& step, ordered_json& row) {
  row["num_gpus"] = step.num_gpus;
  row["step_kind"] = step.kind;
  row["step_method"] = step.method;
  row["parallel"] = step.parallel;
  row["run_time_s"] = step.time_s;
  row["step_low_s"] = optional_number(step.low_s);
  row["step_high_s"] = optional_number(step.high_s);
  row["tokens_per_s_per_gpu"] = step.tokens_per_s_per_gpu;
  row["model_flops_per_s_per_gpu"] = step.model_flops_per_s_per_gpu;
  row["communication_s"] = step.communication_s;
  row["exposed_communication_s"] = step.exposed_communication_s;
  row["bubble_s"] = step.bubble_s;
  row["tpot_s"] = optional_number(step.tpot_s);
  row["ttft_s"] = optional_number(step.ttft_s);
  row["rank_load_max_over_mean"] = optional_number(step.rank_load_max_over_mean);
  for (const auto& [name, seconds] : step.parts) row["step_" + name + "_s"] = seconds;
  for (const auto& [name, share] : step.busy) row[name + "_busy_share"] = share;
  for (const auto& [name, bytes] : step.memory_bytes) row["memory_" + name + "_bytes"] = bytes;
}

}  // namespace

ordered_json sweep_rows(const Experiment& experiment, const std::vector<SimulatedRun>& simulated) {
  const std::vector<RunReport> runs = results_of(experiment, simulated).runs;
  ordered_json rows = ordered_json::array();
  for (std::size_t run = 0; run < runs.size(); ++run) {
    const RunReport& report = runs[run];
    ordered_json row;
    add_identity(experiment, report, row);
    if (const auto code = simulated[run].failure_code) row["exit_code"] = static_cast<int>(*code);
    if (report.step) {
      row["tokens_per_rank"] = report.tokens_per_rank;
      add_step(*report.step, row);
      const Speedups ratios = speedups(runs, report);
      row["speedup_over_standard"] = optional_number(ratios.over_standard);
      row["speedup_over_dedup_contiguous"] = optional_number(ratios.over_dedup_contiguous);
    } else if (!report.layers.empty()) {
      row["tokens_per_rank"] = report.tokens_per_rank;
      row["token_repeats"] = optional_number(report.token_repeats);
      row["num_layers"] = report.layers.size();
      add_times(report, row);
      add_counts_and_bytes(report, row);
      const Speedups ratios = speedups(runs, report);
      row["speedup_over_standard"] = optional_number(ratios.over_standard);
      row["speedup_over_dedup_contiguous"] = optional_number(ratios.over_dedup_contiguous);
      row["weight_lost"] = optional_number(report.weight_lost);
      row["top1_changed"] = optional_number(report.top1_changed);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace coterie
