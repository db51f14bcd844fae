#pragma once
// The registry of dispatch policies: one file in policies/ and one line in policies.cpp each
// (workloads/README.md gives the recipe).

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "workloads/plan/plan.hpp"

namespace coterie {

// What a policy starts from: every (token, expert) with the rank that serves it.
struct Deliveries {
  std::uint32_t num_ranks = 0;
  std::uint32_t ranks_per_node = 1;
  std::uint32_t num_topk = 0;
  PlanDetail detail = PlanDetail::kRows;
  std::span<const std::uint64_t> token_begin;  // [num_ranks + 1]
  std::span<const std::uint32_t> serving;      // [num_tokens][num_topk] ranks
};

struct PolicyEntry {
  DispatchPolicy policy;
  std::string_view name;
  std::vector<Stage> (*plan)(const Deliveries& deliveries);
};
std::span<const PolicyEntry> policy_registry();

std::vector<Stage> plan_standard(const Deliveries& deliveries);
std::vector<Stage> plan_dedup(const Deliveries& deliveries);
std::vector<Stage> plan_hierarchical(const Deliveries& deliveries);

}  // namespace coterie
