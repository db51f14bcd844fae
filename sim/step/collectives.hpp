#pragma once
// Collectives of NCCL as operations: which algorithm and protocol it takes, how long nothing moves,
// and which GPU sends how much to which. The transfers go over the cluster's links like all others,
// so that collectives compete with dispatch traffic.
//
// A group of n GPUs lies on m scale-up domains (nodes) with g GPUs each. Over a buffer of S bytes
// (all-reduce: what is reduced; reduce-scatter: what goes in; all-gather: what comes out; all-to-all:
// what each GPU sends, its own part included):
//
//   algorithm     for                         a GPU sends inside its domain    and between domains
//   ring          all-reduce                  2 S (n-1)/n                      2 S (n-1)/n / g
//                 reduce-scatter, all-gather  S (n-1)/n                        S (n-1)/n / g
//   tree          all-reduce, m > 1           2 S (g-1)/g                      2 S/g but for the ends
//   multicast     all-reduce, m = 1           S (1 + 1/n)                      -
//   hierarchical  all-reduce, m > 1           S (1 + 1/g)                      as tree
//   direct        all-to-all                  S/n to every other GPU
//
// Between domains a ring runs once per local index ("rail"), each with 1/g of the buffer, so that
// every NIC carries its part; a tree is NCCL's pair of binary trees over the domains, in which each
// domain is a leaf of one, with half of the buffer each.
//
// A ring is pipelined: n-1 steps of chunks, each of which waits for the one before. In the fluid model
// that is the same as one transfer from every GPU to its successor that carries all chunks: with equal
// shares every step takes chunk/rate, and (n-1) steps take what the bulk takes; where one link is
// slower, every chunk passes it, and the bulk ends with that link as the chunks do, save for the
// steps that fill and drain the pipeline (a test compares both). So 2n operations stand for 2n(n-1).

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sim/program/kernels.hpp"
#include "sim/program/program.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

enum class CollectiveKind : std::uint8_t { kAllReduce, kReduceScatter, kAllGather, kAllToAll };
std::string_view to_string(CollectiveKind kind);  // all_reduce, ...
std::optional<CollectiveKind> parse_collective(std::string_view name);

enum class CollectiveAlgorithm : std::uint8_t { kRing, kTree, kMulticast, kHierarchical, kDirect };
std::string_view to_string(CollectiveAlgorithm algorithm);

struct CollectiveTransfer {
  std::uint32_t src = 0, dst = 0;  // GPUs
  double bytes = 0.0;
  double rate_cap = 0.0;  // bytes per second; 0: none
};

// What a group does; nothing for a single GPU or no bytes.
struct CollectivePlan {
  CollectiveAlgorithm algorithm = CollectiveAlgorithm::kRing;
  std::string protocol;   // empty where the topology has no `collectives`
  double silent_s = 0.0;  // launch, hops, set-up and own part: before the bytes move
  std::vector<CollectiveTransfer> transfers;
  double estimate_s = 0.0;  // alone on the links of its own GPUs, in closed form
};

// The plan that NCCL's tuner would take: the least estimate. `gpus`: the group in rank order, each
// once, on the cluster. Throws std::logic_error for a GPU that the cluster lacks.
CollectivePlan plan_collective(const Cluster& cluster, CollectiveKind kind,
                               std::span<const std::uint32_t> gpus, double bytes);

// Adds the plan's operations. They start when `waits_for` has fired (all members have called); every
// event of `signals` fires after the last of them. Where the topology says so (collectives.sms), the
// kernel holds multiprocessors of every member from start to end.
void add_collective(ProgramBuilder& builder, GpuResources& gpus_resources, const Cluster& cluster,
                    const CollectivePlan& plan, std::span<const std::uint32_t> gpus,
                    std::uint32_t waits_for, std::span<const std::uint32_t> signals);

}  // namespace coterie
