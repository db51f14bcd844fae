// Placement files: our JSON, and which format a file has.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "workloads/placement/engine_formats.hpp"
#include "workloads/placement/json_value.hpp"
#include "workloads/placement/placement.hpp"

namespace coterie {
namespace {

using nlohmann::json;

constexpr std::uint32_t kMaxRanks = 1u << 20;

Placement read_native(const JsonValue& root, std::optional<std::uint32_t> num_ranks) {
  std::vector<std::string> keys = {"schema_version", "strategy",       "trained_on", "num_experts",
                                   "num_ranks",      "ranks_per_node", "layers"};
  // Files of version 0.1 do not have it: they were made for locality.
  if (root.has("replica_choice")) keys.emplace_back("replica_choice");
  root.expect_keys(keys);
  static_cast<void>(root.key("schema_version").integer(1, 1));
  Placement placement;
  placement.strategy = root.key("strategy").string();
  placement.trained_on = root.key("trained_on").string();
  placement.num_experts = root.key("num_experts").integer(1, kMaxExperts);
  placement.num_ranks = root.key("num_ranks").integer(1, kMaxRanks);
  placement.ranks_per_node = root.key("ranks_per_node").integer(1, kMaxRanks);
  if (root.has("replica_choice")) {
    const auto choice = parse_replica_choice(root.key("replica_choice").string());
    if (!choice) {
      throw root.key("replica_choice")
          .error(root.key("replica_choice").excerpt(),
                 fmt::format("one of {}", replica_choice_names()));
    }
    placement.replica_choice = *choice;
  }
  if (num_ranks && *num_ranks != placement.num_ranks) {
    throw root.key("num_ranks")
        .error(std::to_string(placement.num_ranks), fmt::format("{}, as asked for", *num_ranks));
  }
  const JsonValue layers = root.key("layers");
  layers.expect_list();
  if (layers.size() == 0) throw layers.error("an empty list", "at least one layer");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const JsonValue entry = layers.at(i);
    entry.expect_keys({"layer", "rank_experts"});
    LayerPlacement layer;
    layer.layer = entry.key("layer").integer(0, 1u << 20);
    if (i > 0 && layer.layer <= placement.layers.back().layer) {
      throw entry.key("layer").error(
          std::to_string(layer.layer),
          fmt::format("a layer after {}", placement.layers.back().layer));
    }
    const JsonValue ranks = entry.key("rank_experts");
    ranks.expect_list();
    if (ranks.size() != placement.num_ranks) {
      throw ranks.error(counted(ranks.size(), "rank"),
                        fmt::format("{}, as num_ranks says", placement.num_ranks));
    }
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      const JsonValue experts = ranks.at(rank);
      experts.expect_list();
      std::vector<ExpertIdx> ids;
      for (std::size_t j = 0; j < experts.size(); ++j) {
        ids.push_back(static_cast<ExpertIdx>(experts.at(j).integer(0, placement.num_experts - 1)));
      }
      std::sort(ids.begin(), ids.end());
      layer.rank_experts.push_back(std::move(ids));
    }
    placement.layers.push_back(std::move(layer));
  }
  return placement;
}

void write_native(std::ostream& out, const Placement& placement) {
  out << fmt::format(
      "{{\n  \"schema_version\": 1,\n  \"strategy\": {},\n  \"trained_on\": {},\n"
      "  \"num_experts\": {},\n  \"num_ranks\": {},\n  \"ranks_per_node\": {},\n"
      "  \"replica_choice\": {},\n  \"layers\": [\n",
      dump_json(json(placement.strategy)), dump_json(json(placement.trained_on)),
      placement.num_experts, placement.num_ranks, placement.ranks_per_node,
      json(to_string(placement.replica_choice)).dump());
  for (std::size_t i = 0; i < placement.layers.size(); ++i) {
    out << fmt::format("    {{\"layer\": {}, \"rank_experts\": {}}}{}\n", placement.layers[i].layer,
                       placement.layers[i].rank_experts,
                       i + 1 < placement.layers.size() ? "," : "");
  }
  out << "  ]\n}\n";
}

}  // namespace

void write_placement(const std::filesystem::path& path, const Placement& placement,
                     PlacementFormat format, const std::optional<ModelLayers>& model) {
  const auto violations = check(placement);
  if (!violations.empty() || placement.layers.empty()) {
    throw InputError(fmt::format(
        "placement for {}: {}", path.string(),
        violations.empty() ? "found no layers, expected at least one" : violations.front()));
  }
  const auto problems = loading_problems(placement, format, path, model);
  if (!problems.empty()) throw InputError(problems.front());
  write_file(path, [&](std::ostream& out) {
    if (format == PlacementFormat::kCoterie) {
      write_native(out, placement);
    } else {
      write_engine_format(out, placement, format, model);
    }
  });
}

Placement parse_placement(std::string_view text, const std::string& name,
                          std::optional<std::uint32_t> num_ranks) {
  Placement placement;
  if (is_trtllm_yaml(text)) {
    placement = read_trtllm_yaml(text, name, num_ranks);
  } else {
    const json document = parse_placement_json(text, name);
    JsonValue root(document, name);
    root.mark_top();
    placement = is_engine_json(root) ? read_engine_json(root, name, num_ranks)
                                     : read_native(root, num_ranks);
  }
  const auto violations = check(placement);
  if (!violations.empty()) throw InputError(fmt::format("{}: {}", name, violations.front()));
  return placement;
}

Placement read_placement(const std::filesystem::path& path,
                         std::optional<std::uint32_t> num_ranks) {
  return parse_placement(read_file(path), path.string(), num_ranks);
}

}  // namespace coterie
