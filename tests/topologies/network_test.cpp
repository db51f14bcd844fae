#include "topologies/network.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/graph/dijkstra_shortest_paths.hpp>
#include <chrono>
#include <map>
#include <thread>

#include "core/error.hpp"
#include "tests/topologies/small_clusters.hpp"
#include "topologies/fabric.hpp"

namespace coterie {
namespace {

std::vector<std::string> route(const Network& network, std::uint32_t src, std::uint32_t dst,
                               std::uint64_t key = 0) {
  std::vector<LinkId> ids;
  network.append_route(GpuId{src}, GpuId{dst}, key, ids);
  std::vector<std::string> names;
  for (const LinkId id : ids) names.push_back(network.links()[id.value].name);
  return names;
}

using Names = std::vector<std::string>;

// The preset star is one 400 Gb/s link per rank and direction, 500 ns each; so a route has
// two links and 1 us of latency.
TEST(Network, StarIsTwoLinksOf500Ns) {
  const Network network(load_cluster("star", {}, 16));
  ASSERT_EQ(network.num_gpus(), 16U);
  EXPECT_EQ(route(network, 3, 9), (Names{"gpu 3 nic out", "gpu 9 nic in"}));
  std::vector<LinkId> ids;
  network.append_route(GpuId{3}, GpuId{9}, 0, ids);
  EXPECT_DOUBLE_EQ(network.route_latency(ids).value, 1e-6);
  EXPECT_DOUBLE_EQ(network.links()[ids[0].value].bandwidth.value, 50e9);  // 400 / 8
  EXPECT_EQ(network.injection(Tier::kNetwork).sends_in_flight, kUnlimitedSends);
  EXPECT_TRUE(route(network, 5, 5).empty());
}

// A transfer inside a node: cap, out port, in port, cap (h100_node has a rank cap).
TEST(Network, ScaleUpRouteCrossesThePortsAndTheCaps) {
  const Network network(load_cluster("h200_node"));
  EXPECT_EQ(network.tier(GpuId{0}, GpuId{7}), Tier::kScaleUp);
  EXPECT_EQ(route(network, 1, 6), (Names{"gpu 1 scale_up cap out", "gpu 1 scale-up out",
                                         "gpu 6 scale-up in", "gpu 6 scale_up cap in"}));
}

// Ranks that share a GPU share its NICs; inside the GPU each has a port of its own.
TEST(Network, RanksOfAGpuShareItsNics) {
  const Network network(load_cluster(
      "{extends: h200_node, nodes: 2, gpus_per_node: 4, ranks_per_gpu: 2, fabric: {kind: star}, "
      "scale_up: {injection: {rank_bandwidth: none}}, nic: {bandwidth: 50 GB/s, latency: 1 us, "
      "pxn: "
      "false}}"));
  EXPECT_EQ(route(network, 1, 6), (Names{"gpu 0 nic out", "gpu 6 nic in"}));
  EXPECT_EQ(route(network, 2, 5), (Names{"gpu 2 nic out", "gpu 4 nic in"}));
  EXPECT_EQ(route(network, 1, 2), (Names{"gpu 1 scale-up out", "gpu 2 scale-up in"}));
}

// h200_node has a cap of what one rank's kernels send over NVLink. Ranks 0 and 1 share a GPU: rows between
// them are copies in its memory, which the cap says nothing of. Rank 2 is on another GPU.
TEST(Network, CapsOfARankEndAtItsGpu) {
  const Network network(load_cluster("{extends: h200_node, gpus_per_node: 4, ranks_per_gpu: 2}"));
  EXPECT_EQ(route(network, 0, 1), (Names{"gpu 0 scale-up out", "gpu 1 scale-up in"}));
  EXPECT_EQ(route(network, 0, 2), (Names{"gpu 0 scale_up cap out", "gpu 0 scale-up out",
                                         "gpu 2 scale-up in", "gpu 2 scale_up cap in"}));
}

// Rail-optimised, 8 nodes x 8: same rail stays on its leaf; another rail is changed over scale-up.
TEST(Network, RailOptimisedChangesRailsOverScaleUp) {
  const Network network(load_cluster("h100_rail_8x8"));
  EXPECT_EQ(route(network, 3, 11), (Names{"gpu 3 network cap out", "gpu 3 nic out", "gpu 11 nic in",
                                          "gpu 11 network cap in"}));
  EXPECT_EQ(route(network, 3, 12),
            (Names{"gpu 3 network cap out", "gpu 3 scale-up out", "gpu 4 scale-up in",
                   "gpu 4 nic out", "gpu 12 nic in", "gpu 12 network cap in"}));
}

// A leaf that both GPUs share makes PXN's detour; switched off, the route crosses the spine.
TEST(Network, WithoutPxnCrossRailTrafficCrossesASpine) {
  const Network network(load_cluster("h100_rail_8x8", {{"nic.pxn", "false"}}));
  const Names names = route(network, 3, 12);
  ASSERT_EQ(names.size(), 6U);  // cap, nic, up, down, nic, cap
  EXPECT_EQ(names[2].substr(0, 15), "leaf 3 -> spine");
  EXPECT_EQ(names[3].substr(names[3].size() - 6), "leaf 4");
}

// Rails are not joined: without PXN too, traffic changes rails first.
TEST(Network, RailOnlyAlwaysChangesRails) {
  const Network network(node_cluster(3, 2, "kind: rail_only", "", ", pxn: false"));
  EXPECT_EQ(route(network, 0, 5),
            (Names{"gpu 0 scale-up out", "gpu 1 scale-up in", "gpu 1 nic out", "gpu 5 nic in"}));
}

// Two sockets of two GPUs: each has a bridge of its own, and what joins them lies between. GPUs 0
// and 1 are on socket 0, 2 and 3 on socket 1 of domain 0; 4 is on the first socket of domain 1.
TEST(Network, SocketsHaveABridgeEach) {
  const Network network(node_cluster(
      2, 4, "kind: star", ", shared_bandwidth: 20 GB/s, sockets: 2, socket_bandwidth: 5 GB/s"));
  EXPECT_EQ(route(network, 0, 1),
            (Names{"gpu 0 scale-up out", "domain 0 socket 0 shared", "gpu 1 scale-up in"}));
  EXPECT_EQ(route(network, 5, 6),
            (Names{"gpu 5 scale-up out", "domain 1 socket 0 shared", "domain 1 between sockets",
                   "domain 1 socket 1 shared", "gpu 6 scale-up in"}));
}

// A shared bandwidth is one link of the domain in the middle of all its transfers.
TEST(Network, SharedBandwidthIsOneLinkPerDomain) {
  const Network network(
      node_cluster(2, 4, "kind: star", ", shared_bandwidth: 20 GB/s", ", per_gpu: 2"));
  EXPECT_EQ(route(network, 4, 6),
            (Names{"gpu 4 scale-up out", "domain 1 shared", "gpu 6 scale-up in"}));
  std::vector<LinkId> ids;
  network.append_route(GpuId{0}, GpuId{3}, 0, ids);
  network.append_route(GpuId{2}, GpuId{1}, 0, ids);
  EXPECT_EQ(ids[1], ids[4]);
  EXPECT_DOUBLE_EQ(network.links()[ids[1].value].bandwidth.value, 20e9);
  ids.clear();
  network.append_route(GpuId{0}, GpuId{7}, 0, ids);
  EXPECT_DOUBLE_EQ(network.links()[ids[0].value].bandwidth.value, 2e9);  // two NICs of 1 GB/s
}

// Trays of one rack are one domain; racks talk over NICs of the destination's tray position.
TEST(Network, RackScaleDomains) {
  const Network network(load_cluster("nvl72_multi_rack"));
  EXPECT_EQ(network.tier(GpuId{0}, GpuId{71}), Tier::kScaleUp);
  EXPECT_EQ(network.tier(GpuId{0}, GpuId{72}), Tier::kNetwork);
  const Names names = route(network, 1, 75);  // position 3 of a tray of the second rack
  EXPECT_EQ(names[1], "gpu 1 scale-up out");
  EXPECT_EQ(names[2], "gpu 3 scale-up in");
  EXPECT_EQ(names[3], "gpu 3 nic out");
}

TEST(Network, UnreachableGpusAreAnErrorAndLeaveTheRouteAlone) {
  const Network network(
      plain_cluster(4, 1, "kind: custom, num_switches: 2, attach: [0, 0, 1, 1], cables: []"));
  std::vector<LinkId> ids{LinkId{7}};
  try {
    network.append_route(GpuId{1}, GpuId{2}, 0, ids);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "topology cluster: found no route from GPU 1 to GPU 2, expected a fabric that "
                 "joins all nodes");
  }
  EXPECT_EQ(ids, std::vector<LinkId>{LinkId{7}});
}

struct RouteCase {
  std::string name;
  Cluster cluster;
};

class EveryFabric : public testing::TestWithParam<RouteCase> {};

// The slow obvious reference: Boost's Dijkstra on the network part of the graph, from every GPU.
// Every route must be an unbroken walk from source to destination of exactly that cost.
TEST_P(EveryFabric, RoutesAreShortestWalks) {
  const Cluster& cluster = GetParam().cluster;
  const FabricModel model = build_fabric(cluster);
  std::map<std::uint32_t, FabricGraph::edge_descriptor> edge_of;
  FabricGraph network_part = model.graph;
  boost::remove_edge_if([&](const auto& edge) { return network_part[edge].tier == Tier::kScaleUp; },
                        network_part);
  for (const auto& edge : boost::make_iterator_range(boost::edges(model.graph))) {
    edge_of[model.graph[edge].link] = edge;
  }
  for (const RouteChoice choice : {RouteChoice::kDeterministic, RouteChoice::kEcmp}) {
    const Network network(cluster, choice);
    std::vector<LinkId> ids, again;
    for (std::uint32_t src = 0; src < cluster.num_gpus(); ++src) {
      std::vector<std::uint32_t> cost(boost::num_vertices(network_part));
      boost::dijkstra_shortest_paths(
          network_part, src,
          boost::weight_map(boost::get(&FabricEdge::cost, network_part))
              .distance_map(boost::make_iterator_property_map(
                  cost.begin(), boost::get(boost::vertex_index, network_part))));
      for (std::uint32_t dst = 0; dst < cluster.num_gpus(); ++dst) {
        if (network.tier(GpuId{src}, GpuId{dst}) != Tier::kNetwork) continue;
        ids.clear();
        again.clear();
        network.append_route(GpuId{src}, GpuId{dst}, 5, ids);
        network.append_route(GpuId{src}, GpuId{dst}, 5, again);
        ASSERT_EQ(ids, again);
        std::size_t at = src;
        std::uint32_t sum = 0;
        for (const LinkId id : ids) {
          const auto& edge = edge_of.at(id.value);
          ASSERT_EQ(boost::source(edge, model.graph), at);
          at = boost::target(edge, model.graph);
          sum += model.graph[edge].cost;
        }
        ASSERT_EQ(at, dst);
        ASSERT_EQ(sum, cost[dst]) << src << " to " << dst;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Small, EveryFabric,
    testing::Values(RouteCase{"star", plain_cluster(5, 2, "kind: star")},
                    RouteCase{"leaf_spine", plain_cluster(16, 1, kLeafSpine2)},
                    RouteCase{"rail_leaf_spine",
                              node_cluster(8, 4,
                                           "kind: leaf_spine, hop_latency: 1 us, ports_per_leaf: "
                                           "4, num_spines: 3",
                                           "", ", pxn: false")},
                    RouteCase{"fat_tree", plain_cluster(16, 1, kFatTree4)},
                    RouteCase{"fat_tree_6",
                              plain_cluster(9, 4, "kind: fat_tree, hop_latency: 1 us, k: 6")},
                    RouteCase{"dragonfly", plain_cluster(72, 1, kDragonfly72)},
                    RouteCase{"ring", plain_cluster(8, 2, kRing8)},
                    RouteCase{"torus", plain_cluster(30, 1,
                                                     "kind: torus, hop_latency: 1 us, dimensions: "
                                                     "[3, 5, 2], link_bandwidth: 1 GB/s")},
                    RouteCase{"custom", plain_cluster(4, 1, kBrokenRing)}),
    [](const auto& test) { return test.param.name; });

// 8,000 flows of one pair over 8 spines: 1,000 each, with a binomial deviation of
// sqrt(8000 * 1/8 * 7/8) = 29.6; five of those is far beyond chance.
TEST(Network, EcmpSpreadsFlowsOverAllSpines) {
  const Network network(load_cluster("h100_rail_8x8", {{"nic.pxn", "false"}}));
  std::map<std::string, int> uplinks;
  for (std::uint64_t key = 0; key < 8000; ++key) ++uplinks[route(network, 0, 9, key)[2]];
  ASSERT_EQ(uplinks.size(), 8U);
  for (const auto& [name, count] : uplinks) EXPECT_NEAR(count, 1000, 150) << name;
}

std::map<std::uint32_t, int> all_to_all_load(const Network& network) {
  std::map<std::uint32_t, int> load;
  std::vector<LinkId> ids;
  for (std::uint32_t src = 0; src < network.num_gpus(); ++src) {
    for (std::uint32_t dst = 0; dst < network.num_gpus(); ++dst) {
      ids.clear();
      network.append_route(GpuId{src}, GpuId{dst}, 0, ids);
      for (const LinkId id : ids) ++load[id.value];
    }
  }
  return load;
}

// Destination-modulo-k routing balances an all-to-all on the k = 4 fat tree perfectly: of an edge
// switch's 2 * 14 outgoing flows each uplink takes 14, of a pod's 4 * 12 each core cable takes 12.
TEST(Network, DeterministicRoutesBalanceTheFatTree) {
  const Network network(plain_cluster(16, 1, kFatTree4), RouteChoice::kDeterministic);
  int edge_links = 0;
  int core_links = 0;
  for (const auto& [id, count] : all_to_all_load(network)) {
    const std::string& name = network.links()[id].name;
    if (name.starts_with("edge")) {
      EXPECT_EQ(count, 14) << name;
      ++edge_links;
    } else if (name.find("core") != std::string::npos) {
      EXPECT_EQ(count, 12) << name;
      ++core_links;
    }
  }
  EXPECT_EQ(edge_links, 16);
  EXPECT_EQ(core_links, 32);
}

// Dimension order: from (0,0) to (1,1) of a 3 x 3 torus the first dimension goes first.
TEST(Network, DeterministicTorusRoutesAreDimensionOrdered) {
  const Network network(plain_cluster(9, 1,
                                      "kind: torus, hop_latency: 1 us, dimensions: [3, 3], "
                                      "link_bandwidth: 1 GB/s"),
                        RouteChoice::kDeterministic);
  EXPECT_EQ(route(network, 0, 4), (Names{"gpu 0 nic out", "router 0 -> router 3",
                                         "router 3 -> router 4", "gpu 4 nic in"}));
}

// Relabelling by a symmetry changes nothing: turning a ring by three, or swapping the two pods of a
// rail-optimised fabric, keeps every pair's number of links and latency.
TEST(Network, RelabellingBySymmetryKeepsRoutes) {
  const auto check = [](const Cluster& cluster, std::uint32_t shift) {
    const Network network(cluster);
    const std::uint32_t n = cluster.num_gpus();
    std::vector<LinkId> ids, moved;
    for (std::uint32_t src = 0; src < n; ++src) {
      for (std::uint32_t dst = 0; dst < n; ++dst) {
        ids.clear();
        moved.clear();
        network.append_route(GpuId{src}, GpuId{dst}, 0, ids);
        network.append_route(GpuId{(src + shift) % n}, GpuId{(dst + shift) % n}, 0, moved);
        ASSERT_EQ(ids.size(), moved.size());
        ASSERT_DOUBLE_EQ(network.route_latency(ids).value, network.route_latency(moved).value);
      }
    }
  };
  check(plain_cluster(8, 1, kRing8), 3);
  check(node_cluster(8, 4, "kind: leaf_spine, hop_latency: 1 us, ports_per_leaf: 4, num_spines: 2"),
        16);
}

// Tables are made on first use; several threads asking at once get what one gets.
TEST(Network, RoutesAreTheSameFromManyThreads) {
  const Cluster cluster = plain_cluster(72, 1, kDragonfly72);
  const Network alone(cluster);
  const auto expected = all_to_all_load(alone);
  const Network shared(cluster);
  std::vector<std::map<std::uint32_t, int>> found(4);
  std::vector<std::thread> threads;
  for (auto& load : found) threads.emplace_back([&] { load = all_to_all_load(shared); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& load : found) EXPECT_EQ(load, expected);
}

// 16,384 GPUs on a fat tree of k = 42 (2,205 switches): up and routing well under a second in a
// release build; the limit leaves room for sanitizers and a busy machine.
TEST(Network, LargeClustersStartQuickly) {
  const auto start = std::chrono::steady_clock::now();
  const Network network(load_cluster("h100_fat_tree", {}, 16384));
  std::vector<LinkId> ids;
  for (std::uint32_t dst = 1; dst < 16384; dst += 97) {
    network.append_route(GpuId{0}, GpuId{dst}, dst, ids);
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  EXPECT_GT(ids.size(), 16383U / 97 * 2);
  EXPECT_LT(taken.count(), 10.0);
}

// The positions of links by name.
std::vector<std::uint32_t> positions(const Network& network, const Names& names) {
  std::vector<std::uint32_t> out;
  for (std::uint32_t i = 0; i < network.links().size(); ++i) {
    if (std::find(names.begin(), names.end(), network.links()[i].name) != names.end()) {
      out.push_back(i);
    }
  }
  return out;
}

// A failed cable leaves the other spine, also for traffic against its direction.
TEST(Network, RoutesGoAroundAFailedCable) {
  const Cluster cluster = plain_cluster(2, 4, kLeafSpine2);
  const Network whole(cluster);
  const Network network(cluster, positions(whole, {"leaf 0 -> spine 1"}));
  for (std::uint32_t key = 0; key < 8; ++key) {
    EXPECT_EQ(route(network, 0, 5, key),
              (Names{"gpu 0 nic out", "leaf 0 -> spine 0", "spine 0 -> leaf 1", "gpu 5 nic in"}));
    EXPECT_EQ(route(network, 5, 0, key),
              (Names{"gpu 5 nic out", "leaf 1 -> spine 0", "spine 0 -> leaf 0", "gpu 0 nic in"}));
  }
  EXPECT_EQ(network.links().size(), whole.links().size());
}

// A GPU whose NIC has failed sends over that of the next GPU of its node, and is reached so.
TEST(Network, RoutesGoAroundAFailedNic) {
  const Cluster cluster = node_cluster(2, 2, "kind: star");
  const Network whole(cluster);
  const Network network(cluster, positions(whole, {"gpu 0 nic out", "gpu 3 nic in"}));
  EXPECT_EQ(route(network, 0, 2),
            (Names{"gpu 0 scale-up out", "gpu 1 scale-up in", "gpu 1 nic out", "gpu 2 nic in"}));
  EXPECT_EQ(route(network, 0, 3),
            (Names{"gpu 0 scale-up out", "gpu 1 scale-up in", "gpu 1 nic out", "gpu 2 nic in",
                   "gpu 2 scale-up out", "gpu 3 scale-up in"}));
  EXPECT_EQ(route(network, 2, 0), route(whole, 2, 0));
  EXPECT_EQ(route(network, 0, 1), route(whole, 0, 1));
}

// A scale-up port is replaced by NICs; a NIC of a node without scale-up by nothing.
TEST(Network, RoutesStayWhereThereIsNoOther) {
  const Cluster nodes = node_cluster(2, 2, "kind: star");
  EXPECT_EQ(route(Network(nodes, positions(Network(nodes), {"gpu 0 scale-up out"})), 0, 1),
            (Names{"gpu 0 nic out", "gpu 1 nic in"}));
  const Cluster plain = plain_cluster(2, 4, kLeafSpine2);
  const Network whole(plain);
  for (const Names& failed :
       {Names{"gpu 0 nic out"}, Names{"leaf 0 -> spine 0", "leaf 0 -> spine 1"}}) {
    EXPECT_EQ(route(Network(plain, positions(whole, failed)), 0, 5), route(whole, 0, 5));
  }
}

}  // namespace
}  // namespace coterie
