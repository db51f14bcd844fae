#include "topologies/transports.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "core/error.hpp"
#include "tests/message_of.hpp"
#include "topologies/cluster.hpp"

namespace coterie {
namespace {

std::vector<std::string> names_of(const Cluster& cluster) {
  std::vector<std::string> names;
  for (const auto& parameters : cluster.transports) names.emplace_back(transport_name(parameters));
  return names;
}
const NcclParameters& nccl_of(const Cluster& cluster) {
  return std::get<NcclParameters>(cluster.transports.at(0));
}
using TransportNames = std::vector<std::string>;

// h100_rail_optimised adds the network's costs to those of h100_node, which it extends.
TEST(Transports, LayersAddTiersAndReplaceKeys) {
  const Cluster rail = load_cluster("h100_rail_optimised");
  EXPECT_DOUBLE_EQ(nccl_of(rail).scale_up.value().segments.at(0).alpha.value, 3e-6);
  EXPECT_DOUBLE_EQ(nccl_of(rail).network.value().segments.at(0).alpha.value, 8e-6);
  const Cluster other = load_cluster(
      "{extends: h100_node, transports: {nccl: {scale_up: {segments: [{alpha: 1 us}]}}}}");
  ASSERT_EQ(nccl_of(other).scale_up.value().segments.size(), 1U);
  EXPECT_DOUBLE_EQ(nccl_of(other).scale_up.value().segments[0].alpha.value, 1e-6);
  // One key of a tier; the others stay: h200_node_calibrated has two segments and two starts.
  const Cluster kept =
      load_cluster("h200_node_calibrated", {{"transports.nccl.scale_up.start", "none"}});
  EXPECT_EQ(nccl_of(kept).scale_up.value().segments.size(), 2U);
  EXPECT_TRUE(nccl_of(kept).scale_up.value().start.empty());
}

// The topmost layer's come first, in its order; the base's follow; `none` takes one away.
TEST(Transports, TheOrderIsThatOfTheTopmostLayer) {
  EXPECT_EQ(names_of(load_cluster("h100_node")), TransportNames{"nccl"});
  EXPECT_EQ(names_of(load_cluster("star")), TransportNames{});
  EXPECT_EQ(names_of(load_cluster("{extends: h100_node, transports: {ideal: {}}}")),
            (TransportNames{"ideal", "nccl"}));
  EXPECT_EQ(names_of(load_cluster("{extends: h100_node, transports: {nccl: none}}")),
            TransportNames{});
  EXPECT_EQ(names_of(load_cluster("{extends: h100_node, transports: none}")), TransportNames{});
}

TEST(Transports, TheFirstIsTheDefault) {
  EXPECT_EQ(transport_name(chosen_transport(load_cluster("h100_node"), {})), "nccl");
  EXPECT_EQ(transport_name(chosen_transport(load_cluster("star"), {})), "ideal");
  EXPECT_EQ(transport_name(chosen_transport(load_cluster("h100_node"), {"ideal", {}})), "ideal");
}

TEST(Transports, SettingsReplaceParameters) {
  const auto chosen = chosen_transport(load_cluster("h100_rail_optimised"),
                                       {"nccl", {{"network.segments", "[{alpha: 5 us}]"}}});
  const auto& nccl = std::get<NcclParameters>(chosen);
  ASSERT_EQ(nccl.network.value().segments.size(), 1U);
  EXPECT_DOUBLE_EQ(nccl.network.value().segments[0].alpha.value, 5e-6);
  EXPECT_EQ(nccl.scale_up.value().segments.size(), 2U);
}

TEST(Transports, BadChoicesGetOneSentence) {
  const Cluster star = load_cluster("star");
  EXPECT_NE(message_of([&] {
              (void)chosen_transport(star, {"ncl", {}});
            }).find("transport: found \"ncl\", expected one of ideal, nccl"),
            std::string::npos);
  EXPECT_EQ(message_of([&] {
              (void)chosen_transport(star, {"nccl", {}});
            }),
            "transport: found \"nccl\", which topology star has no parameters for, expected one of "
            "ideal, or a topology that describes it under \"transports\"");
  EXPECT_NE(message_of([&] {
              (void)chosen_transport(star, {{}, {{"sms", "24"}}});
            }).find("found unknown key \"sms\", expected no keys here"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              (void)chosen_transport(load_cluster("h100_node"),
                                     {{}, {{"scale_up.segments", "[{alpha: 5}]"}}});
            }).find("--set transport.scale_up.segments.0.alpha: found \"5\", expected a time with"),
            std::string::npos);
}

}  // namespace
}  // namespace coterie
