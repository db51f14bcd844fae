#include "core/report.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "core/error.hpp"
#include "core/file.hpp"
#include "tests/message_of.hpp"

namespace coterie {
namespace {

RunReport example() {
  RunReport report;
  report.kind = "predicted";
  report.engine = "flow";
  report.name = "dedup";
  report.policy = "dedup";
  report.placement = "contiguous";
  report.num_ranks = 2;
  LayerReport layer;
  layer.layer = 3;
  layer.time_s = 0.5;
  layer.phases.push_back({Phase::kDispatch, {0.0, 0.1}, {0.2, 0.4}, {}});
  layer.groups.push_back({Phase::kDispatch, "scale_up", 2, 10, 4096, 2048, 2048, 0.0, 0.4});
  layer.busiest_link = LinkLoad{"gpu 0 out", "scale_up", 2048, 0.5};
  report.layers = {layer, layer};
  report.provenance["version"] = "0";
  return report;
}

TEST(Report, SumsOverLayersOnTheSlowestRank) {
  const RunReport report = example();
  EXPECT_DOUBLE_EQ(report.time_s(), 1.0);
  // rank 1 takes 0.3 s, rank 0 0.2 s; two layers.
  EXPECT_DOUBLE_EQ(report.phase_slowest_s(Phase::kDispatch), 0.6);
  EXPECT_DOUBLE_EQ(report.phase_slowest_s(Phase::kMlp), 0.0);
  EXPECT_EQ(report.tier_bytes("scale_up"), 8192);
}

TEST(Report, RoundTripsThroughJson) {
  const auto document = to_json(example());
  EXPECT_EQ(to_json(report_from_json(document, "x.json")), document);
}

// What a child process hands over is what it had, bit by bit.
TEST(Report, LayersPassBetweenProcesses) {
  LayerReport layer = example().layers.front();
  layer.time_s = 0.1 + 0.2;
  layer.combine_ready_s = {1.0 / 3.0, 5e-324};
  const Timeline timeline{{{"ranks", "rank 0", "dispatch", 1e-6, 1.0 / 3.0}},
                          {{"links", "nic 0", 2e-6, 5.0, "GB/s"}}};
  const auto [back, spans] = unpack_layer(pack_layer(layer, timeline));
  EXPECT_EQ(back.time_s, layer.time_s);
  EXPECT_EQ(back.combine_ready_s, layer.combine_ready_s);
  EXPECT_EQ(back.groups.size(), 1U);
  EXPECT_EQ(back.groups[0].end_s, layer.groups[0].end_s);
  ASSERT_EQ(spans.spans.size(), 1U);
  EXPECT_EQ(spans.spans[0].end_s, 1.0 / 3.0);
  ASSERT_EQ(spans.samples.size(), 1U);
  EXPECT_EQ(spans.samples[0].unit, "GB/s");
}

TEST(Report, RefusesForeignDocuments) {
  auto document = to_json(example());
  document["schema_version"] = 2;
  EXPECT_THROW(report_from_json(document, "x.json"), InputError);
  document = to_json(example());
  document["layers"][0]["phases"][0]["phase"] = "lunch";
  try {
    report_from_json(document, "x.json");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "x.json: found unknown phase \"lunch\", expected a run report of "
                 "schema_version 1");
  }
}

TEST(Report, SaysWhatIsWrongWithADocument) {
  const auto refusal = [](const auto& change) {
    auto document = to_json(example());
    change(document);
    return message_of([&] { (void)report_from_json(document, "x.json"); });
  };
  const std::string expected = ", expected a run report of schema_version 1";
  EXPECT_EQ(refusal([](auto& report) { report.erase("layers"); }),
            "x.json: found no key \"layers\"" + expected);
  EXPECT_EQ(refusal([](auto& report) { report["layers"][0]["time_s"] = "fast"; }),
            "x.json: found string in place of number" + expected);
  EXPECT_EQ(refusal([](auto& report) { report["layers"][0] = 3; }),
            "x.json: found number in place of object" + expected);
  EXPECT_EQ(refusal([](auto& report) { report["layers"][1]["time_s"] = -0.5; }),
            "x.json: found time_s -0.5" + expected);
}

TEST(Report, TimelineIsTraceEventJson) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("coterie_timeline_" + std::to_string(::getpid()) + ".json");
  write_timeline(path, {{{"ranks", "rank 0", "dispatch", 1e-6, 3e-6}},
                        {{"links", "nic 0", 2e-6, 5.0, "GB/s"}}});
  const auto document = nlohmann::json::parse(read_file(path));
  std::filesystem::remove(path);
  const auto& events = document.at("traceEvents");
  // Names of two processes and of one track (with its sort index), one span, one counter sample.
  ASSERT_EQ(events.size(), 6U);
  EXPECT_EQ(events[3]["ph"], "X");
  EXPECT_DOUBLE_EQ(events[3]["dur"].get<double>(), 2.0);  // microseconds
  EXPECT_EQ(events[5]["ph"], "C");
}

}  // namespace
}  // namespace coterie
