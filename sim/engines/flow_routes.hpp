#pragma once
// The links that can matter: a route without the links that other links on the way make redundant.
//
// Link A never limits anything if the links that feed it cannot fill it: pick for every transfer
// over A one other link of its route; if the bandwidths of the distinct links picked add up to no
// more than A's, then A's constraint follows from theirs and dropping it changes no rate. Examples:
// a NIC port behind a tighter per-rank cap, a scale-up port that eight NICs cannot fill, a switch
// link that few flows are hashed to, every link of a fabric that a single pair uses. The picks
// tried are the first and the last of the narrowest links of each route. A link that a dropped one
// relies on is kept, so that no two links vouch for each other. Of links and resources whose capacity
// varies during the run (by changes or holds) none is dropped, and they count with the largest
// capacity that they ever have where others rely on them. Where transfers take detours, all links are
// kept.

#include <cstdint>
#include <span>
#include <vector>

#include "sim/engines/resolved.hpp"
#include "sim/program/program.hpp"

namespace coterie::flow {

struct BindingRoutes {
  std::vector<std::uint64_t> begin;  // [num_ops + 1]
  std::vector<std::uint32_t> links;
  std::vector<double> cap;  // [num_ops] infinite where a link of the route is always as narrow
  std::uint32_t max_hops = 1;
  std::uint64_t num_dropped = 0;  // links

  [[nodiscard]] std::span<const std::uint32_t> of(std::size_t op) const {
    return std::span(links).subspan(begin[op], begin[op + 1] - begin[op]);
  }
};

BindingRoutes binding_routes(const Program& program, const Routes& routes);

}  // namespace coterie::flow
