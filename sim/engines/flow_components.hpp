#pragma once
// Splits a program into parts that cannot influence each other: no common link, send queue or event
// (the start event apart).

#include <cstdint>
#include <span>
#include <vector>

#include "sim/engines/flow_routes.hpp"
#include "sim/program.hpp"
#include "sim/routes.hpp"

namespace coterie::flow {

struct Component {
  std::vector<std::uint32_t> ops;    // ascending
  std::vector<std::uint32_t> links;  // that its transfers cross, ascending
  double busiest_link_s = 0.0;       // largest bytes / capacity of its links
};

// In the order of their first operations.
std::vector<Component> split_components(const Program& program, const Transfers& transfers,
                                        const BindingRoutes& routes,
                                        std::span<const double> capacity);

}  // namespace coterie::flow
