#include "sim/step/collectives.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <stdexcept>

#include "sim/transports/parts.hpp"

namespace coterie {
namespace {

constexpr std::array<std::string_view, 4> kKindNames{"all_reduce", "reduce_scatter", "all_gather",
                                                     "all_to_all"};
constexpr std::array<std::string_view, 5> kAlgorithmNames{"ring", "tree", "multicast",
                                                          "hierarchical", "direct"};

// The group by scale-up domain: members[d][c] is the GPU of local index c.
struct GroupShape {
  std::vector<std::vector<std::uint32_t>> members;
  std::uint32_t num_gpus = 0;
  bool regular = true;  // as many members in every domain

  [[nodiscard]] std::uint32_t num_domains() const {
    return static_cast<std::uint32_t>(members.size());
  }
  [[nodiscard]] std::uint32_t per_domain() const {
    return static_cast<std::uint32_t>(members.front().size());
  }
};

GroupShape shape_of(const Cluster& cluster, std::span<const std::uint32_t> gpus) {
  const std::uint32_t domain_gpus =
      cluster.scale_up ? cluster.gpus_per_node * cluster.scale_up->nodes_per_domain : 1;
  GroupShape shape;
  shape.num_gpus = static_cast<std::uint32_t>(gpus.size());
  std::map<std::uint32_t, std::size_t> position;  // of a domain, by its number
  for (const std::uint32_t gpu : gpus) {
    if (gpu >= cluster.num_gpus()) throw std::logic_error("a GPU that the cluster lacks");
    const auto [entry, added] = position.try_emplace(gpu / domain_gpus, shape.members.size());
    if (added) shape.members.emplace_back();
    shape.members[entry->second].push_back(gpu);
  }
  shape.regular = std::all_of(shape.members.begin(), shape.members.end(), [&](const auto& domain) {
    return domain.size() == shape.members.front().size();
  });
  return shape;
}

// What a GPU's NICs carry, bytes per second, each direction.
double network_rate(const Cluster& cluster) {
  if (!cluster.nic) return 0.0;
  double rate = cluster.nic->bandwidth.value * cluster.nic->per_gpu;
  if (const auto cap = cluster.nic->injection.rank_bandwidth) rate = std::min(rate, cap->value);
  return rate;
}

double scale_up_rate(const Cluster& cluster) {
  if (!cluster.scale_up) return 0.0;
  double rate = cluster.scale_up->bandwidth.value;
  if (const auto cap = cluster.scale_up->injection.rank_bandwidth) {
    rate = std::min(rate, cap->value);
  }
  return rate;
}

// One way to do it: transfers without caps, and the chain of steps that nothing shortens.
struct Candidate {
  CollectiveAlgorithm algorithm = CollectiveAlgorithm::kRing;
  std::vector<CollectiveTransfer> transfers;
  double inside_hops = 0.0;
  double network_hops = 0.0;
  double own_bytes = 0.0;
  const MulticastCosts* multicast = nullptr;
};

// Neighbours inside every domain, in a circle where `closed`, else from each member to the next.
void add_inside(const GroupShape& shape, double bytes, std::vector<CollectiveTransfer>& out) {
  if (bytes <= 0.0) return;
  for (const auto& domain : shape.members) {
    const std::size_t g = domain.size();
    for (std::size_t c = 0; g > 1 && c < g; ++c) {
      out.push_back({domain[c], domain[(c + 1) % g], bytes, 0.0});
    }
  }
}

Candidate ring(const GroupShape& shape, CollectiveKind kind, double bytes) {
  const bool reduce = kind == CollectiveKind::kAllReduce;
  const double n = shape.num_gpus;
  const double m = shape.num_domains();
  const double rounds = reduce ? 2.0 : 1.0;
  const double wire = rounds * bytes * (n - 1.0) / n;
  Candidate out;
  out.inside_hops = rounds * (n - m);
  out.network_hops = rounds * (m - 1.0);
  // The all-gather half of an all-reduce finds its own part in place.
  out.own_bytes = reduce ? 0.5 * bytes / n : bytes / n;
  if (!shape.regular) {
    std::vector<std::uint32_t> order;
    for (const auto& domain : shape.members) {
      order.insert(order.end(), domain.begin(), domain.end());
    }
    for (std::size_t i = 0; i < order.size(); ++i) {
      out.transfers.push_back({order[i], order[(i + 1) % order.size()], wire, 0.0});
    }
    return out;
  }
  add_inside(shape, wire, out.transfers);
  const double rail_bytes = wire / shape.per_domain();
  for (std::size_t d = 0; m > 1.0 && d < shape.members.size(); ++d) {
    const auto& next = shape.members[(d + 1) % shape.members.size()];
    for (std::size_t c = 0; c < next.size(); ++c) {
      out.transfers.push_back({shape.members[d][c], next[c], rail_bytes, 0.0});
    }
  }
  return out;
}

// The parent of every node but the root in an in-order binary tree over m nodes, in which the odd
// positions are leaves: position p with lowest set bit b hangs below p +- b.
std::vector<std::uint32_t> tree_parents(std::uint32_t m) {
  std::vector<std::uint32_t> parents(m, m);  // m: none
  for (std::uint32_t p = 1; p < m; ++p) {
    const std::uint32_t bit = p & (~p + 1);
    std::uint32_t parent = (p ^ bit) | (bit << 1);
    if (parent >= m) parent = p ^ bit;
    parents[p] = parent;
  }
  return parents;
}

// The edges of both trees over the domains, per rail, each way.
void add_trees(const GroupShape& shape, double bytes, std::vector<CollectiveTransfer>& out) {
  const std::uint32_t m = shape.num_domains();
  const double part = 0.5 * bytes / shape.per_domain();
  const std::vector<std::uint32_t> parents = tree_parents(m);
  for (const bool second : {false, true}) {
    // Shifted by one, or mirrored, the second tree has leaves where the first has inner nodes.
    const auto domain = [&](std::uint32_t p) -> const std::vector<std::uint32_t>& {
      return shape.members[!second ? p : m % 2 == 0 ? m - 1 - p : (p + 1) % m];
    };
    for (std::uint32_t p = 0; p < m; ++p) {
      if (parents[p] == m) continue;
      const auto& child = domain(p);
      const auto& parent = domain(parents[p]);
      for (std::size_t c = 0; c < child.size(); ++c) {
        out.push_back({child[c], parent[c], part, 0.0});
        out.push_back({parent[c], child[c], part, 0.0});
      }
    }
  }
}

double tree_depth(std::uint32_t num_domains) {
  return std::ceil(std::log2(static_cast<double>(num_domains)));
}

Candidate tree(const GroupShape& shape, double bytes) {
  const double g = shape.per_domain();
  Candidate out;
  out.algorithm = CollectiveAlgorithm::kTree;
  out.inside_hops = 2.0 * (g - 1.0);
  out.network_hops = 2.0 * tree_depth(shape.num_domains());
  // Up the chain of a domain and down again.
  add_inside(shape, 2.0 * bytes * (g - 1.0) / g, out.transfers);
  add_trees(shape, bytes, out.transfers);
  return out;
}

Candidate with_multicast(const GroupShape& shape, const MulticastCosts& costs, double bytes) {
  Candidate out;
  out.multicast = &costs;
  const double g = shape.per_domain();
  add_inside(shape, bytes * (1.0 + 1.0 / g), out.transfers);
  if (shape.num_domains() == 1) {
    out.algorithm = CollectiveAlgorithm::kMulticast;
    return out;
  }
  out.algorithm = CollectiveAlgorithm::kHierarchical;
  out.network_hops = 2.0 * tree_depth(shape.num_domains());
  add_trees(shape, bytes, out.transfers);
  return out;
}

Candidate direct(const GroupShape& shape, std::span<const std::uint32_t> gpus, double bytes) {
  Candidate out;
  out.algorithm = CollectiveAlgorithm::kDirect;
  const double part = bytes / shape.num_gpus;
  out.own_bytes = part;
  for (std::size_t i = 0; i < gpus.size(); ++i) {
    // Every GPU starts with its successor, so that nobody is everybody's first.
    for (std::size_t k = 1; k < gpus.size(); ++k) {
      out.transfers.push_back({gpus[i], gpus[(i + k) % gpus.size()], part, 0.0});
    }
  }
  return out;
}

std::vector<Candidate> candidates(const Cluster& cluster, const GroupShape& shape,
                                  CollectiveKind kind, std::span<const std::uint32_t> gpus,
                                  double bytes) {
  if (kind == CollectiveKind::kAllToAll) return {direct(shape, gpus, bytes)};
  std::vector<Candidate> out{ring(shape, kind, bytes)};
  if (kind != CollectiveKind::kAllReduce || !shape.regular) return out;
  // Without costs per hop a tree has no advantage.
  if (shape.num_domains() > 1 && cluster.collectives) out.push_back(tree(shape, bytes));
  if (!cluster.collectives || !cluster.collectives->multicast) return out;
  const MulticastCosts& multicast = *cluster.collectives->multicast;
  if (shape.per_domain() >= multicast.min_gpus) {
    out.push_back(with_multicast(shape, multicast, bytes));
  }
  return out;
}

// The candidate with a protocol: caps, silent time and estimate.
CollectivePlan priced(const Cluster& cluster, Candidate candidate,
                      const CollectiveProtocol* protocol) {
  CollectivePlan plan;
  plan.algorithm = candidate.algorithm;
  plan.transfers = std::move(candidate.transfers);
  double inside_rate = scale_up_rate(cluster);
  if (const auto& costs = cluster.collectives) {
    plan.protocol = protocol->name;
    const Seconds setup =
        candidate.multicast != nullptr ? candidate.multicast->setup : protocol->setup;
    plan.silent_s = costs->launch.value + setup.value + candidate.inside_hops * costs->hop.value +
                    candidate.network_hops * protocol->network_hop.value;
    if (costs->copy_bandwidth) plan.silent_s += candidate.own_bytes / costs->copy_bandwidth->value;
    const Bandwidth rate =
        candidate.multicast != nullptr ? candidate.multicast->bandwidth : protocol->bandwidth;
    inside_rate = std::min(inside_rate, rate.value);
  }
  // A GPU's transfers inside its domain share the protocol's rate.
  std::map<std::uint32_t, double> inside, network;  // bytes by GPU
  const auto is_inside = [&](const CollectiveTransfer& transfer) {
    return tier_of(cluster, transfer.src, transfer.dst) == Tier::kScaleUp;
  };
  for (const CollectiveTransfer& transfer : plan.transfers) {
    (is_inside(transfer) ? inside : network)[transfer.src] += transfer.bytes;
  }
  double flow_s = 0.0;
  for (const auto& [gpu, bytes] : inside) flow_s = std::max(flow_s, bytes / inside_rate);
  for (const auto& [gpu, bytes] : network) {
    flow_s = std::max(flow_s, bytes / network_rate(cluster));
  }
  for (CollectiveTransfer& transfer : plan.transfers) {
    if (is_inside(transfer)) {
      transfer.rate_cap = inside_rate * transfer.bytes / inside.at(transfer.src);
    }
  }
  plan.estimate_s = plan.silent_s + flow_s;
  return plan;
}

}  // namespace

std::string_view to_string(CollectiveKind kind) {
  return kKindNames[static_cast<std::size_t>(kind)];
}

std::optional<CollectiveKind> parse_collective(std::string_view name) {
  const auto* const found = std::find(kKindNames.begin(), kKindNames.end(), name);
  if (found == kKindNames.end()) return std::nullopt;
  return static_cast<CollectiveKind>(found - kKindNames.begin());
}

std::string_view to_string(CollectiveAlgorithm algorithm) {
  return kAlgorithmNames[static_cast<std::size_t>(algorithm)];
}

CollectivePlan plan_collective(const Cluster& cluster, CollectiveKind kind,
                               std::span<const std::uint32_t> gpus, double bytes) {
  if (gpus.size() < 2 || bytes <= 0.0) return {};
  const GroupShape shape = shape_of(cluster, gpus);
  std::optional<CollectivePlan> best;
  for (const Candidate& candidate : candidates(cluster, shape, kind, gpus, bytes)) {
    std::vector<const CollectiveProtocol*> protocols{nullptr};
    if (cluster.collectives) {
      protocols.clear();
      for (const auto& protocol : cluster.collectives->protocols) protocols.push_back(&protocol);
    }
    for (const CollectiveProtocol* protocol : protocols) {
      CollectivePlan plan = priced(cluster, candidate, protocol);
      if (!best || plan.estimate_s < best->estimate_s) best = std::move(plan);
    }
  }
  return std::move(*best);
}

void add_collective(ProgramBuilder& builder, GpuResources& gpus_resources, const Cluster& cluster,
                    const CollectivePlan& plan, std::span<const std::uint32_t> gpus,
                    std::uint32_t waits_for, std::span<const std::uint32_t> signals) {
  const std::uint32_t started[]{builder.add_event()};
  const std::uint32_t ended[]{builder.add_event()};
  const std::uint32_t sms = cluster.collectives ? cluster.collectives->sms : 0;
  for (const std::uint32_t gpu : gpus) {
    const std::uint32_t op = builder.add_compute(gpu, plan.silent_s, waits_for, started);
    if (sms == 0 || plan.transfers.empty()) continue;
    builder.add_hold({gpus_resources.multiprocessors(gpu), static_cast<double>(sms), op, ended[0]});
  }
  for (const CollectiveTransfer& transfer : plan.transfers) {
    Operation operation{.src = transfer.src,
                        .dst = transfer.dst,
                        .amount = transfer.bytes,
                        .waits_for = started[0],
                        .signals = ended};
    if (transfer.rate_cap > 0.0) operation.rate_cap = builder.add_rate_cap(transfer.rate_cap);
    builder.add(operation);
  }
  builder.add_compute(gpus.front(), 0.0, plan.transfers.empty() ? started[0] : ended[0], signals);
  // The hold ends with an event that something signals.
  if (plan.transfers.empty()) builder.add_compute(gpus.front(), 0.0, started[0], ended);
}

}  // namespace coterie
