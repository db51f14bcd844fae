#include "topologies/cluster.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/reference.hpp"
#include "topologies/fabrics/fabric_type.hpp"
#include "topologies/layered_map.hpp"

namespace coterie {
namespace embedded {
extern const std::vector<std::pair<std::string, std::string>> topology_presets;
}

namespace {

constexpr std::uint32_t kMaxNodes = 1U << 20;
constexpr std::uint32_t kMaxGpusPerNode = 1024;
constexpr std::uint64_t kMaxGpus = 1U << 22;
constexpr std::size_t kMaxExtends = 8;

const Preset* find_preset(const std::string& name) {
  for (const Preset& preset : topology_presets()) {
    if (preset.name == name) return &preset;
  }
  return nullptr;
}

std::string preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : topology_presets()) names.push_back(preset.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

// A document and the folder that its relative paths start from.
struct Source {
  YamlValue document;
  std::filesystem::path folder;
  std::string stem;
};

// `folder` is put before relative paths.
Source open_source(const std::string& name_or_path, const std::filesystem::path& folder,
                   const std::vector<Override>& overrides, std::string_view where) {
  if (const Preset* preset = find_preset(name_or_path)) {
    return {parse_yaml(preset->text, "preset " + preset->name, overrides), folder, preset->name};
  }
  const std::filesystem::path path = folder / name_or_path;
  if (!is_input_file(path)) {
    throw InputError(where, missing_reference(name_or_path, path),
                     fmt::format("a YAML file or one of the presets {}", preset_names()));
  }
  return {load_yaml(path, overrides), path.parent_path(), path.stem().string()};
}

// The document and everything it extends, topmost first.
LayeredMap open_layers(const Source& top) {
  std::vector<YamlMap> layers{top.document.as_map()};
  std::filesystem::path folder = top.folder;
  while (true) {
    const auto extends = layers.back().optional("extends");
    if (const auto version = layers.back().optional("schema_version")) {
      if (!version->is_scalar() || version->as_string() != "1") {
        throw version->error(version->excerpt(), "schema_version 1");
      }
    } else if (!extends) {
      (void)layers.back().required("schema_version");
    }
    if (!extends) return LayeredMap(std::move(layers));
    if (layers.size() > kMaxExtends) {
      throw extends->error(fmt::format("a chain of more than {}", counted(kMaxExtends, "file")),
                           "extends without a circle");
    }
    const Source base = open_source(extends->as_string(), folder, {}, extends->where());
    layers.push_back(base.document.as_map());
    folder = base.folder;
  }
}

ComputeRate positive_rate(const YamlValue& value) {
  const ComputeRate rate = value.as_compute_rate();
  if (rate.value <= 0.0) throw value.error(value.excerpt(), "a rate above zero");
  return rate;
}

MlpTile read_mlp_tile(const YamlValue& value) {
  YamlMap map = value.as_map();
  MlpTile tile;
  tile.rows = static_cast<std::uint32_t>(map.required("rows").as_integer(1, 4096));
  tile.compute_rate = positive_rate(map.required("compute_rate"));
  if (const auto time = map.optional("value_time")) tile.value_time = time->as_seconds();
  if (const auto tokens = map.optional("up_to_tokens")) {
    tile.up_to_tokens = static_cast<std::uint32_t>(tokens->as_integer(1, 1U << 30));
  }
  map.finish();
  return tile;
}

// Either no tile has tokens, or all but the last, rising.
void check_tile_tokens(const YamlValue& value, const std::vector<MlpTile>& tiles) {
  const auto has_tokens = [](const MlpTile& tile) { return tile.up_to_tokens.has_value(); };
  if (std::none_of(tiles.begin(), tiles.end(), has_tokens)) return;
  if (has_tokens(tiles.back()) || !std::all_of(tiles.begin(), tiles.end() - 1, has_tokens)) {
    throw value.error("up_to_tokens of some tiles", "it for all but the last, or for none");
  }
  for (std::size_t i = 0; i + 2 < tiles.size(); ++i) {
    if (*tiles[i].up_to_tokens < *tiles[i + 1].up_to_tokens) continue;
    throw value.error("up_to_tokens that do not rise", "each above the one before");
  }
}

MlpCosts read_mlp_costs(const YamlValue& value) {
  YamlMap map = value.as_map();
  MlpCosts costs;
  costs.launch = map.required("launch").as_seconds();
  costs.weight_bandwidth = positive_bandwidth(map.required("weight_bandwidth"));
  costs.compute_rate = positive_rate(map.required("compute_rate"));
  costs.batch_bandwidth = positive_bandwidth(map.required("batch_bandwidth"));
  costs.tile_padding = map.required("tile_padding").as_number(0.0, 4096.0);
  costs.sharpness = map.required("sharpness").as_number(1.0, 100.0);
  if (const auto tile = map.optional("tile_rows")) {
    costs.tile_rows = static_cast<std::uint32_t>(tile->as_integer(1, 4096));
  }
  if (const auto tiles = map.optional("tiles")) {
    for (const YamlValue& item : tiles->as_list()) costs.tiles.push_back(read_mlp_tile(item));
    const auto rises = [](const MlpTile& a, const MlpTile& b) { return a.rows >= b.rows; };
    if (std::adjacent_find(costs.tiles.begin(), costs.tiles.end(), rises) != costs.tiles.end()) {
      throw tiles->error("tiles whose rows do not rise", "each of more rows than the one before");
    }
    if (costs.tile_rows > 1) throw tiles->error("tiles beside tile_rows", "one of both");
    check_tile_tokens(*tiles, costs.tiles);
  }
  if (const auto depth = map.optional("tile_depth")) {
    costs.tile_depth = depth->as_number(0.0, 65536.0);
  }
  if (const auto reads = map.optional("reads_rows")) costs.reads_rows = reads->as_bool();
  if (const auto expert = map.optional("expert")) costs.expert = expert->as_seconds();
  if (const auto rows = map.optional("row_bandwidth")) {
    costs.row_bandwidth = positive_bandwidth(*rows);
  }
  if (const auto among = map.optional("among_streams")) costs.among_streams = among->as_seconds();
  map.finish();
  return costs;
}

KernelCosts read_kernel_costs(const YamlValue& value) {
  YamlMap map = value.as_map();
  KernelCosts costs;
  costs.launch = map.required("launch").as_seconds();
  costs.row = map.required("row").as_seconds();
  if (const auto copy = map.optional("copy")) costs.copy = copy->as_seconds();
  costs.bandwidth = positive_bandwidth(map.required("bandwidth"));
  if (const auto item = map.optional("item_bandwidth")) {
    costs.item_bandwidth = positive_bandwidth(*item);
  }
  if (const auto quantise = map.optional("quantise_bandwidth")) {
    costs.quantise_bandwidth = positive_bandwidth(*quantise);
  }
  if (const auto again = map.optional("again")) costs.again = again->as_seconds();
  map.finish();
  return costs;
}

RowKernels read_row_kernels(const YamlValue& value) {
  YamlMap map = value.as_map();
  RowKernels kernels;
  kernels.pack = read_kernel_costs(map.required("pack"));
  kernels.forward = read_kernel_costs(map.required("forward"));
  kernels.expand = read_kernel_costs(map.required("expand"));
  kernels.merge = read_kernel_costs(map.required("merge"));
  kernels.gather = read_kernel_costs(map.required("gather"));
  kernels.sum = read_kernel_costs(map.required("sum"));
  if (const auto copy = map.optional("own_copy")) kernels.own_copy = read_kernel_costs(*copy);
  if (const auto index = map.optional("send_index")) {
    kernels.send_index = read_kernel_costs(*index);
  }
  if (const auto index = map.optional("forward_index")) {
    kernels.forward_index = read_kernel_costs(*index);
  }
  if (const auto expand = map.optional("expand_put")) {
    kernels.expand_put = read_kernel_costs(*expand);
  }
  kernels.gap = map.required("gap").as_seconds();
  if (const auto among = map.optional("among_streams")) kernels.among_streams = among->as_seconds();
  if (const auto join = map.optional("join")) kernels.join = join->as_seconds();
  map.finish();
  return kernels;
}

std::vector<UncertaintyStep> read_uncertainty_scale(const YamlValue& list) {
  std::vector<UncertaintyStep> steps;
  for (const YamlValue& value : list.as_list()) {
    YamlMap map = value.as_map();
    UncertaintyStep step;
    if (const auto up_to = map.optional("up_to")) step.up_to = up_to->as_seconds();
    step.relative = map.required("relative").as_number(0.0, 10.0);
    map.finish();
    if (!steps.empty() &&
        (!steps.back().up_to || (step.up_to && *step.up_to <= *steps.back().up_to))) {
      throw value.error("a step that is not beyond the one before", "ascending values of up_to");
    }
    steps.push_back(step);
  }
  if (steps.empty() || steps.back().up_to) {
    throw list.error("a scale without a last step", "one without up_to, for all longer times");
  }
  return steps;
}

Uncertainty read_uncertainty(const YamlValue& value) {
  YamlMap map = value.as_map();
  Uncertainty out;
  const auto read = [&](const char* key, std::vector<UncertaintyStep>& steps) {
    if (const auto list = map.optional(key)) steps = read_uncertainty_scale(*list);
  };
  read("scale_up", out.scale_up);
  read("network", out.network);
  read("kernels", out.kernels);
  read("mlp", out.mlp);
  map.finish();
  return out;
}

std::map<std::string, OperationCosts> read_operations(const YamlValue& value) {
  YamlMap map = value.as_map();
  std::map<std::string, OperationCosts> operations;
  for (const char* kind : kOperationKinds) {
    const auto given = map.optional(kind);
    if (!given) continue;
    YamlMap keys = given->as_map();
    OperationCosts costs;
    costs.launch = keys.required("launch").as_seconds();
    costs.memory = keys.required("memory").as_number(0.001, 4.0);
    // Memory-bound kernels compute nothing that counts.
    if (std::string_view(kind) != "memory") {
      costs.compute = keys.required("compute").as_number(0.001, 1.0);
      costs.sharpness = keys.required("sharpness").as_number(1.0, 100.0);
    }
    keys.finish();
    operations.emplace(kind, costs);
  }
  map.finish();
  return operations;
}

GpuModel read_gpu(LayeredMap& map) {
  GpuModel gpu;
  gpu.name = map.required("name").as_string();
  const auto positive_rate = [](const YamlValue& value) {
    const ComputeRate rate = value.as_compute_rate();
    if (rate.value <= 0.0) throw value.error(value.excerpt(), "a compute rate above zero");
    return rate;
  };
  gpu.bf16_peak = positive_rate(map.required("bf16_peak"));
  const auto fp8 = map.optional("fp8_peak");
  gpu.fp8_peak = fp8 ? positive_rate(*fp8) : gpu.bf16_peak;
  const auto fp4 = map.optional("fp4_peak");
  gpu.fp4_peak = fp4 ? positive_rate(*fp4) : gpu.fp8_peak;
  if (const auto memory = map.optional("memory")) {
    gpu.memory = memory->as_bytes();
    if (gpu.memory->value < 1) throw memory->error(memory->excerpt(), "at least 1 B");
  }
  gpu.memory_bandwidth = positive_bandwidth(map.required("memory_bandwidth"));
  gpu.num_sms = static_cast<std::uint32_t>(map.required("num_sms").as_integer(1, 1 << 16));
  gpu.compute_efficiency = number_or(map, "compute_efficiency", 0.001, 1.0, 0.7);
  gpu.memory_efficiency = number_or(map, "memory_efficiency", 0.001, 1.0, 0.85);
  if (const auto launch = map.optional("kernel_launch")) gpu.kernel_launch = launch->as_seconds();
  const auto mlp_costs = [&map](const char* key) -> std::optional<MlpCosts> {
    const auto value = map.optional(key);
    if (!value || says(*value, "none")) return std::nullopt;
    return read_mlp_costs(*value);
  };
  gpu.mlp = mlp_costs("mlp");
  gpu.mlp_fp8 = mlp_costs("mlp_fp8");
  gpu.shared_mlp = mlp_costs("shared_mlp");
  if (const auto kernels = map.optional("kernels")) {
    if (!says(*kernels, "none")) gpu.kernels = read_row_kernels(*kernels);
  }
  if (const auto operations = map.optional("operations")) {
    if (!says(*operations, "none")) gpu.operations = read_operations(*operations);
  }
  map.finish();
  return gpu;
}

// `tier`: the block's name under transports.nccl.
Injection read_injection(LayeredMap& parent, std::string_view tier) {
  Injection injection;
  auto map = parent.block("injection");
  if (!map) return injection;
  for (const char* moved : {"segments", "start"}) {
    if (const auto value = map->optional(moved)) {
      throw value->error("a cost of NCCL among the hardware's limits",
                         fmt::format("it as transports.nccl.{}.{}", tier, moved));
    }
  }
  if (const auto sends = map->optional("sends_in_flight")) {
    injection.sends_in_flight =
        integer_or_word(*sends, "unlimited", 1, 1 << 20).value_or(kUnlimitedSends);
  }
  if (const auto rate = map->optional("rank_bandwidth")) {
    if (!says(*rate, "none")) injection.rank_bandwidth = positive_bandwidth(*rate);
  }
  if (const auto rate = map->optional("rank_total_bandwidth")) {
    if (!says(*rate, "none")) injection.rank_total_bandwidth = positive_bandwidth(*rate);
  }
  map->finish();
  return injection;
}

ScaleUp read_scale_up(LayeredMap& map) {
  ScaleUp scale_up;
  scale_up.kind =
      static_cast<ScaleUpKind>(map.required("kind").as_choice({"nvlink", "pcie", "socket"}));
  scale_up.bandwidth = positive_bandwidth(map.required("bandwidth"));
  scale_up.latency = map.required("latency").as_seconds();
  scale_up.nodes_per_domain = integer_or(map, "nodes_per_domain", 1, kMaxNodes, 1);
  if (const auto shared = map.optional("shared_bandwidth")) {
    if (!says(*shared, "none")) scale_up.shared_bandwidth = positive_bandwidth(*shared);
  }
  if (const auto group = map.optional("shared_group")) {
    scale_up.shared_group = static_cast<std::uint32_t>(group->as_integer(1, kMaxGpusPerNode));
    if (!scale_up.shared_bandwidth) {
      throw group->error("it without a shared_bandwidth", "both or neither");
    }
  }
  if (const auto sockets = map.optional("sockets")) {
    scale_up.num_sockets = static_cast<std::uint32_t>(sockets->as_integer(1, kMaxGpusPerNode));
    if (scale_up.num_sockets > 1 && !scale_up.shared_bandwidth) {
      throw sockets->error("several sockets without a shared_bandwidth",
                           "the bandwidth of a socket's host bridge");
    }
  }
  if (const auto joined = map.optional("socket_bandwidth")) {
    if (!says(*joined, "none")) {
      if (scale_up.num_sockets < 2) {
        throw joined->error("a bandwidth between sockets with one socket", "sockets: 2 or more");
      }
      scale_up.socket_bandwidth = positive_bandwidth(*joined);
    }
  }
  scale_up.injection = read_injection(map, "scale_up");
  map.finish();
  return scale_up;
}

Nic read_nic(LayeredMap& map, bool& pxn_given) {
  Nic nic;
  nic.per_gpu = integer_or(map, "per_gpu", 1, 64, 1);
  nic.bandwidth = positive_bandwidth(map.required("bandwidth"));
  nic.latency = map.required("latency").as_seconds();
  if (const auto pxn = map.optional("pxn")) {
    nic.pxn = pxn->as_bool();
    pxn_given = true;
  }
  nic.injection = read_injection(map, "network");
  map.finish();
  return nic;
}

Fabric read_fabric(LayeredMap& map, const FabricSite& site) {
  std::vector<std::string> names;
  for (const FabricType* type : fabric_types()) names.emplace_back(type->name);
  const FabricType& type = *fabric_types()[map.required("kind").as_choice(names)];
  Fabric fabric;
  fabric.kind = type.read(map, site);
  if (type.has_hop_latency) fabric.hop_latency = map.required("hop_latency").as_seconds();
  map.finish();
  type.check(fabric.kind, site, map.place().where());
  return fabric;
}

// nodes, gpus_per_node and what `auto` makes of them.
void read_size(LayeredMap& map, std::uint32_t nodes_per_domain, std::optional<std::uint32_t> ranks,
               Cluster& cluster) {
  cluster.gpus_per_node =
      static_cast<std::uint32_t>(map.required("gpus_per_node").as_integer(1, kMaxGpusPerNode));
  if (const auto shared = map.optional("ranks_per_gpu")) {
    cluster.ranks_per_gpu = static_cast<std::uint32_t>(shared->as_integer(1, kMaxGpusPerNode));
    if (cluster.gpus_per_node % cluster.ranks_per_gpu != 0) {
      throw shared->error(
          fmt::format("{} on each GPU where a node has {} (gpus_per_node)",
                      counted(cluster.ranks_per_gpu, "rank"), cluster.gpus_per_node),
          "a divisor of gpus_per_node");
    }
  }
  const YamlValue nodes = map.required("nodes");
  const auto default_nodes = map.optional("default_nodes");
  if (const auto given = integer_or_word(nodes, "auto", 1, kMaxNodes)) {
    // Beside --set nodes=N it is the preset's own, which the override makes idle.
    if (default_nodes && map.given_on_top("default_nodes") && !nodes.is_overridden()) {
      throw default_nodes->error("it beside a fixed number of nodes", "it with nodes: auto only");
    }
    cluster.num_nodes = *given;
  } else {
    const std::uint32_t fallback =
        default_nodes ? static_cast<std::uint32_t>(default_nodes->as_integer(1, kMaxNodes))
                      : nodes_per_domain;
    const std::uint64_t wanted =
        ranks ? divide_up(std::max(*ranks, 1U), cluster.gpus_per_node) : fallback;
    const std::uint64_t whole = divide_up(wanted, nodes_per_domain) * nodes_per_domain;
    if (whole > kMaxNodes) {
      throw InputError("ranks", fmt::format("{}", *ranks),
                       fmt::format("at most {} of {}", counted(kMaxNodes, "node"),
                                   counted(cluster.gpus_per_node, "GPU")));
    }
    cluster.num_nodes = static_cast<std::uint32_t>(whole);
  }
  if (std::uint64_t{cluster.num_nodes} * cluster.gpus_per_node > kMaxGpus) {
    throw nodes.error(fmt::format("{} of {}", counted(cluster.num_nodes, "node"),
                                  counted(cluster.gpus_per_node, "GPU")),
                      fmt::format("at most {}", counted(kMaxGpus, "GPU")));
  }
  if (cluster.num_nodes % nodes_per_domain != 0) {
    throw nodes.error(
        counted(cluster.num_nodes, "node"),
        fmt::format("whole scale-up domains of {}", counted(nodes_per_domain, "node")));
  }
}

// What must hold between the blocks.
void check_blocks(const Cluster& cluster, bool has_fabric_block, const YamlValue& place) {
  const std::uint32_t domain_nodes = cluster.scale_up ? cluster.scale_up->nodes_per_domain : 1;
  const bool one_domain =
      cluster.num_nodes == domain_nodes && (cluster.scale_up || cluster.num_gpus() == 1);
  if (!cluster.nic && has_fabric_block) {
    throw place.error("a \"fabric\" block without a \"nic\" block", "both or neither");
  }
  if (cluster.nic && !has_fabric_block) {
    throw place.error("a \"nic\" block without a \"fabric\" block", "both or neither");
  }
  if (cluster.scale_up) {
    const std::uint32_t domain_gpus = domain_nodes * cluster.gpus_per_node;
    if (domain_gpus % cluster.scale_up->num_sockets != 0) {
      throw place.error(fmt::format("{} of a scale-up domain on {} sockets",
                                    counted(domain_gpus, "GPU"), cluster.scale_up->num_sockets),
                        "equal parts on all sockets");
    }
  }
  if (!one_domain && !cluster.nic) {
    throw place.error(cluster.scale_up
                          ? fmt::format("{} scale-up domains and no \"nic\" block",
                                        cluster.num_nodes / domain_nodes)
                          : fmt::format("{} and neither a \"scale_up\" nor a \"nic\" block",
                                        counted(cluster.num_gpus(), "GPU")),
                      "\"nic\" and \"fabric\" blocks that join them");
  }
}

// Whether the GPUs of a node end at different switches by their local index.
bool has_rails(const FabricKind& kind) {
  const auto* leaf_spine = std::get_if<LeafSpineFabric>(&kind);
  return std::holds_alternative<RailOnlyFabric>(kind) ||
         (leaf_spine != nullptr && leaf_spine->rail_optimised);
}

Cluster read_layers(LayeredMap map, std::optional<std::uint32_t> ranks,
                    const std::string& fallback_name) {
  Cluster cluster;
  const YamlValue& place = map.place();
  // A preset's name is that of its file: a `name` key is not inherited.
  const auto name = map.optional("name");
  cluster.name = name && map.given_on_top("name") ? name->as_string() : fallback_name;
  if (const auto text = map.optional("description")) cluster.description = text->as_string();

  auto gpu = map.block("gpu");
  if (!gpu) (void)map.required("gpu");
  cluster.gpu = read_gpu(*gpu);
  if (auto scale_up = map.block("scale_up")) cluster.scale_up = read_scale_up(*scale_up);
  bool pxn_given = false;
  if (auto nic = map.block("nic")) cluster.nic = read_nic(*nic, pxn_given);
  read_size(map, cluster.scale_up ? cluster.scale_up->nodes_per_domain : 1, ranks, cluster);

  auto fabric = map.block("fabric");
  check_blocks(cluster, fabric.has_value(), place);
  if (fabric) {
    cluster.fabric = read_fabric(*fabric, fabric_site(cluster));
    if (!pxn_given) cluster.nic->pxn = has_rails(cluster.fabric->kind);
    if (std::holds_alternative<RailOnlyFabric>(cluster.fabric->kind) && !cluster.scale_up &&
        cluster.gpus_per_node > 1) {
      throw fabric->place().error("a rail_only fabric without a \"scale_up\" block",
                                  "scale-up links, the only way between rails");
    }
  }
  if (auto overheads = map.block("overheads")) {
    cluster.overheads.notify = overheads->required("notify").as_seconds();
    overheads->finish();
  }
  if (auto collectives = map.block("collectives")) {
    cluster.collectives = read_collectives(*collectives);
  }
  if (auto transports = map.block("transports")) {
    cluster.transports = read_transports(*transports);
  }
  if (const auto value = map.optional("relative_uncertainty")) {
    cluster.relative_uncertainty = value->as_number(0.0, 10.0);
  }
  if (const auto value = map.optional("uncertainty")) {
    if (!says(*value, "none")) cluster.uncertainty = read_uncertainty(*value);
  }
  if (const auto value = map.optional("provenance")) {
    YamlMap entries = value->as_map();
    for (const std::string& key : entries.keys()) {
      cluster.provenance.emplace_back(key, entries.required(key).as_string());
    }
  }
  map.finish();
  if (ranks && *ranks > cluster.num_gpus()) {
    throw place.error(counted(cluster.num_gpus(), "GPU"),
                      fmt::format("at least {}, the number of ranks (set \"nodes\")", *ranks));
  }
  return cluster;
}

Cluster read_source(const Source& source, std::optional<std::uint32_t> ranks) {
  return read_layers(open_layers(source), ranks, source.stem);
}

}  // namespace

std::string to_string(Tier tier) {
  switch (tier) {
    case Tier::kLocal:
      return "local";
    case Tier::kScaleUp:
      return "scale_up";
    case Tier::kNetwork:
      break;
  }
  return "network";
}

const std::vector<Preset>& topology_presets() {
  static const std::vector<Preset> presets = [] {
    std::vector<Preset> list;
    for (const auto& [name, text] : embedded::topology_presets) list.push_back({name, text});
    return list;
  }();
  return presets;
}

Cluster read_cluster(const YamlValue& document, std::optional<std::uint32_t> ranks) {
  return read_source({document, {}, "cluster"}, ranks);
}

Cluster load_cluster(const std::string& name_or_path, const std::vector<Override>& overrides,
                     std::optional<std::uint32_t> ranks) {
  if (name_or_path.starts_with('{')) {
    return read_source({parse_yaml(name_or_path, "topology", overrides), {}, "cluster"}, ranks);
  }
  return read_source(open_source(name_or_path, {}, overrides, "topology"), ranks);
}

}  // namespace coterie
