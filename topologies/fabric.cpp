#include "topologies/fabric.hpp"

#include <fmt/format.h>

namespace coterie {

std::string switch_name(const Switch& item) {
  return fmt::format("{} {}", to_string(item.kind), item.idx);
}

FabricModel build_fabric(const Cluster& cluster) {
  FabricModel model;
  model.num_gpus = cluster.num_gpus();
  if (cluster.scale_up) {
    model.num_domains = cluster.num_nodes / cluster.scale_up->nodes_per_domain;
  }
  if (cluster.fabric) {
    const FabricType& type = fabric_type(cluster.fabric->kind);
    type.check(cluster.fabric->kind, fabric_site(cluster), "fabric of " + cluster.name);
    model.switches = type.build(cluster);
  }
  const auto num_switches = static_cast<std::uint32_t>(model.switches.switches.size());
  FabricGraph graph(model.num_gpus + model.num_domains + num_switches);
  std::uint32_t next_link = 0;
  const auto connect = [&](std::uint32_t a, std::uint32_t b, FabricEdge edge) {
    edge.link = next_link++;
    boost::add_edge(a, b, edge, graph);
    edge.link = next_link++;
    boost::add_edge(b, a, edge, graph);
  };
  for (std::uint32_t gpu = 0; gpu < model.num_gpus; ++gpu) {
    graph[gpu] = {VertexKind::kGpu, SwitchKind::kSwitch, gpu};
    if (cluster.scale_up) {
      const std::uint32_t domain_gpus = cluster.scale_up->nodes_per_domain * cluster.gpus_per_node;
      connect(gpu, model.domain_vertex(gpu / domain_gpus),
              {cluster.scale_up->bandwidth, cluster.scale_up->latency, Tier::kScaleUp});
    }
    if (cluster.nic) {
      connect(
          gpu, model.switch_vertex(model.switches.attach[gpu]),
          {cluster.nic->bandwidth * cluster.nic->per_gpu, cluster.nic->latency, Tier::kNetwork});
    }
  }
  for (std::uint32_t domain = 0; domain < model.num_domains; ++domain) {
    graph[model.domain_vertex(domain)] = {VertexKind::kScaleUpSwitch, SwitchKind::kSwitch, domain};
  }
  for (std::uint32_t i = 0; i < num_switches; ++i) {
    graph[model.switch_vertex(i)] = {VertexKind::kSwitch, model.switches.switches[i].kind, i};
  }
  for (const SwitchCable& cable : model.switches.cables) {
    connect(model.switch_vertex(cable.a), model.switch_vertex(cable.b),
            {cable.bandwidth, cable.latency, Tier::kNetwork, cable.cost});
  }
  model.graph = std::move(graph);
  return model;
}

}  // namespace coterie
