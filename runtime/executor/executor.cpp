#include "runtime/executor/executor.hpp"

namespace coterie {

RunLayers make_run_layers(const LayerShape& shape, const std::vector<LayerPlan>& plans,
                          std::uint32_t rank, const std::optional<DirectOptions>& direct) {
  RunLayers out;
  out.shape = shape;
  out.direct = direct;
  for (const LayerPlan& plan : plans) {
    out.plans.push_back(&plan);
    out.layouts.push_back(make_rank_layout(plan, rank));
  }
  return out;
}

}  // namespace coterie
