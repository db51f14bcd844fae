#include "workloads/placement/engine_formats.hpp"

#include <array>
#include <set>

#include "core/counted.hpp"
#include "core/yaml.hpp"

namespace coterie {
namespace {

constexpr const char* kAssignments = "initial_global_assignments";
constexpr const char* kAscendStrategy = "vllm_ascend_expert_map";

struct FormatEntry {
  PlacementFormat format;
  std::string_view name;
  ReplicaChoice choice;  // that the engine applies by default
};
constexpr std::array<FormatEntry, 5> kFormats = {{
    {PlacementFormat::kCoterie, "coterie", ReplicaChoice::kLocality},
    {PlacementFormat::kEplb, "eplb", ReplicaChoice::kRoundRobin},
    {PlacementFormat::kSglang, "sglang", ReplicaChoice::kStatic},
    {PlacementFormat::kTrtllm, "trtllm", ReplicaChoice::kRoundRobin},
    {PlacementFormat::kVllmAscend, "vllm-ascend", ReplicaChoice::kStatic},
}};

// Engines' files say nothing of nodes: nodes of 8 GPUs, or one smaller node.
void set_ranks(Placement& placement, std::uint32_t num_ranks) {
  constexpr std::uint32_t kGpusPerNode = 8;
  placement.num_ranks = num_ranks;
  placement.ranks_per_node = std::min(num_ranks, kGpusPerNode);
}

std::uint32_t needed_ranks(const std::string& name, std::string_view what,
                           std::optional<std::uint32_t> num_ranks) {
  if (num_ranks) return *num_ranks;
  throw InputError(
      fmt::format("{}: found {}, expected the number of ranks beside it (--ranks)", name, what));
}

// Adds a row of slots, rank-major, as a layer. EPLB may put two replicas on one rank: they are one
// host.
void add_row(Placement& placement, std::uint32_t layer, const std::vector<std::uint32_t>& slots) {
  const std::size_t slots_per_rank = slots.size() / placement.num_ranks;
  LayerPlacement result{layer, {}};
  for (std::size_t rank = 0; rank < placement.num_ranks; ++rank) {
    std::set<ExpertIdx> ids;
    for (std::size_t j = 0; j < slots_per_rank; ++j) {
      const std::uint32_t id = slots[rank * slots_per_rank + j];
      ids.insert(static_cast<ExpertIdx>(id));
      placement.num_experts = std::max(placement.num_experts, id + 1);
    }
    result.rank_experts.emplace_back(ids.begin(), ids.end());
  }
  placement.layers.push_back(std::move(result));
}

std::vector<std::uint32_t> read_slots(const JsonValue& row, std::uint32_t num_ranks) {
  if (row.size() == 0 || row.size() % num_ranks != 0) {
    throw row.error(fmt::format("{} slots", row.size()),
                    fmt::format("a multiple of the {}", counted(num_ranks, "rank")));
  }
  std::vector<std::uint32_t> slots;
  for (std::size_t i = 0; i < row.size(); ++i)
    slots.push_back(row.at(i).integer(0, kMaxExperts - 1));
  return slots;
}

// A list of rows, or one row that all layers share.
Placement read_rows(const JsonValue& rows, const std::string& name,
                    std::optional<std::uint32_t> num_ranks) {
  Placement placement;
  placement.strategy = kMapStrategy;
  set_ranks(placement, needed_ranks(name, "a physical_to_logical_map", num_ranks));
  rows.expect_list();
  if (rows.size() == 0) throw rows.error("an empty list", "at least one layer");
  if (rows.at(0).is_number()) {
    placement.layer_rows = LayerRows::kShared;
    add_row(placement, 0, read_slots(rows, placement.num_ranks));
    return placement;
  }
  placement.layer_rows = LayerRows::kBare;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const JsonValue row = rows.at(i);
    row.expect_list();
    if (row.size() != rows.at(0).size() && row.size() != 0) {
      throw row.error(fmt::format("{} slots", row.size()),
                      fmt::format("{}, as in the first layer", rows.at(0).size()));
    }
    add_row(placement, static_cast<std::uint32_t>(i), read_slots(row, placement.num_ranks));
  }
  return placement;
}

Placement read_ascend(const JsonValue& root, std::optional<std::uint32_t> num_ranks) {
  const JsonValue layers = root.key("layer_list");
  layers.expect_list();
  if (layers.size() == 0) throw layers.error("an empty list", "at least one layer");
  if (root.has("moe_layer_count")) {
    const auto count = root.key("moe_layer_count").integer(1, 1u << 20);
    if (count != layers.size()) {
      throw layers.error(counted(layers.size(), "layer"),
                         fmt::format("{}, as moe_layer_count says", count));
    }
  }
  Placement placement;
  placement.strategy = kAscendStrategy;
  placement.layer_rows = LayerRows::kMoeOnly;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const JsonValue layer = layers.at(i);
    layer.expect_map();
    if (layer.has("layer_id") && layer.key("layer_id").integer(0, 1u << 20) != i) {
      throw layer.key("layer_id")
          .error(layer.key("layer_id").excerpt(), fmt::format("{}, its place in the list", i));
    }
    const JsonValue devices = layer.required("device_list");
    devices.expect_list();
    const auto num_devices = static_cast<std::uint32_t>(devices.size());
    if (layer.has("device_count") &&
        layer.key("device_count").integer(0, 1u << 20) != num_devices) {
      throw devices.error(
          counted(num_devices, "device"),
          fmt::format("{}, as device_count says", layer.key("device_count").excerpt()));
    }
    if (i == 0) set_ranks(placement, num_ranks.value_or(num_devices));
    if (num_devices != placement.num_ranks || num_devices == 0) {
      throw devices.error(counted(num_devices, "device"),
                          fmt::format("{}, {}", placement.num_ranks,
                                      num_ranks ? "as asked for" : "as in the first layer"));
    }
    LayerPlacement row{static_cast<std::uint32_t>(i), {}};
    for (std::size_t rank = 0; rank < devices.size(); ++rank) {
      const JsonValue device = devices.at(rank);
      device.expect_map();
      if (device.has("device_id") && device.key("device_id").integer(0, 1u << 20) != rank) {
        throw device.key("device_id")
            .error(device.key("device_id").excerpt(),
                   fmt::format("{}, its place in the list", rank));
      }
      const JsonValue experts = device.required("device_expert");
      experts.expect_list();
      std::set<ExpertIdx> ids;
      for (std::size_t j = 0; j < experts.size(); ++j) {
        const std::uint32_t id = experts.at(j).integer(0, kMaxExperts - 1);
        ids.insert(static_cast<ExpertIdx>(id));
        placement.num_experts = std::max(placement.num_experts, id + 1);
      }
      row.rank_experts.emplace_back(ids.begin(), ids.end());
    }
    placement.layers.push_back(std::move(row));
  }
  return placement;
}

bool has_replicas(const Placement& placement) {
  for (const LayerPlacement& layer : placement.layers) {
    std::size_t slots = 0;
    for (const auto& experts : layer.rank_experts) slots += experts.size();
    if (slots != placement.num_experts) return true;
  }
  return false;
}

std::size_t num_slots(const Placement& placement) {
  return placement.layers.at(0).rank_experts.at(0).size() * std::size_t{placement.num_ranks};
}

// [slots], rank-major.
std::vector<std::uint32_t> slots_of(const LayerPlacement& layer) {
  std::vector<std::uint32_t> slots;
  for (const auto& experts : layer.rank_experts) {
    slots.insert(slots.end(), experts.begin(), experts.end());
  }
  return slots;
}

// Rows of the whole model: layers without experts, and those that the placement lacks, hold slot
// modulo experts, as SGLang's own default does.
std::vector<std::vector<std::uint32_t>> model_rows(const Placement& placement,
                                                   std::uint32_t num_layers) {
  std::vector<std::uint32_t> plain;
  for (std::size_t slot = 0; slot < num_slots(placement); ++slot) {
    plain.push_back(static_cast<std::uint32_t>(slot % placement.num_experts));
  }
  std::vector<std::vector<std::uint32_t>> rows(
      std::max(num_layers, placement.layers.back().layer + 1), plain);
  for (const LayerPlacement& layer : placement.layers) rows[layer.layer] = slots_of(layer);
  return rows;
}

void write_map(std::ostream& out, const std::vector<std::vector<std::uint32_t>>& rows) {
  out << fmt::format("{{\"physical_to_logical_map\": [\n{}\n]}}\n", fmt::join(rows, ",\n"));
}

void write_trtllm(std::ostream& out, const Placement& placement) {
  out << fmt::format("num_slots: {}\nlayer_updates_per_iter: 0\n{}:\n", num_slots(placement),
                     kAssignments);
  for (const LayerPlacement& layer : placement.layers) {
    out << fmt::format("  {}: {}\n", layer.layer, slots_of(layer));
  }
}

void write_ascend(std::ostream& out, const Placement& placement) {
  out << fmt::format("{{\"moe_layer_count\": {}, \"layer_list\": [\n", placement.layers.size());
  for (std::size_t i = 0; i < placement.layers.size(); ++i) {
    std::vector<std::string> devices;
    for (const auto& experts : placement.layers[i].rank_experts) {
      devices.push_back(
          fmt::format("{{\"device_id\": {}, \"device_expert\": {}}}", devices.size(), experts));
    }
    out << fmt::format("{{\"layer_id\": {}, \"device_count\": {}, \"device_list\": [{}]}}{}\n", i,
                       devices.size(), fmt::join(devices, ", "),
                       i + 1 < placement.layers.size() ? "," : "");
  }
  out << "]}\n";
}

const FormatEntry& entry_of(PlacementFormat format) {
  for (const FormatEntry& entry : kFormats) {
    if (entry.format == format) return entry;
  }
  throw Error(ExitCode::kInternalError, "a placement format has no name");
}

}  // namespace

bool is_engine_json(const JsonValue& root) {
  return root.is_list() || root.has(std::string(kMapStrategy)) || root.has("model_maps") ||
         root.has("layer_list") || root.has("logical_count");
}

Placement read_engine_json(const JsonValue& root, const std::string& name,
                           std::optional<std::uint32_t> num_ranks) {
  if (root.is_list()) return read_rows(root, name, num_ranks);
  if (root.has("layer_list")) return read_ascend(root, num_ranks);
  const std::string map(kMapStrategy);
  if (root.has("model_maps")) {
    const JsonValue models = root.key("model_maps");
    models.expect_map();
    const std::vector<std::string> names = models.keys();
    if (names.size() != 1) {
      throw models.error(fmt::format("{} models{}{}", names.size(), names.empty() ? "" : ": ",
                                     fmt::join(names, ", ")),
                         "the map of one model in a file of its own");
    }
    const JsonValue model = models.key(names[0]);
    model.expect_map();
    return read_rows(model.required(map), name, num_ranks);
  }
  if (!root.has(map)) {
    throw InputError(name, "logical_count, which is how often each expert was chosen",
                     "a placement: physical_to_logical_map (coterie trace import reads counts)");
  }
  Placement placement = read_rows(root.key(map), name, num_ranks);
  for (const std::string& key : root.keys()) {
    if (key != map) placement.keys_left_aside.push_back(key);
  }
  return placement;
}

bool is_trtllm_yaml(std::string_view text) {
  return text.find(kAssignments) != std::string_view::npos;
}

Placement read_trtllm_yaml(std::string_view text, const std::string& name,
                           std::optional<std::uint32_t> num_ranks) {
  YamlMap root = parse_yaml(text, name).as_map();
  Placement placement;
  placement.strategy = kAssignments;
  set_ranks(placement, needed_ranks(name, kAssignments, num_ranks));
  std::optional<std::int64_t> slots_said;
  if (const auto slots = root.optional("num_slots")) slots_said = slots->as_integer(1, 1 << 20);
  if (const auto updates = root.optional("layer_updates_per_iter")) {
    static_cast<void>(updates->as_integer(0, 1 << 20));
  }
  YamlMap layers = root.required(kAssignments).as_map();
  root.finish();
  std::vector<std::pair<std::uint32_t, std::string>> numbered;
  for (const std::string& key : layers.keys()) {
    const bool digits =
        !key.empty() && key.size() < 7 &&
        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits) {
      throw layers.required(key).error(fmt::format("the layer \"{}\"", key),
                                       "a layer's number in the model");
    }
    numbered.emplace_back(static_cast<std::uint32_t>(std::stoul(key)), key);
  }
  std::sort(numbered.begin(), numbered.end());
  if (numbered.empty()) throw layers.value().error("no layers", "at least one");
  for (const auto& [layer, key] : numbered) {
    const YamlValue row = layers.required(key);
    const std::vector<YamlValue> values = row.as_list();
    if (slots_said && static_cast<std::int64_t>(values.size()) != *slots_said) {
      throw row.error(fmt::format("{} slots", values.size()),
                      fmt::format("{}, as num_slots says", *slots_said));
    }
    if (values.empty() || values.size() % placement.num_ranks != 0) {
      throw row.error(fmt::format("{} slots", values.size()),
                      fmt::format("a multiple of the {}", counted(placement.num_ranks, "rank")));
    }
    std::vector<std::uint32_t> slots;
    for (const YamlValue& value : values) {
      slots.push_back(static_cast<std::uint32_t>(value.as_integer(0, kMaxExperts - 1)));
    }
    if (!placement.layers.empty() && placement.layers.back().layer == layer) {
      throw row.error(fmt::format("layer {} again", layer), "every layer once");
    }
    add_row(placement, layer, slots);
  }
  return placement;
}

std::optional<PlacementFormat> parse_placement_format(std::string_view name) {
  for (const FormatEntry& entry : kFormats) {
    if (entry.name == name) return entry.format;
  }
  return std::nullopt;
}

std::string placement_format_names() {
  std::string names;
  for (const FormatEntry& entry : kFormats) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", entry.name);
  }
  return names;
}

ReplicaChoice default_replica_choice(PlacementFormat format) {
  return entry_of(format).choice;
}

std::vector<std::string> loading_problems(const Placement& placement, PlacementFormat format,
                                          const std::filesystem::path& path,
                                          const std::optional<ModelLayers>& model) {
  std::vector<std::string> problems;
  if (format == PlacementFormat::kCoterie || placement.layers.empty()) return problems;
  for (const LayerPlacement& layer : placement.layers) {
    for (const auto& experts : layer.rank_experts) {
      if (experts.size() * placement.num_ranks == num_slots(placement)) continue;
      problems.push_back(fmt::format(
          "layer {}: found ranks of different numbers of experts, expected equal ones: {} has as "
          "many slots on every rank (add replicas until the slots divide by the ranks)",
          layer.layer, entry_of(format).name));
      break;
    }
    if (!problems.empty()) break;
  }
  const ReplicaChoice choice = placement.replica_choice;
  const auto cannot_choose = [&](std::string_view engine, std::string_view rules) {
    problems.push_back(fmt::format(
        "replica choice: found {}, expected {}: {} has no other rule, so that the placement would "
        "not do there what it was made for",
        to_string(choice), rules, engine));
  };
  const bool replicated = has_replicas(placement);
  if (format == PlacementFormat::kSglang) {
    if (path.extension() != ".json") {
      problems.push_back(fmt::format(
          "{}: found the ending \"{}\", expected .json: SGLang takes any other name for "
          "the JSON itself",
          path.string(), path.extension().string()));
    }
    if (replicated && choice != ReplicaChoice::kStatic && choice != ReplicaChoice::kRandom) {
      cannot_choose("SGLang", "static or random (its dynamic)");
    }
  }
  if (format == PlacementFormat::kTrtllm && replicated && choice != ReplicaChoice::kRoundRobin) {
    cannot_choose("TensorRT-LLM", "round_robin");
  }
  if (format == PlacementFormat::kVllmAscend && replicated && choice != ReplicaChoice::kStatic) {
    cannot_choose("vLLM-Ascend", "static");
  }
  if ((format == PlacementFormat::kTrtllm || format == PlacementFormat::kVllmAscend) && model) {
    for (const std::uint32_t layer : model->moe_layers) {
      const bool found = std::any_of(placement.layers.begin(), placement.layers.end(),
                                     [&](const LayerPlacement& l) { return l.layer == layer; });
      if (found) continue;
      problems.push_back(fmt::format(
          "found no layer {}, expected all {} MoE layers of the model: {} stops at a layer that "
          "the file lacks",
          layer, model->moe_layers.size(), entry_of(format).name));
      break;
    }
  }
  return problems;
}

std::string launch_flags(const Placement& placement, PlacementFormat format,
                         const std::filesystem::path& path) {
  const std::size_t redundant =
      placement.layers.empty() ? 0 : num_slots(placement) - placement.num_experts;
  switch (format) {
    case PlacementFormat::kCoterie:
    case PlacementFormat::kEplb:
      return "";
    case PlacementFormat::kSglang:
      return fmt::format(
          "# SGLang (python -m sglang.launch_server)\n--ep-size {} --ep-num-redundant-experts {} "
          "--init-expert-location {} --ep-dispatch-algorithm {}\n",
          placement.num_ranks, redundant, path.string(),
          placement.replica_choice == ReplicaChoice::kRandom ? "dynamic" : "static");
    case PlacementFormat::kTrtllm:
      return fmt::format(
          "# TensorRT-LLM (in the YAML given to trtllm-serve --extra_llm_api_options)\n"
          "moe_expert_parallel_size: {}\nmoe_config:\n  load_balancer: {}\n",
          placement.num_ranks, path.string());
    case PlacementFormat::kVllmAscend:
      return fmt::format(
          "# vLLM-Ascend (vllm serve)\n--enable-expert-parallel --additional-config "
          "'{{\"eplb_config\": {{\"expert_map_path\": \"{}\", \"num_redundant_experts\": {}}}}}'\n",
          path.string(), redundant);
  }
  return "";
}

void write_engine_format(std::ostream& out, const Placement& placement, PlacementFormat format,
                         const std::optional<ModelLayers>& model) {
  switch (format) {
    case PlacementFormat::kCoterie:
      return;
    case PlacementFormat::kEplb: {
      std::vector<std::vector<std::uint32_t>> rows;
      for (const LayerPlacement& layer : placement.layers) rows.push_back(slots_of(layer));
      write_map(out, rows);
      return;
    }
    case PlacementFormat::kSglang:
      write_map(out, model_rows(placement, model ? model->num_layers : 0));
      return;
    case PlacementFormat::kTrtllm:
      write_trtllm(out, placement);
      return;
    case PlacementFormat::kVllmAscend:
      write_ascend(out, placement);
      return;
  }
}

}  // namespace coterie
