#pragma once
// Identities as strong types: a rank is never mistaken for a node or an expert in an interface.
// Inside hot loops the raw `value` is used.

#include <compare>
#include <cstdint>

namespace coterie {

template <class Tag>
struct Id {
  std::uint32_t value = 0;
  friend constexpr auto operator<=>(Id, Id) = default;
};

using GpuId = Id<struct GpuTag>;  // a GPU of the cluster, node-major: node * gpus_per_node + local
using RankId = Id<struct RankTag>;  // an EP rank of one group
using NodeId = Id<struct NodeTag>;
using LinkId = Id<struct LinkTag>;  // a directed link of a Network

}  // namespace coterie
