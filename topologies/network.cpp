#include "topologies/network.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"
#include "core/random.hpp"
#include "topologies/switch_routes.hpp"

namespace coterie {
namespace {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ULL;  // 2^64 / golden ratio, spreads small ids

std::string vertex_name(const FabricModel& model, std::size_t vertex) {
  const FabricVertex& item = model.graph[vertex];
  switch (item.kind) {
    case VertexKind::kGpu:
      return fmt::format("gpu {}", item.idx);
    case VertexKind::kScaleUpSwitch:
      return fmt::format("domain {}", item.idx);
    case VertexKind::kSwitch:
      break;
  }
  return switch_name(model.switches.switches[item.idx]);
}

Link graph_link(const FabricModel& model, const FabricGraph::edge_descriptor& edge) {
  const std::size_t from = boost::source(edge, model.graph);
  const std::size_t to = boost::target(edge, model.graph);
  const FabricEdge& cable = model.graph[edge];
  const char* port = cable.tier == Tier::kScaleUp ? "scale-up" : "nic";
  Link link{"", cable.tier, cable.bandwidth, cable.latency};
  if (from < model.num_gpus) {
    link.name = fmt::format("gpu {} {} out", from, port);
  } else if (to < model.num_gpus) {
    link.name = fmt::format("gpu {} {} in", to, port);
  } else {
    link.name = fmt::format("{} -> {}", vertex_name(model, from), vertex_name(model, to));
  }
  return link;
}

}  // namespace

struct Network::Impl {
  Impl(const Cluster& cluster_, RouteChoice choice_, std::span<const std::uint32_t> failed_links);

  void append_scale_up(std::uint32_t src, std::uint32_t dst, std::vector<LinkId>& out) const;
  void append_network(std::uint32_t src, std::uint32_t via, std::uint32_t dst,
                      std::uint64_t flow_key, const SwitchRoutes& table,
                      std::vector<LinkId>& out) const;
  void append_route(std::uint32_t src, std::uint32_t dst, std::uint64_t flow_key,
                    std::vector<LinkId>& out) const;
  // Where a transfer leaves the source's domain and enters the destination's.
  struct Passage {
    std::uint32_t exit = 0;
    std::uint32_t entry = 0;
  };
  [[nodiscard]] std::optional<Passage> open_passage(std::uint32_t src, std::uint32_t dst) const;
  [[nodiscard]] bool scale_up_failed(std::uint32_t src, std::uint32_t dst) const {
    return any_failed && (failed[src * links_per_gpu] != 0 || failed[dst * links_per_gpu + 1] != 0);
  }
  void append_caps(std::optional<std::uint32_t> first, std::uint32_t gpu, bool in,
                   std::vector<LinkId>& out) const {
    if (first) out.push_back(LinkId{*first + 2 * gpu + (in ? 1 : 0)});
  }
  void append_total(std::optional<std::uint32_t> first, std::uint32_t gpu,
                    std::vector<LinkId>& out) const {
    if (first) out.push_back(LinkId{*first + gpu});
  }
  void add_shared(std::uint32_t num_domains);
  [[nodiscard]] std::uint32_t add_caps(Tier tier, Bandwidth bandwidth);
  [[nodiscard]] std::uint32_t add_totals(Tier tier, Bandwidth bandwidth);
  [[nodiscard]] Tier tier(std::uint32_t src, std::uint32_t dst) const {
    if (src == dst) return Tier::kLocal;
    return domain_gpus > 0 && src / domain_gpus == dst / domain_gpus ? Tier::kScaleUp
                                                                     : Tier::kNetwork;
  }
  // The link out of a GPU's NICs; the next one leads in. Ranks that share a GPU use the first one's.
  [[nodiscard]] std::uint32_t nic_port(std::uint32_t gpu) const {
    return gpu / cluster.ranks_per_gpu * cluster.ranks_per_gpu * links_per_gpu + nic_offset;
  }
  // Where a transfer to another domain leaves its own: its GPU's NIC or that of the rail peer.
  [[nodiscard]] std::uint32_t exit_gpu(std::uint32_t src, std::uint32_t dst) const {
    if (!change_rails) return src;
    const std::uint32_t g = cluster.gpus_per_node;
    return src / g * g + dst % g;
  }

  Cluster cluster;
  RouteChoice choice;
  std::vector<Link> links;
  std::uint32_t domain_gpus = 0;    // 0: no scale-up
  std::uint32_t links_per_gpu = 0;  // GPU g's ports are links g * links_per_gpu + ...
  std::uint32_t nic_offset = 0;
  bool change_rails = false;
  std::uint32_t shared_group = 1;
  std::uint32_t socket_gpus = 1;                       // GPUs of a socket
  std::optional<std::uint32_t> first_between_sockets;  // one per domain
  std::optional<std::uint32_t> first_shared, first_scale_up_cap, first_network_cap;
  std::optional<std::uint32_t> first_scale_up_total, first_network_total;
  std::vector<std::uint32_t> attach;       // [num_gpus] switch
  std::vector<std::uint32_t> port;         // [num_gpus] position among the GPUs of its switch
  std::vector<std::uint32_t> switch_gpus;  // [num_switches] GPUs attached
  bool first_cable_first = false;
  std::optional<SwitchRoutes> routes;
  bool any_failed = false;
  std::vector<std::uint8_t> failed;          // [num_links], with any_failed only
  std::optional<SwitchRoutes> whole_routes;  // as if nothing had failed, likewise
  Injection no_injection;
};

Network::Impl::Impl(const Cluster& cluster_, RouteChoice choice_,
                    std::span<const std::uint32_t> failed_links)
    : cluster(cluster_), choice(choice_), any_failed(!failed_links.empty()) {
  const FabricModel model = build_fabric(cluster);
  links.resize(boost::num_edges(model.graph));
  for (const auto& edge : boost::make_iterator_range(boost::edges(model.graph))) {
    links[model.graph[edge].link] = graph_link(model, edge);
  }
  if (any_failed) {
    // Caps and shared links, which follow, never fail as far as routes go.
    failed.assign(links.size(), 0);
    for (const std::uint32_t link : failed_links) {
      if (link < failed.size()) failed[link] = 1;
    }
  }
  if (cluster.scale_up) {
    domain_gpus = cluster.scale_up->nodes_per_domain * cluster.gpus_per_node;
    links_per_gpu += 2;
    nic_offset = 2;
    shared_group = cluster.scale_up->shared_group;
    add_shared(model.num_domains);
    if (const auto cap = cluster.scale_up->injection.rank_bandwidth) {
      first_scale_up_cap = add_caps(Tier::kScaleUp, *cap);
    }
    if (const auto cap = cluster.scale_up->injection.rank_total_bandwidth) {
      first_scale_up_total = add_totals(Tier::kScaleUp, *cap);
    }
  }
  if (cluster.nic) {
    links_per_gpu += 2;
    if (const auto cap = cluster.nic->injection.rank_bandwidth) {
      first_network_cap = add_caps(Tier::kNetwork, *cap);
    }
    if (const auto cap = cluster.nic->injection.rank_total_bandwidth) {
      first_network_total = add_totals(Tier::kNetwork, *cap);
    }
    change_rails =
        cluster.scale_up &&
        (cluster.nic->pxn || std::holds_alternative<RailOnlyFabric>(cluster.fabric->kind));
    attach = model.switches.attach;
    switch_gpus.assign(model.switches.switches.size(), 0);
    for (const std::uint32_t at : attach) port.push_back(switch_gpus[at]++);
    first_cable_first = model.switches.first_cable_first;
    if (any_failed) whole_routes.emplace(model);
    routes.emplace(model, failed);
  }
  no_injection.sends_in_flight = kUnlimitedSends;
}

// Per socket the link that its GPUs share, per domain what joins its sockets.
void Network::Impl::add_shared(std::uint32_t num_domains) {
  const ScaleUp& scale_up = *cluster.scale_up;
  socket_gpus = domain_gpus / scale_up.num_sockets;
  if (!scale_up.shared_bandwidth) return;
  first_shared = static_cast<std::uint32_t>(links.size());
  for (std::uint32_t domain = 0; domain < num_domains; ++domain) {
    for (std::uint32_t socket = 0; socket < scale_up.num_sockets; ++socket) {
      const std::string name = scale_up.num_sockets == 1
                                   ? fmt::format("domain {} shared", domain)
                                   : fmt::format("domain {} socket {} shared", domain, socket);
      links.push_back({name, Tier::kScaleUp, *scale_up.shared_bandwidth, {}});
    }
  }
  if (!scale_up.socket_bandwidth) return;
  first_between_sockets = static_cast<std::uint32_t>(links.size());
  for (std::uint32_t domain = 0; domain < num_domains; ++domain) {
    links.push_back({fmt::format("domain {} between sockets", domain),
                     Tier::kScaleUp,
                     *scale_up.socket_bandwidth,
                     {}});
  }
}

std::uint32_t Network::Impl::add_caps(Tier tier, Bandwidth bandwidth) {
  const auto first = static_cast<std::uint32_t>(links.size());
  for (std::uint32_t gpu = 0; gpu < cluster.num_gpus(); ++gpu) {
    const std::string name = fmt::format("gpu {} {} cap", gpu, to_string(tier));
    links.push_back({name + " out", tier, bandwidth, {}});
    links.push_back({name + " in", tier, bandwidth, {}});
  }
  return first;
}

// One link that a GPU's traffic of both directions crosses.
std::uint32_t Network::Impl::add_totals(Tier tier, Bandwidth bandwidth) {
  const auto first = static_cast<std::uint32_t>(links.size());
  for (std::uint32_t gpu = 0; gpu < cluster.num_gpus(); ++gpu) {
    links.push_back({fmt::format("gpu {} {} cap", gpu, to_string(tier)), tier, bandwidth, {}});
  }
  return first;
}

void Network::Impl::append_scale_up(std::uint32_t src, std::uint32_t dst,
                                    std::vector<LinkId>& out) const {
  out.push_back(LinkId{src * links_per_gpu});
  if (first_shared && src / shared_group != dst / shared_group) {
    const std::uint32_t from = src / socket_gpus;
    const std::uint32_t to = dst / socket_gpus;
    out.push_back(LinkId{*first_shared + from});
    if (from != to) {
      if (first_between_sockets) out.push_back(LinkId{*first_between_sockets + src / domain_gpus});
      out.push_back(LinkId{*first_shared + to});
    }
  }
  out.push_back(LinkId{dst * links_per_gpu + 1});
}

void Network::Impl::append_network(std::uint32_t src, std::uint32_t via, std::uint32_t dst,
                                   std::uint64_t flow_key, const SwitchRoutes& table,
                                   std::vector<LinkId>& out) const {
  out.push_back(LinkId{nic_port(via)});
  const std::uint32_t goal = attach[dst];
  const std::uint64_t hash = mix64(mix64(std::uint64_t{src} << 32 | dst) ^ (flow_key * kGolden));
  // Deterministic routes read their choices from the destination's position, digit by digit, which
  // on a fat tree is the usual destination-modulo-k routing: every destination below a switch is
  // reached over a path of its own.
  std::uint64_t digits = port[dst] + std::uint64_t{switch_gpus[goal]} * goal;
  for (std::uint32_t at = attach[via]; at != goal;) {
    const std::span<const SwitchHop> hops = table.next_hops(at, goal);
    if (hops.empty()) {
      throw InputError("topology " + cluster.name,
                       fmt::format("no route from GPU {} to GPU {}", src, dst),
                       "a fabric that joins all nodes");
    }
    std::size_t pick = 0;
    if (hops.size() > 1 && choice == RouteChoice::kEcmp) {
      pick = ((mix64(hash ^ (at * kGolden)) >> 32) * hops.size()) >> 32;
    } else if (hops.size() > 1 && !first_cable_first) {
      pick = digits % hops.size();
      digits /= hops.size();
    }
    out.push_back(LinkId{hops[pick].link});
    at = hops[pick].to;
  }
  out.push_back(LinkId{nic_port(dst) + 1});
}

Network::Network(const Cluster& cluster, RouteChoice choice)
    : impl_(std::make_unique<Impl>(cluster, choice, std::span<const std::uint32_t>())) {}
Network::Network(const Cluster& cluster, std::span<const std::uint32_t> failed, RouteChoice choice)
    : impl_(std::make_unique<Impl>(cluster, choice, failed)) {}
Network::~Network() = default;
Network::Network(Network&&) noexcept = default;
Network& Network::operator=(Network&&) noexcept = default;

const Cluster& Network::cluster() const {
  return impl_->cluster;
}
std::span<const Link> Network::links() const {
  return impl_->links;
}
std::uint32_t Network::num_gpus() const {
  return impl_->cluster.num_gpus();
}

Tier Network::tier(GpuId src, GpuId dst) const {
  return impl_->tier(src.value, dst.value);
}

// The first way around what failed: the NICs of both GPUs, then those of their domains' other GPUs.
std::optional<Network::Impl::Passage> Network::Impl::open_passage(std::uint32_t src,
                                                                  std::uint32_t dst) const {
  const auto candidate = [&](std::uint32_t gpu, std::uint32_t i) {
    return domain_gpus == 0 ? gpu : gpu / domain_gpus * domain_gpus + (gpu + i) % domain_gpus;
  };
  const auto scale_up_ok = [&](std::uint32_t from, std::uint32_t to) {
    return from == to || !scale_up_failed(from, to);
  };
  const std::uint32_t num_candidates = std::max(1U, domain_gpus);
  for (std::uint32_t i = 0; i < num_candidates; ++i) {
    const std::uint32_t entry = candidate(dst, i);
    if (failed[nic_port(entry) + 1] != 0 || !scale_up_ok(entry, dst)) continue;
    for (std::uint32_t j = 0; j < num_candidates; ++j) {
      const std::uint32_t exit = candidate(exit_gpu(src, entry), j);
      if (failed[nic_port(exit)] != 0 || !scale_up_ok(src, exit)) continue;
      if (attach[exit] != attach[entry] && routes->next_hops(attach[exit], attach[entry]).empty()) {
        continue;
      }
      return Passage{exit, entry};
    }
  }
  return std::nullopt;
}

void Network::Impl::append_route(std::uint32_t src, std::uint32_t dst, std::uint64_t flow_key,
                                 std::vector<LinkId>& out) const {
  const Tier between = tier(src, dst);
  if (between == Tier::kLocal) return;
  const bool leaves = between == Tier::kNetwork || (scale_up_failed(src, dst) && routes);
  const auto open = any_failed && leaves ? open_passage(src, dst) : std::nullopt;
  if (between == Tier::kScaleUp && !open) {
    // What a rank injects into the links says nothing of copies inside a GPU.
    const bool inside = cluster.device_of(src) == cluster.device_of(dst);
    if (!inside) {
      append_caps(first_scale_up_cap, src, false, out);
      append_total(first_scale_up_total, src, out);
    }
    append_scale_up(src, dst, out);
    if (!inside) {
      append_caps(first_scale_up_cap, dst, true, out);
      append_total(first_scale_up_total, dst, out);
    }
    return;
  }
  const Passage passage = open.value_or(Passage{exit_gpu(src, dst), dst});
  const SwitchRoutes& table = any_failed && !open ? *whole_routes : *routes;
  append_caps(first_network_cap, src, false, out);
  append_total(first_network_total, src, out);
  if (passage.exit != src) append_scale_up(src, passage.exit, out);
  append_network(src, passage.exit, passage.entry, flow_key, table, out);
  if (passage.entry != dst) append_scale_up(passage.entry, dst, out);
  append_caps(first_network_cap, dst, true, out);
  append_total(first_network_total, dst, out);
}

void Network::append_route(GpuId src, GpuId dst, std::uint64_t flow_key,
                           std::vector<LinkId>& out) const {
  const std::size_t before = out.size();
  try {
    impl_->append_route(src.value, dst.value, flow_key, out);
  } catch (...) {
    out.resize(before);
    throw;
  }
}

Seconds Network::route_latency(std::span<const LinkId> route) const {
  Seconds sum;
  for (const LinkId id : route) sum += impl_->links[id.value].latency;
  return sum;
}

const Injection& Network::injection(Tier tier) const {
  const Cluster& cluster = impl_->cluster;
  if (tier == Tier::kScaleUp && cluster.scale_up) return cluster.scale_up->injection;
  if (tier == Tier::kNetwork && cluster.nic) return cluster.nic->injection;
  return impl_->no_injection;
}

}  // namespace coterie
