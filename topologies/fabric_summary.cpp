#include "topologies/fabric_summary.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/graph/connected_components.hpp>
#include <boost/graph/push_relabel_max_flow.hpp>
#include <cmath>
#include <set>

#include "topologies/switch_routes.hpp"

namespace coterie {
namespace {

std::string end_name(const FabricVertex& vertex) {
  if (vertex.kind == VertexKind::kGpu) return "GPU";
  return vertex.kind == VertexKind::kScaleUpSwitch ? "scale-up" : to_string(vertex.switch_kind);
}

std::vector<CableGroup> cable_groups(const FabricModel& model) {
  std::vector<CableGroup> groups;
  for (const auto& edge : boost::make_iterator_range(boost::edges(model.graph))) {
    const FabricEdge& cable = model.graph[edge];
    if (cable.link % 2 != 0) continue;  // the way back
    const std::string name = end_name(model.graph[boost::source(edge, model.graph)]) + " - " +
                             end_name(model.graph[boost::target(edge, model.graph)]);
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const CableGroup& group) {
      return group.name == name && group.bandwidth == cable.bandwidth &&
             group.latency == cable.latency;
    });
    if (same != groups.end()) {
      ++same->num_cables;
    } else {
      groups.push_back({name, cable.tier, 1, cable.bandwidth, cable.latency});
    }
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const CableGroup& a, const CableGroup& b) { return a.tier < b.tier; });
  return groups;
}

// [num_switches] the connected component of every switch.
std::vector<std::uint32_t> switch_components(const SwitchGraph& switches) {
  boost::adjacency_list<boost::vecS, boost::vecS, boost::undirectedS> graph(
      switches.switches.size());
  for (const SwitchCable& cable : switches.cables) boost::add_edge(cable.a, cable.b, graph);
  std::vector<std::uint32_t> component(switches.switches.size());
  boost::connected_components(graph, component.data());
  return component;
}

// The network joins all GPUs, or, where traffic may change rails over scale-up, those of each rail.
bool all_reachable(const Cluster& cluster, const SwitchGraph& switches) {
  const std::vector<std::uint32_t> component = switch_components(switches);
  const bool by_rail =
      cluster.scale_up &&
      (cluster.nic->pxn || std::holds_alternative<RailOnlyFabric>(cluster.fabric->kind));
  for (std::uint32_t gpu = 0; gpu < cluster.num_gpus(); ++gpu) {
    const std::uint32_t peer = by_rail ? gpu % cluster.gpus_per_node : 0;
    if (component[switches.attach[gpu]] != component[switches.attach[peer]]) return false;
  }
  return true;
}

std::uint32_t network_diameter(const FabricModel& model) {
  const std::set<std::uint32_t> distinct(model.switches.attach.begin(),
                                         model.switches.attach.end());
  const std::vector<std::uint32_t> ends(distinct.begin(), distinct.end());
  const SwitchRoutes routes(model);
  std::uint32_t hops = 0;
  for (const std::uint32_t end : ends) hops = std::max(hops, routes.longest_to(end, ends));
  return hops + 2;  // and the NIC's link at each end
}

using FlowTraits = boost::adjacency_list_traits<boost::vecS, boost::vecS, boost::directedS>;
using FlowGraph = boost::adjacency_list<
    boost::vecS, boost::vecS, boost::directedS, boost::no_property,
    boost::property<
        boost::edge_capacity_t, std::int64_t,
        boost::property<boost::edge_residual_capacity_t, std::int64_t,
                        boost::property<boost::edge_reverse_t, FlowTraits::edge_descriptor>>>>;

// One direction of a cable. Each gets a residual partner of its own: Boost's push-relabel fails its
// own check where the two directions of a cable serve as each other's.
void add_flow_edge(FlowGraph& graph, std::size_t from, std::size_t to, double capacity) {
  const auto there = boost::add_edge(from, to, graph).first;
  const auto back = boost::add_edge(to, from, graph).first;
  boost::put(boost::edge_capacity, graph, there, std::llround(capacity));
  boost::put(boost::edge_capacity, graph, back, 0);
  boost::put(boost::edge_reverse, graph, there, back);
  boost::put(boost::edge_reverse, graph, back, there);
}

// GPUs are leaves of the graph, so those of one half behind one switch flow as one source or sink.
Bandwidth max_flow(const Cluster& cluster, const SwitchGraph& switches, std::uint32_t first_half) {
  const std::size_t n = switches.switches.size();
  const double rate = cluster.nic->bandwidth.value * cluster.nic->per_gpu;
  std::vector<double> sends(n, 0.0), receives(n, 0.0);
  for (std::uint32_t gpu = 0; gpu < cluster.num_gpus(); ++gpu) {
    (gpu < first_half ? sends : receives)[switches.attach[gpu]] += rate;
  }
  FlowGraph graph(n + 2);
  for (std::size_t i = 0; i < n; ++i) {
    if (sends[i] > 0.0) add_flow_edge(graph, n, i, sends[i]);
    if (receives[i] > 0.0) add_flow_edge(graph, i, n + 1, receives[i]);
  }
  for (const SwitchCable& cable : switches.cables) {
    add_flow_edge(graph, cable.a, cable.b, cable.bandwidth.value);
    add_flow_edge(graph, cable.b, cable.a, cable.bandwidth.value);
  }
  return {static_cast<double>(boost::push_relabel_max_flow(graph, n, n + 1))};
}

}  // namespace

FabricSummary summarize(const Cluster& cluster, const FabricModel& model) {
  FabricSummary summary;
  summary.num_nodes = cluster.num_nodes;
  summary.num_gpus = cluster.num_gpus();
  summary.num_domains = model.num_domains;
  for (const Switch& item : model.switches.switches) ++summary.num_switches[to_string(item.kind)];
  summary.cables = cable_groups(model);

  const std::uint32_t domain_gpus = cluster.scale_up
                                        ? cluster.scale_up->nodes_per_domain * cluster.gpus_per_node
                                        : cluster.gpus_per_node;
  if (cluster.scale_up && domain_gpus > 1) {
    Bandwidth bisection = cluster.scale_up->bandwidth * (domain_gpus / 2);
    if (const auto shared = cluster.scale_up->shared_bandwidth) {
      bisection = std::min(bisection, *shared);
    }
    summary.scale_up_bisection = bisection;
    summary.diameter = 2;
  }
  if (!cluster.nic) return summary;
  summary.num_nics = cluster.num_gpus() * cluster.nic->per_gpu;
  const std::uint32_t num_domains = cluster.num_gpus() / domain_gpus;
  if (num_domains < 2) return summary;
  summary.reachable = all_reachable(cluster, model.switches);
  summary.diameter = network_diameter(model);
  const std::uint32_t first_half = num_domains / 2 * domain_gpus;
  summary.network_bisection = max_flow(cluster, model.switches, first_half);
  if (summary.network_bisection->value > 0.0) {
    summary.oversubscription =
        cluster.nic->bandwidth * cluster.nic->per_gpu * first_half / *summary.network_bisection;
  }
  return summary;
}

FabricSummary summarize(const Cluster& cluster) {
  return summarize(cluster, build_fabric(cluster));
}

}  // namespace coterie
