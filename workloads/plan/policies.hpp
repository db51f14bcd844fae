#pragma once
// The registry of dispatch policies: one file in policies/ and one line in policies.cpp each
// (workloads/PLANS.md gives the recipe).

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
  std::uint32_t num_rounds = 1;
  PlanDetail detail = PlanDetail::kRows;
  // [num_ranks * num_rounds + 1] the tokens of each rank's part for each round: part p belongs to
  // rank p / num_rounds and round p % num_rounds.
  std::span<const std::uint64_t> part_begin;
  std::span<const std::uint32_t> serving;  // [num_tokens][num_topk] ranks
};

struct PolicyEntry {
  DispatchPolicy policy;
  std::string_view name;
  // The stages, all but their answer_order.
  std::vector<Stage> (*plan)(const Deliveries& deliveries);
  // Policies of several hops: how many rounds a layer travels in; null: one. The plan has its
  // tokens and sizes by then.
  std::uint32_t (*num_rounds)(const LayerPlan& plan, const PlanRequest& request) = nullptr;
};
std::span<const PolicyEntry> policy_registry();

std::vector<Stage> plan_standard(const Deliveries& deliveries);
std::vector<Stage> plan_dedup(const Deliveries& deliveries);
std::vector<Stage> plan_hierarchical(const Deliveries& deliveries);
std::uint32_t hierarchical_rounds(const LayerPlan& plan, const PlanRequest& request);

}  // namespace coterie
