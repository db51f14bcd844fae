// Intervals: their scales hold nine of ten left-out points and depend on size, and a layer's is made of
// those of its parts.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/random.hpp"
#include "sim/calibrate/uncertainty_scale.hpp"
#include "sim/experiment/uncertainty.hpp"

namespace coterie {
namespace {

// Small times are off by up to 40 percent, long ones by up to 4.
std::vector<LeftOutPoint> drawn_points(std::uint64_t seed, std::size_t count) {
  Random random(seed);
  std::vector<LeftOutPoint> points;
  for (std::size_t i = 0; i < count; ++i) {
    const double time_s = 1e-6 * std::pow(10.0, 3.0 * random.uniform());
    const double half = time_s < 30e-6 ? 0.4 : 0.04;
    points.push_back({time_s, half * (2.0 * random.uniform() - 1.0)});
  }
  return points;
}

double covered(const std::vector<UncertaintyStep>& scale, const std::vector<LeftOutPoint>& points) {
  double inside = 0.0;
  for (const LeftOutPoint& point : points) {
    const double off = std::abs(1.0 / (1.0 + point.error) - 1.0);
    if (off <= relative_at(scale, point.predicted_s, 0.0)) inside += 1.0;
  }
  return inside / static_cast<double>(points.size());
}

// Conformal scales of 96 points hold 90 percent of further ones in the mean over draws.
TEST(UncertaintyScale, HoldsNineOfTenFurtherPoints) {
  double sum = 0.0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const auto scale = uncertainty_scale(drawn_points(seed, 96));
    EXPECT_EQ(scale.size(), 4U);
    sum += covered(scale, drawn_points(100 + seed, 400));
  }
  EXPECT_GE(sum / 20.0, 0.88);
  EXPECT_LE(sum / 20.0, 0.95);
}

TEST(UncertaintyScale, DependsOnSize) {
  const auto scale = uncertainty_scale(drawn_points(3, 200));
  EXPECT_GT(relative_at(scale, 5e-6, 0.0), 0.25);
  EXPECT_LT(relative_at(scale, 500e-6, 0.0), 0.05);
  EXPECT_FALSE(scale.back().up_to);
}

// Ten points, errors 1 to 10 percent too high: rank ceil(0.9 * 11) = 10 is the largest, whose measured
// time is 1 / 1.1 of the predicted, 9.1 percent below. Rounded up to a tenth of a percent.
TEST(UncertaintyScale, IsAnOrderStatisticOfFewPoints) {
  std::vector<LeftOutPoint> points;
  for (int i = 1; i <= 10; ++i) points.push_back({1e-6 * i, 0.01 * i});
  const auto scale = uncertainty_scale(points);
  ASSERT_EQ(scale.size(), 1U);
  EXPECT_DOUBLE_EQ(scale[0].relative, 0.091);
  EXPECT_TRUE(uncertainty_scale({}).empty());
  // Twice as many with steps of ten: half of the points decide each.
  EXPECT_EQ(uncertainty_scale(drawn_points(1, 24)).size(), 2U);
}

// 20 us of dispatch and 10 us of combine within 20 percent, 4 and 2 us; 50 us of MLP within 5 and 10 us of
// waiting for another's are off together, 3 us; 10 us of pack within 10 percent, 1 us:
// sqrt(16 + 4 + 9 + 1) of 100 us.
TEST(LayerUncertainty, AddsUpMlpAndWaitAndSquaresOfAllElse) {
  Cluster cluster;
  cluster.uncertainty.scale_up = {{Seconds{50e-6}, 0.2}, {std::nullopt, 0.01}};
  cluster.uncertainty.mlp = {{std::nullopt, 0.05}};
  cluster.uncertainty.kernels = {{std::nullopt, 0.1}};
  LayerReport layer;
  layer.time_s = 100e-6;
  const auto phase = [&](Phase name, double begin_s, double end_s) {
    PhaseTimes times;
    times.phase = name;
    times.begin_s = {begin_s};
    times.end_s = {end_s};
    layer.phases.push_back(times);
  };
  phase(Phase::kPack, 0.0, 10e-6);
  phase(Phase::kDispatch, 10e-6, 30e-6);
  phase(Phase::kExpand, 30e-6, 30e-6);
  phase(Phase::kMlp, 30e-6, 80e-6);
  phase(Phase::kMerge, 80e-6, 80e-6);
  phase(Phase::kCombine, 90e-6, 100e-6);
  EXPECT_NEAR(layer_uncertainty(cluster, layer).value(), std::sqrt(30.0) / 100.0, 1e-9);
  // Without scales, or without phases, the one number of the cluster.
  cluster.relative_uncertainty = 0.3;
  EXPECT_DOUBLE_EQ(layer_uncertainty(cluster, LayerReport{}).value(), 0.3);
  cluster.uncertainty = {};
  EXPECT_DOUBLE_EQ(layer_uncertainty(cluster, layer).value(), 0.3);
  cluster.relative_uncertainty.reset();
  EXPECT_FALSE(layer_uncertainty(cluster, layer));
}

TEST(TrafficUncertainty, TakesTheScaleOfItsTier) {
  Cluster cluster;
  cluster.relative_uncertainty = 0.3;
  cluster.uncertainty.scale_up = {{Seconds{50e-6}, 0.2}, {std::nullopt, 0.01}};
  EXPECT_DOUBLE_EQ(traffic_uncertainty(cluster, 50e-6, false).value(), 0.2);
  EXPECT_DOUBLE_EQ(traffic_uncertainty(cluster, 51e-6, false).value(), 0.01);
  EXPECT_DOUBLE_EQ(traffic_uncertainty(cluster, 51e-6, true).value(), 0.3);
}

}  // namespace
}  // namespace coterie
