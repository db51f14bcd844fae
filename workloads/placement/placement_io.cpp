// Placement files: our JSON and the physical_to_logical_map of EPLB, vLLM and SGLang.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/placement/placement.hpp"

namespace coterie {
namespace {

using nlohmann::json;

constexpr std::uint32_t kMaxRanks = 1u << 20;

// A value with its place: "p.json: layers[3].rank_experts".
class JsonValue {
 public:
  JsonValue(const json& value, std::string where) : value_(&value), where_(std::move(where)) {}

  [[nodiscard]] std::size_t size() const { return value_->size(); }

  [[nodiscard]] InputError error(std::string_view found, std::string_view expected) const {
    return InputError(where_, found, expected);
  }

  [[nodiscard]] std::string excerpt() const {
    constexpr std::size_t kLength = 40;
    const std::string text = value_->dump(-1, ' ', true, json::error_handler_t::replace);
    return text.size() <= kLength ? text : text.substr(0, kLength) + "...";
  }

  [[nodiscard]] JsonValue at(std::size_t i) const {
    return {(*value_)[i], fmt::format("{}[{}]", where_, i)};
  }

  void expect_list() const {
    if (!value_->is_array()) throw error(excerpt(), "a list");
  }

  // A map with exactly these keys.
  void expect_keys(const std::vector<std::string>& keys) const {
    if (!value_->is_object()) throw error(excerpt(), "a map");
    for (const auto& entry : value_->items()) {
      if (std::find(keys.begin(), keys.end(), entry.key()) == keys.end()) {
        throw error(fmt::format("the key '{}'", entry.key()),
                    fmt::format("only the keys {}", fmt::join(keys, ", ")));
      }
    }
    for (const std::string& key : keys) {
      if (!value_->contains(key)) {
        throw error(fmt::format("no key '{}'", key),
                    fmt::format("the keys {}", fmt::join(keys, ", ")));
      }
    }
  }

  [[nodiscard]] JsonValue key(const std::string& name) const {
    return {value_->at(name), fmt::format("{}{}{}", where_, top_ ? ": " : ".", name)};
  }

  [[nodiscard]] std::uint32_t integer(std::uint32_t min, std::uint32_t max) const {
    const bool fits = value_->is_number_unsigned() && value_->get<std::uint64_t>() >= min &&
                      value_->get<std::uint64_t>() <= max;
    if (!fits) throw error(excerpt(), fmt::format("an integer from {} to {}", min, max));
    return value_->get<std::uint32_t>();
  }

  [[nodiscard]] std::string string() const {
    if (!value_->is_string()) throw error(excerpt(), "a string");
    return value_->get<std::string>();
  }

  [[nodiscard]] bool has(const std::string& name) const {
    return value_->is_object() && value_->contains(name);
  }

  JsonValue& mark_top() {
    top_ = true;
    return *this;
  }

 private:
  const json* value_;
  std::string where_;
  bool top_ = false;
};

// Parses and refuses duplicate keys, which the library would silently overwrite.
json parse_json(std::string_view text, const std::string& name) {
  std::vector<std::set<std::string>> open_maps;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) open_maps.emplace_back();
    if (event == json::parse_event_t::object_end) open_maps.pop_back();
    if (event == json::parse_event_t::key &&
        !open_maps.back().insert(parsed.get<std::string>()).second) {
      throw InputError(name, fmt::format("the key '{}' twice", parsed.get<std::string>()),
                       "every key once");
    }
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::parse_error& error) {
    const std::size_t end = std::min(error.byte, text.size() + 1);
    const std::string_view before = text.substr(0, end > 0 ? end - 1 : 0);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const std::size_t column = before.size() - (before.rfind('\n') + 1) + 1;
    throw InputError(fmt::format("{}:{}:{}", name, line, column),
                     error.byte > text.size() ? "the end of the file" : "text that is not JSON",
                     "a placement in JSON");
  }
}

Placement read_native(const JsonValue& root, std::optional<std::uint32_t> num_ranks) {
  root.expect_keys({"schema_version", "strategy", "trained_on", "num_experts", "num_ranks",
                    "ranks_per_node", "layers"});
  static_cast<void>(root.key("schema_version").integer(1, 1));
  Placement placement;
  placement.strategy = root.key("strategy").string();
  placement.trained_on = root.key("trained_on").string();
  placement.num_experts = root.key("num_experts").integer(1, kMaxExperts);
  placement.num_ranks = root.key("num_ranks").integer(1, kMaxRanks);
  placement.ranks_per_node = root.key("ranks_per_node").integer(1, kMaxRanks);
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
      throw ranks.error(fmt::format("{} ranks", ranks.size()),
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

Placement read_map(const JsonValue& root, const std::string& name,
                   std::optional<std::uint32_t> num_ranks) {
  root.expect_keys({std::string(kMapStrategy)});
  if (!num_ranks) {
    throw InputError(
        fmt::format("{}: found a physical_to_logical_map, expected the number of "
                    "ranks beside it (--ranks)",
                    name));
  }
  const JsonValue rows = root.key(std::string(kMapStrategy));
  rows.expect_list();
  if (rows.size() == 0) throw rows.error("an empty list", "at least one layer");
  Placement placement;
  placement.strategy = kMapStrategy;
  placement.num_ranks = *num_ranks;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const JsonValue row = rows.at(i);
    row.expect_list();
    if (row.size() == 0 || row.size() % *num_ranks != 0 || row.size() != rows.at(0).size()) {
      throw row.error(fmt::format("{} slots", row.size()),
                      row.size() == rows.at(0).size() || row.size() == 0
                          ? fmt::format("a multiple of the {} ranks", *num_ranks)
                          : fmt::format("{}, as in the first layer", rows.at(0).size()));
    }
    const std::size_t slots_per_rank = row.size() / *num_ranks;
    LayerPlacement layer{static_cast<std::uint32_t>(i), {}};
    for (std::size_t rank = 0; rank < *num_ranks; ++rank) {
      std::set<ExpertIdx> ids;  // EPLB may put two replicas on one rank: they are one host
      for (std::size_t j = 0; j < slots_per_rank; ++j) {
        const std::uint32_t id = row.at(rank * slots_per_rank + j).integer(0, kMaxExperts - 1);
        ids.insert(static_cast<ExpertIdx>(id));
        placement.num_experts = std::max(placement.num_experts, id + 1);
      }
      layer.rank_experts.emplace_back(ids.begin(), ids.end());
    }
    placement.layers.push_back(std::move(layer));
  }
  return placement;
}

void write_native(std::ostream& out, const Placement& placement) {
  out << fmt::format(
      "{{\n  \"schema_version\": 1,\n  \"strategy\": {},\n  \"trained_on\": {},\n"
      "  \"num_experts\": {},\n  \"num_ranks\": {},\n  \"ranks_per_node\": {},\n"
      "  \"layers\": [\n",
      json(placement.strategy).dump(), json(placement.trained_on).dump(), placement.num_experts,
      placement.num_ranks, placement.ranks_per_node);
  for (std::size_t i = 0; i < placement.layers.size(); ++i) {
    out << fmt::format("    {{\"layer\": {}, \"rank_experts\": {}}}{}\n", placement.layers[i].layer,
                       placement.layers[i].rank_experts,
                       i + 1 < placement.layers.size() ? "," : "");
  }
  out << "  ]\n}\n";
}

void write_map(std::ostream& out, const Placement& placement, PlacementFormat format) {
  const std::size_t num_slots =
      placement.layers.at(0).rank_experts.at(0).size() * std::size_t{placement.num_ranks};
  std::vector<std::vector<std::uint32_t>> rows;
  for (const LayerPlacement& layer : placement.layers) {
    while (format == PlacementFormat::kSglang && rows.size() < layer.layer) {
      std::vector<std::uint32_t>& row = rows.emplace_back();
      for (std::size_t slot = 0; slot < num_slots; ++slot) {
        row.push_back(static_cast<std::uint32_t>(slot % placement.num_experts));
      }
    }
    std::vector<std::uint32_t>& row = rows.emplace_back();
    for (const auto& experts : layer.rank_experts) {
      if (experts.size() * placement.num_ranks != num_slots) {
        throw InputError(fmt::format(
            "layer {}: found ranks of different numbers of experts, expected equal ones: a "
            "physical_to_logical_map cannot say otherwise",
            layer.layer));
      }
      row.insert(row.end(), experts.begin(), experts.end());
    }
  }
  out << fmt::format("{{\"physical_to_logical_map\": [\n{}\n]}}\n", fmt::join(rows, ",\n"));
}

}  // namespace

std::optional<PlacementFormat> parse_placement_format(std::string_view name) {
  if (name == "coterie") return PlacementFormat::kCoterie;
  if (name == "eplb") return PlacementFormat::kEplb;
  if (name == "sglang") return PlacementFormat::kSglang;
  return std::nullopt;
}

void write_placement(const std::filesystem::path& path, const Placement& placement,
                     PlacementFormat format) {
  const auto violations = check(placement);
  if (!violations.empty() || placement.layers.empty()) {
    throw InputError(fmt::format(
        "placement for {}: {}", path.string(),
        violations.empty() ? "found no layers, expected at least one" : violations.front()));
  }
  write_file(path, [&](std::ostream& out) {
    if (format == PlacementFormat::kCoterie) {
      write_native(out, placement);
    } else {
      write_map(out, placement, format);
    }
  });
}

Placement parse_placement(std::string_view text, const std::string& name,
                          std::optional<std::uint32_t> num_ranks) {
  const json document = parse_json(text, name);
  JsonValue root(document, name);
  root.mark_top();
  Placement placement = root.has(std::string(kMapStrategy)) ? read_map(root, name, num_ranks)
                                                            : read_native(root, num_ranks);
  const auto violations = check(placement);
  if (!violations.empty()) throw InputError(fmt::format("{}: {}", name, violations.front()));
  return placement;
}

Placement read_placement(const std::filesystem::path& path,
                         std::optional<std::uint32_t> num_ranks) {
  return parse_placement(read_file(path), path.string(), num_ranks);
}

}  // namespace coterie
