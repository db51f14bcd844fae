#pragma once
// Plan files: the layers of one run with the sizes of their rows. workloads/PLANS.md describes the
// format; plan.proto has its records.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "workloads/plan/payload.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie {

struct DispatchPlan {
  std::string model;
  std::uint32_t hidden = 0;
  PayloadType dispatch_payload = PayloadType::kBf16;
  PayloadType combine_payload = PayloadType::kBf16;
  std::vector<LayerPlan> layers;
  [[nodiscard]] PayloadSizes sizes() const {
    return {row_payload(dispatch_payload, hidden), row_payload(combine_payload, hidden)};
  }
};
void write_plan(const std::filesystem::path& path, const DispatchPlan& plan);
// Throws InputError for damage and for ids beyond the arrays they point into; whether the plan is
// sound is the checker's business (check.hpp).
DispatchPlan read_plan(const std::filesystem::path& path);

}  // namespace coterie
