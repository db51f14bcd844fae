// The flow engine against SimGrid at its exact setting, on the cases of flow_cases.hpp. SimGrid
// runs in a child process per case (run_simgrid). The limits are those the engine promises:
// makespan within 1 percent and every rank's finish within 2 percent at the default precision; at
// precision 0 both compute the same model, so a thousandth is already much.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "sim/engines/engine.hpp"
#include "tests/sim/engines/flow_cases.hpp"

namespace coterie {
namespace {

using testing::compare;
using testing::Difference;
using testing::flow_cases;
using testing::FlowCase;

class FlowAgreement : public ::testing::TestWithParam<FlowCase> {};

TEST_P(FlowAgreement, WithExactSimgrid) {
  const FlowCase& item = GetParam();
  const Network network = testing::make_network(item);
  const std::optional<Program> program = testing::make_program(item, network, COTERIE_DATA);
  if (!program) GTEST_SKIP() << "the recorded trace is not there";
  const ResolvedProgram resolved = resolve(*program, network);
  EngineOptions exact;
  exact.relative_precision = 0.0;
  const Execution reference = run_simgrid(resolved, exact);
  const double bound_s = resolved.bound.makespan_s;

  const Execution coarse = run_flow(resolved, {});
  const Difference with_default = compare(*program, coarse, reference, item.num_ranks);
  const Execution fine = run_flow(resolved, exact);
  const Difference with_exact = compare(*program, fine, reference, item.num_ranks);
  fmt::print(
      "{}: {} transfers and computations, makespan {:.3f} us; default {:+.4f}% rank "
      "{:.4f}%, exact {:+.5f}% rank {:.5f}%\n",
      item.name(), program->num_ops(), reference.makespan_s * 1e6, 100 * with_default.makespan,
      100 * with_default.rank, 100 * with_exact.makespan, 100 * with_exact.rank);
  EXPECT_LT(std::abs(with_default.makespan), 0.01);
  EXPECT_LT(with_default.rank, 0.02);
  EXPECT_LT(std::abs(with_exact.makespan), 0.001);
  EXPECT_LT(with_exact.rank, 0.001);
  EXPECT_GE(coarse.makespan_s, bound_s * (1.0 - 1e-9));
  EXPECT_GE(fine.makespan_s, bound_s * (1.0 - 1e-9));
}

std::string test_name(const ::testing::TestParamInfo<FlowCase>& info) {
  std::string name = fmt::format("{:02}_{}", info.index, info.param.name());
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}
INSTANTIATE_TEST_SUITE_P(Cases, FlowAgreement, ::testing::ValuesIn(flow_cases()), test_name);

TEST(FlowAgreementCases, AreAtLeastForty) {
  EXPECT_GE(flow_cases().size(), 40U);
}

}  // namespace
}  // namespace coterie
