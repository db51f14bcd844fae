// Plans of recorded routing against the reference figures of the data set's README.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "workloads/plan/check.hpp"
#include "workloads/trace/importer.hpp"

namespace coterie::testing {
namespace {

// Contiguous placement of law.npz, odd sequences, mean over the layers: 3.357, 4.555 and 5.314
// distinct ranks at 4, 8 and 16 ranks. A dedup plan has that many rows per token.
TEST(RealTrace, DedupRowsAreTheReferenceFanOut) {
  const std::filesystem::path file =
      std::filesystem::path(COTERIE_DATA) / "traces/deepseek-v2-lite-esft/law.npz";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << file << " is not here";
  const Imported imported = import_traces(std::vector{file}, "npz", {});
  const Routing routing = select(std::get<Routing>(imported.trace), SequencePart::kOdd);
  const std::pair<std::uint32_t, double> expected[] = {{4, 3.357}, {8, 4.555}, {16, 5.314}};
  for (const auto& [num_ranks, fan_out] : expected) {
    PlacementRequest request;
    request.strategy = "contiguous";
    request.num_ranks = num_ranks;
    const Placement placement = make_placement(routing, request);
    const RankTokens tokens =
        deal_tokens(routing, num_ranks, std::nullopt, SequenceDeal::kRoundRobin);
    double rows = 0.0;
    for (std::size_t layer = 0; layer < routing.num_layers(); ++layer) {
      const LayerPlan plan = make_plan(routing, layer, placement.layers[layer], tokens,
                                       {DispatchPolicy::kDedup, num_ranks / 2, PlanDetail::kRows});
      const PlanCheck check = check_plan(plan, {Bytes{2112}, Bytes{4096}});
      EXPECT_THAT(check.violations, ::testing::ElementsAre());
      rows += static_cast<double>(check.totals.num_rows);
    }
    const double tokens_and_layers =
        static_cast<double>(routing.num_tokens()) * static_cast<double>(routing.num_layers());
    EXPECT_NEAR(rows / tokens_and_layers, fan_out, 0.0006) << num_ranks << " ranks";
  }
}

}  // namespace
}  // namespace coterie::testing
