#include "core/clocks.hpp"

#include <algorithm>

namespace coterie {

std::vector<double> clock_leads(const std::vector<double>& notify_end_s) {
  std::vector<double> leads = notify_end_s;
  if (leads.empty()) return leads;
  const double first_s = *std::min_element(leads.begin(), leads.end());
  for (double& lead_s : leads) lead_s -= first_s;
  return leads;
}

void align_clocks(LayerReport& layer) {
  const auto notify =
      std::find_if(layer.phases.begin(), layer.phases.end(),
                   [](const PhaseTimes& times) { return times.phase == Phase::kNotify; });
  if (notify == layer.phases.end()) return;
  const std::vector<double> leads = clock_leads(notify->end_s);
  double end_s = 0.0;
  for (PhaseTimes& times : layer.phases) {
    for (std::size_t rank = 0; rank < leads.size(); ++rank) {
      times.begin_s[rank] -= leads[rank];
      times.end_s[rank] -= leads[rank];
      end_s = std::max(end_s, times.end_s[rank]);
    }
  }
  layer.time_s = end_s;
}

}  // namespace coterie
