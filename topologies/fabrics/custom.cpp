// custom: an explicit graph of switches and cables. A cable of zero bandwidth is a failed one: it
// is read and then left out.

#include <fmt/format.h>

#include "core/error.hpp"
#include "topologies/fabrics/fabric_type.hpp"

namespace coterie {
namespace {

FabricKind read_custom(LayeredMap& map, const FabricSite& /*site*/) {
  CustomFabric fabric;
  fabric.num_switches =
      static_cast<std::uint32_t>(map.required("num_switches").as_integer(1, 1 << 16));
  const auto last = static_cast<std::int64_t>(fabric.num_switches) - 1;
  for (const YamlValue& value : map.required("attach").as_list()) {
    fabric.attach.push_back(static_cast<std::uint32_t>(value.as_integer(0, last)));
  }
  for (const YamlValue& value : map.required("cables").as_list()) {
    YamlMap cable = value.as_map();
    CustomFabric::Cable item;
    item.a = static_cast<std::uint32_t>(cable.required("a").as_integer(0, last));
    item.b = static_cast<std::uint32_t>(cable.required("b").as_integer(0, last));
    item.bandwidth = cable.required("bandwidth").as_bandwidth();
    item.latency = cable.required("latency").as_seconds();
    cable.finish();
    if (item.a == item.b) {
      throw value.error(fmt::format("a cable from switch {} to itself", item.a), "two switches");
    }
    fabric.cables.push_back(item);
  }
  return fabric;
}

void check_custom(const FabricKind& kind, const FabricSite& site, std::string_view where) {
  const auto& fabric = std::get<CustomFabric>(kind);
  if (fabric.attach.size() != site.num_nodes) {
    throw InputError(where, fmt::format("\"attach\" with {} entries", fabric.attach.size()),
                     fmt::format("one switch per node, {}", site.num_nodes));
  }
}

SwitchGraph build_custom(const Cluster& cluster) {
  const auto& fabric = std::get<CustomFabric>(cluster.fabric->kind);
  SwitchGraph graph;
  add_switches(graph, SwitchKind::kSwitch, fabric.num_switches);
  for (std::uint32_t gpu = 0; gpu < cluster.num_gpus(); ++gpu) {
    graph.attach.push_back(fabric.attach[gpu / cluster.gpus_per_node]);
  }
  for (const CustomFabric::Cable& cable : fabric.cables) {
    if (cable.bandwidth.value > 0.0) {
      graph.cables.push_back({cable.a, cable.b, cable.bandwidth, cable.latency});
    }
  }
  return graph;
}

FabricKeys keys_custom(const FabricKind& kind) {
  const auto& fabric = std::get<CustomFabric>(kind);
  std::vector<std::string> cables;
  for (const CustomFabric::Cable& cable : fabric.cables) {
    cables.push_back(fmt::format("{{a: {}, b: {}, bandwidth: {}, latency: {}}}", cable.a, cable.b,
                                 exact(cable.bandwidth), exact(cable.latency)));
  }
  return {{"num_switches", std::to_string(fabric.num_switches)},
          {"attach", fmt::format("[{}]", fmt::join(fabric.attach, ", "))},
          {"cables", fmt::format("[{}]", fmt::join(cables, ", "))}};
}

}  // namespace

const FabricType kCustomType{
    "custom",   "an explicit graph of switches", false, read_custom, check_custom, build_custom,
    keys_custom};

}  // namespace coterie
