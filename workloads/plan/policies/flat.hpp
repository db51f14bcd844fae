#pragma once
// Policies of one stage differ only in whether the copies for one rank share a row.

#include "workloads/plan/policies.hpp"

namespace coterie {

// One transfer per (source, destination) rank pair. `merge`: one row per token, else per copy.
std::vector<Stage> plan_flat(const Deliveries& deliveries, bool merge);

}  // namespace coterie
