// Results files: what is written is read back, and the table has one line per run and layer.

#include "core/results.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.hpp"

namespace coterie {
namespace {

Results example() {
  RunReport run;
  run.kind = "measured";
  run.engine = "nccl";
  run.name = "a, \"quoted\" run";
  run.policy = "dedup";
  run.placement = "contiguous";
  run.topology = "star";
  run.model = "tiny";
  run.num_ranks = 2;
  run.dispatch_payload = run.combine_payload = "bf16";
  LayerReport layer;
  layer.layer = 3;
  layer.time_s = 0.5;
  layer.phases.push_back({Phase::kDispatch, {0.0, 0.1}, {0.25, 0.3}, {0.2, 0.25}});
  TransferGroup group;
  group.tier = "network";
  group.bytes = 42;
  layer.groups = {group, group};
  run.layers = {layer, layer};
  run.exact = false;
  run.weight_lost = 0.25;
  run.top1_changed = 0.0;
  return {"example", {run}};
}

TEST(Results, RoundTrip) {
  const Results original = example();
  const Results read = results_from_json(to_json(original), "here");
  EXPECT_EQ(to_json(read), to_json(original));
}

TEST(Results, OtherDocumentsAreRefused) {
  EXPECT_THROW((void)results_from_json({{"schema_version", 2}}, "here"), InputError);
  EXPECT_THROW((void)results_from_json(nlohmann::json::array(), "here"), InputError);
}

// Expected by hand: a header and two layers; the slowest dispatch is max(0.25 - 0, 0.3 - 0.1); the
// two groups of 42 bytes add up.
TEST(Results, CsvHasOneLinePerRunAndLayer) {
  const std::string csv = to_csv(example().runs);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 3);
  EXPECT_NE(csv.find("\n\"a, \"\"quoted\"\" run\",nccl,dedup"), std::string::npos) << csv;
  EXPECT_NE(csv.find(",3,0.5,0,,,0,0,0.25,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,84,0,,,0.25,0\n"),
            std::string::npos)
      << csv;
}

}  // namespace
}  // namespace coterie
