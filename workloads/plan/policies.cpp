#include "workloads/plan/policies.hpp"

#include <array>

namespace coterie {

std::span<const PolicyEntry> policy_registry() {
  static constexpr std::array kRegistry{
      PolicyEntry{DispatchPolicy::kStandard, "standard", plan_standard},
      PolicyEntry{DispatchPolicy::kDedup, "dedup", plan_dedup},
      PolicyEntry{DispatchPolicy::kHierarchical, "hierarchical", plan_hierarchical,
                  hierarchical_rounds},
  };
  return kRegistry;
}

}  // namespace coterie
