// Standard expert parallelism: one copy of the token per expert, straight to the expert's rank.

#include "workloads/plan/policies/flat.hpp"

namespace coterie {

std::vector<Stage> plan_standard(const Deliveries& deliveries) {
  return plan_flat(deliveries, /*merge=*/false);
}

}  // namespace coterie
