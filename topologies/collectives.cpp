#include "topologies/collectives.hpp"

#include <fmt/format.h>

#include <limits>

#include "topologies/fabrics/fabric_type.hpp"
#include "topologies/layered_map.hpp"

namespace coterie {
namespace {

CollectiveProtocol read_protocol(const YamlValue& value) {
  YamlMap map = value.as_map();
  CollectiveProtocol protocol;
  protocol.name = map.required("name").as_string();
  protocol.setup = map.required("setup").as_seconds();
  if (const auto hop = map.optional("network_hop")) protocol.network_hop = hop->as_seconds();
  protocol.bandwidth = positive_bandwidth(map.required("bandwidth"));
  map.finish();
  return protocol;
}

}  // namespace

CollectiveParameters read_collectives(LayeredMap& map) {
  CollectiveParameters parameters;
  parameters.launch = map.required("launch").as_seconds();
  parameters.hop = map.required("hop").as_seconds();
  if (const auto rate = map.optional("copy_bandwidth")) {
    if (!says(*rate, "none")) parameters.copy_bandwidth = positive_bandwidth(*rate);
  }
  parameters.sms = integer_or(map, "sms", 0, 1 << 16, 0);
  const YamlValue list = map.required("protocols");
  for (const YamlValue& value : list.as_list()) {
    parameters.protocols.push_back(read_protocol(value));
  }
  if (parameters.protocols.empty()) throw list.error("an empty list", "at least one protocol");
  if (auto block = map.block("multicast")) {
    MulticastCosts costs;
    costs.min_gpus = integer_or(*block, "min_gpus", 2, std::numeric_limits<std::int32_t>::max(), 8);
    costs.setup = block->required("setup").as_seconds();
    costs.bandwidth = positive_bandwidth(block->required("bandwidth"));
    block->finish();
    parameters.multicast = costs;
  }
  map.finish();
  return parameters;
}

std::string collectives_text(const CollectiveParameters& parameters) {
  std::string text = fmt::format("collectives:\n  launch: {}\n  hop: {}\n  sms: {}\n",
                                 exact(parameters.launch), exact(parameters.hop), parameters.sms);
  if (const auto& rate = parameters.copy_bandwidth) {
    text += fmt::format("  copy_bandwidth: {}\n", exact(*rate));
  }
  text += "  protocols:\n";
  for (const CollectiveProtocol& protocol : parameters.protocols) {
    text += fmt::format("    - {{name: {}, setup: {}, network_hop: {}, bandwidth: {}}}\n",
                        protocol.name, exact(protocol.setup), exact(protocol.network_hop),
                        exact(protocol.bandwidth));
  }
  if (const auto& multicast = parameters.multicast) {
    text += fmt::format("  multicast: {{min_gpus: {}, setup: {}, bandwidth: {}}}\n",
                        multicast->min_gpus, exact(multicast->setup), exact(multicast->bandwidth));
  }
  return text;
}

}  // namespace coterie
