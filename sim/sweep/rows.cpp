#include "sim/sweep/rows.hpp"

#include <algorithm>

namespace coterie {
namespace {

using nlohmann::ordered_json;

ordered_json optional_number(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

// Communication and the rest of the slowest rank's layer, by which phases it spent its time in. The
// phases of one rank do not overlap, but for forwarding, which runs beside the dispatch.
double communication_s(const RunReport& report) {
  double sum = report.phase_slowest_s(Phase::kNotify);
  for (const Phase phase : {Phase::kDispatch, Phase::kForward, Phase::kGather, Phase::kCombine}) {
    sum += report.phase_slowest_s(phase);
  }
  return sum;
}

template <class F>
double layer_mean(const RunReport& report, const F& value) {
  double sum = 0.0;
  for (const LayerReport& layer : report.layers) sum += value(layer);
  return report.layers.empty() ? 0.0 : sum / static_cast<double>(report.layers.size());
}

// The link with the highest utilisation over all layers.
const LinkLoad* busiest(const RunReport& report) {
  const LinkLoad* found = nullptr;
  for (const LayerReport& layer : report.layers) {
    if (layer.busiest_link &&
        (found == nullptr || layer.busiest_link->utilization > found->utilization)) {
      found = &*layer.busiest_link;
    }
  }
  return found;
}

}  // namespace

ordered_json sweep_rows(const Experiment& experiment, const std::vector<SimulatedRun>& runs) {
  ordered_json rows = ordered_json::array();
  for (std::size_t idx = 0; idx < runs.size(); ++idx) {
    const RunReport& report = runs[idx].report;
    const Speedups ratios = speedups(runs, idx);
    double bound_s = 0.0;
    double low_s = 0.0;
    double high_s = 0.0;
    for (const LayerReport& layer : report.layers) {
      bound_s += layer.bound_s;
      low_s += layer.low_s.value_or(layer.time_s);
      high_s += layer.high_s.value_or(layer.time_s);
    }
    const Cluster& cluster = experiment.cluster;
    ordered_json row;
    row["run"] = report.name;
    row["policy"] = report.policy;
    row["placement"] = report.placement;
    row["exact"] = report.exact;
    row["engine"] = report.engine;
    row["topology_name"] = report.topology;
    row["model_name"] = report.model;
    row["num_ranks"] = report.num_ranks;
    row["num_groups"] = report.num_groups;
    row["num_gpus"] = report.num_ranks * report.num_groups;
    row["gpus_per_node"] = cluster.gpus_per_node;
    row["scale_up_bandwidth_Bps"] =
        cluster.scale_up ? ordered_json(cluster.scale_up->bandwidth.value) : ordered_json(nullptr);
    row["nic_bandwidth_Bps"] =
        cluster.nic ? ordered_json(cluster.nic->bandwidth.value * cluster.nic->per_gpu)
                    : ordered_json(nullptr);
    row["tokens_per_rank"] = report.tokens_per_rank;
    row["num_layers"] = report.layers.size();
    row["time_s"] = report.time_s();
    row["bound_s"] = bound_s;
    row["low_s"] = low_s;
    row["high_s"] = high_s;
    for (int phase = 0; phase < kNumPhases; ++phase) {
      row[to_string(static_cast<Phase>(phase)) + "_s"] =
          report.phase_slowest_s(static_cast<Phase>(phase));
    }
    row["communication_s"] = communication_s(report);
    row["fanout_ranks"] = layer_mean(report, [](const auto& l) { return l.fanout_ranks; });
    row["remote_fanout_ranks"] =
        layer_mean(report, [](const auto& l) { return l.remote_fanout_ranks; });
    row["fanout_nodes"] = layer_mean(report, [](const auto& l) { return l.fanout_nodes; });
    row["remote_fanout_nodes"] =
        layer_mean(report, [](const auto& l) { return l.remote_fanout_nodes; });
    row["rank_load_max_over_mean"] =
        layer_mean(report, [](const auto& l) { return l.rank_load_max_over_mean; });
    row["scale_up_bytes"] = report.tier_bytes("scale_up");
    row["network_bytes"] = report.tier_bytes("network");
    const LinkLoad* link = busiest(report);
    row["busiest_link"] = link != nullptr ? ordered_json(link->name) : ordered_json(nullptr);
    row["busiest_link_tier"] = link != nullptr ? ordered_json(link->tier) : ordered_json(nullptr);
    row["busiest_link_utilization"] =
        link != nullptr ? ordered_json(link->utilization) : ordered_json(nullptr);
    row["speedup_over_standard"] = optional_number(ratios.over_standard);
    row["speedup_over_dedup_contiguous"] = optional_number(ratios.over_dedup_contiguous);
    row["weight_lost"] = optional_number(report.weight_lost);
    row["top1_changed"] = optional_number(report.top1_changed);
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace coterie
