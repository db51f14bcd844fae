#include "sim/sweep/run_choices.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/placement/strategies.hpp"

namespace coterie {
namespace {

bool is_strategy(const std::string& placement) {
  const auto strategies = strategy_registry();
  return std::any_of(strategies.begin(), strategies.end(),
                     [&](const PlacementStrategy& one) { return one.name == placement; });
}

bool is_balanced(const Experiment& experiment) {
  return experiment.step && experiment.step->routing == StepRouting::kBalanced;
}

template <class T>
void add_new(std::vector<T>& items, const T& item) {
  if (std::find(items.begin(), items.end(), item) == items.end()) items.push_back(item);
}

std::string yaml_text(const std::string& text) {
  return nlohmann::json(text).dump();
}

// All but names.
bool same_run(const RunSpec& a, const RunSpec& b) {
  const bool same_transport = a.transport.has_value() == b.transport.has_value() &&
                              (!a.transport || (a.transport->name == b.transport->name &&
                                                a.transport->settings == b.transport->settings));
  const bool same_prune = a.prune.has_value() == b.prune.has_value() &&
                          (!a.prune || (a.prune->method == b.prune->method &&
                                        a.prune->num_devices == b.prune->num_devices));
  return same_transport && same_prune && a.placement == b.placement && a.policy == b.policy &&
         a.max_imbalance == b.max_imbalance && a.max_node_imbalance == b.max_node_imbalance &&
         a.num_replicas == b.num_replicas && a.replica_choice == b.replica_choice;
}

// `run` with this placement, which may know nothing of balance caps.
RunSpec with_placement(RunSpec run, const std::string& placement) {
  run.placement = placement;
  if (!is_strategy(placement) || !find_strategy(placement).takes_balance_cap) {
    run.max_imbalance.reset();
    run.max_node_imbalance.reset();
  }
  if (!is_strategy(placement)) run.replica_choice.reset();
  return run;
}

// Whether the run can be on so many ranks: its experts divide, and its placement has its replicas.
bool fits(const Experiment& experiment, const RunSpec& run, std::uint32_t num_ranks) {
  if (run.prune && run.prune->num_devices > num_ranks) return false;
  const std::uint32_t experts = experiment.model.num_experts;
  if ((experts + run.num_replicas) % num_ranks != 0) return false;
  if (run.num_replicas > std::uint64_t{experts} * (num_ranks - 1)) return false;  // all everywhere
  if (is_strategy(run.placement)) {
    return run.num_replicas == 0 || find_strategy(run.placement).takes_replicas;
  }
  if (run.num_replicas > 0) return false;
  try {
    return read_placement(run.placement, num_ranks).num_ranks == num_ranks;
  } catch (const InputError&) {  // an engine's file of other ranks
    return false;
  }
}

std::vector<std::uint32_t> replicas_for(const Experiment& experiment, const RunSearch& search,
                                        const RunSpec& run, std::uint32_t num_ranks) {
  if (!search.replicas.empty()) return search.replicas;
  return default_replicas(experiment, run.num_replicas, num_ranks);
}

// The run itself where it is among what is searched and fits; else the first searched one that does.
std::optional<RunSpec> nearest(const Experiment& experiment, const RunSearch& search,
                               const RunSpec& run, std::uint32_t num_ranks) {
  std::vector<std::string> placements = search.placements;
  const auto own = std::find(placements.begin(), placements.end(), run.placement);
  if (placements.empty() || own != placements.end()) placements = {run.placement};
  std::vector<std::uint32_t> counts = replicas_for(experiment, search, run, num_ranks);
  const auto same = std::find(counts.begin(), counts.end(), run.num_replicas);
  if (same != counts.end()) std::rotate(counts.begin(), same, same + 1);
  for (const std::string& placement : placements) {
    RunSpec tried = with_placement(run, placement);
    for (const std::uint32_t count : counts) {
      tried.num_replicas = count;
      if (fits(experiment, tried, num_ranks)) return tried;
    }
  }
  return std::nullopt;
}

// Dotted keys ("network.segments") as maps within maps.
struct SettingTree {
  std::string value;
  std::vector<std::pair<std::string, SettingTree>> children;

  void add(const std::string& key, const std::string& text) {
    const std::size_t dot = key.find('.');
    const std::string first = key.substr(0, dot);
    auto child = std::find_if(children.begin(), children.end(),
                              [&](const auto& one) { return one.first == first; });
    if (child == children.end()) child = children.insert(child, {first, {}});
    if (dot == std::string::npos) {
      child->second.value = text;
    } else {
      child->second.add(key.substr(dot + 1), text);
    }
  }
  [[nodiscard]] std::string text() const {
    if (children.empty()) return value;
    std::vector<std::string> texts;
    for (const auto& [key, child] : children) texts.push_back(key + ": " + child.text());
    return fmt::format("{{{}}}", fmt::join(texts, ", "));
  }
};

std::string transport_text(const TransportChoice& transport) {
  SettingTree tree;
  if (transport.name) tree.add("name", yaml_text(*transport.name));
  for (const Override& setting : transport.settings) tree.add(setting.key, setting.value);
  return tree.children.empty() ? "{}" : tree.text();
}

}  // namespace

std::vector<std::string> default_placements(const Experiment& experiment) {
  std::vector<std::string> placements;
  for (const RunSpec& run : experiment.runs) add_new(placements, run.placement);
  if (is_balanced(experiment)) return placements;
  for (const char* name : {"contiguous", "load_balanced", "collaboration_two_level"}) {
    add_new(placements, std::string(name));
  }
  return placements;
}

std::vector<std::uint32_t> default_replicas(const Experiment& experiment, std::uint32_t own,
                                            std::uint32_t num_ranks) {
  const std::uint32_t experts = experiment.model.num_experts;
  const std::uint32_t fewest = (num_ranks - experts % num_ranks) % num_ranks;
  std::vector<std::uint32_t> counts;
  if ((experts + own) % num_ranks == 0) counts.push_back(own);
  add_new(counts, fewest);
  if (!is_balanced(experiment)) add_new(counts, fewest + num_ranks);
  return counts;
}

std::vector<RunSpec> runs_on(const Experiment& experiment, const RunSearch& search,
                             std::uint32_t num_ranks) {
  std::vector<RunSpec> runs;
  for (const RunSpec& run : experiment.runs) {
    const auto there = nearest(experiment, search, run, num_ranks);
    if (!there) continue;
    const bool known = std::any_of(runs.begin(), runs.end(),
                                   [&](const RunSpec& other) { return same_run(other, *there); });
    if (!known) runs.push_back(*there);
  }
  return runs;
}

std::vector<RunSpec> variants_of(const Experiment& experiment, const RunSearch& search,
                                 const RunSpec& run, std::uint32_t num_ranks) {
  std::vector<RunSpec> variants;
  if (num_ranks == 1) return variants;  // all placements are one
  for (const std::string& placement :
       search.placements.empty() ? default_placements(experiment) : search.placements) {
    RunSpec variant = with_placement(run, placement);
    for (const std::uint32_t count : replicas_for(experiment, search, run, num_ranks)) {
      variant.num_replicas = count;
      if (!same_run(variant, run) && fits(experiment, variant, num_ranks)) {
        variants.push_back(variant);
      }
    }
  }
  return variants;
}

std::string runs_text(std::span<const RunSpec> runs) {
  std::vector<std::string> texts;
  for (const RunSpec& run : runs) {
    std::string text = fmt::format("{{name: {}, placement: {}, dispatch: {}", yaml_text(run.name),
                                   yaml_text(run.placement), to_string(run.policy));
    if (run.transport) text += ", transport: " + transport_text(*run.transport);
    if (run.prune) {
      text +=
          fmt::format(", prune: {{method: {}, devices: {}}}",
                      run.prune->method == PruneMethod::kSimilarity ? "similarity" : "router_score",
                      run.prune->num_devices);
    }
    if (run.max_imbalance) text += fmt::format(", max_imbalance: {}", *run.max_imbalance);
    if (run.max_node_imbalance) {
      text += fmt::format(", max_node_imbalance: {}", *run.max_node_imbalance);
    }
    if (run.num_replicas > 0) text += fmt::format(", replicas: {}", run.num_replicas);
    if (run.replica_choice) {
      text += fmt::format(", replica_choice: {}", to_string(*run.replica_choice));
    }
    texts.push_back(text + "}");
  }
  return fmt::format("[{}]", fmt::join(texts, ", "));
}

void check(RunSearch& search) {
  for (std::string& placement : search.placements) {
    if (is_strategy(placement)) continue;
    if (!is_input_file(placement)) {
      throw InputError(
          "--placements", yaml_text(placement),
          fmt::format("one of {}, or a placement file", fmt::join(placement_strategies(), ", ")));
    }
    placement = absolute_path(placement).string();
  }
}

}  // namespace coterie
