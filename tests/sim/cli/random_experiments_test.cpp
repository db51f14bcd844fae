// Random experiments on random clusters through all engines, as users run them. What must hold:
//   - exact `flow` and exact `simgrid` compute the same model: the same layer times, but for the
//     rounding that decides between two operations due at the same moment;
//   - no engine stays below `bound`;
//   - flow at its default precision is within a few percent (README of sim/engines).
// Speeds are those of machines: where links take 1e9 times as long as the shortest kernel, SimGrid no
// longer tells moments apart that flow does (the same README).

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/random.hpp"
#include "tests/sim/cli/program.hpp"
#include "tests/workloads/trace/sample.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

template <class T>
const T& one_of(Random& random, const std::vector<T>& items) {
  return items[random.index(items.size())];
}

// Log-uniform: from `low` to `high`, with digits that no two quantities share.
double between(Random& random, double low, double high) {
  return low * std::pow(high / low, random.uniform());
}

struct Shape {
  std::uint64_t num_nodes, gpus_per_node;
};

std::string topology(Random& random, const Shape& shape) {
  const auto flight = [&] { return one_of<std::string>(random, {"1", "2", "8", "unlimited"}); };
  const auto cap = [&] {
    return random.index(2) == 0
               ? std::string()
               : fmt::format(", rank_bandwidth: {} B/s", between(random, 1e9, 5e11));
  };
  std::string text = fmt::format(
      "{{schema_version: 1, name: t, nodes: {}, gpus_per_node: {}, gpu: {{name: x, bf16_peak: 100 "
      "TFLOP/s, memory_bandwidth: 1 TB/s, num_sms: 10, kernel_launch: {} s}}, overheads: {{notify: "
      "{} s}}",
      shape.num_nodes, shape.gpus_per_node, between(random, 1e-6, 1e-5),
      between(random, 1e-6, 1e-5));
  if (shape.gpus_per_node > 1) {
    text += fmt::format(
        ", scale_up: {{kind: {}, bandwidth: {} B/s, latency: {} s, injection: {{sends_in_flight: "
        "{}{}}}}}",
        one_of<std::string>(random, {"nvlink", "socket"}), between(random, 1e9, 1e12),
        between(random, 1e-7, 1e-5), flight(), cap());
  }
  if (shape.num_nodes > 1) {
    const std::vector<std::string> fabrics{
        "{kind: rail_only}", "{kind: fat_tree, hop_latency: 1 us, k: auto, oversubscription: 1}",
        fmt::format("{{kind: dragonfly, hop_latency: 0 s, num_groups: auto, routers_per_group: 4, "
                    "ports_per_router: 8, global_links_per_router: 1, local_bandwidth: {} B/s, "
                    "global_bandwidth: {} B/s}}",
                    between(random, 1e9, 1e11), between(random, 1e9, 1e11))};
    // Rails alone need a scale-up link to leave them by.
    const std::size_t first = shape.gpus_per_node > 1 ? 0 : 1;
    text += fmt::format(
        ", nic: {{per_gpu: 1, bandwidth: {} B/s, latency: {} s, injection: {{sends_in_flight: "
        "{}{}}}}}"
        ", fabric: {}",
        between(random, 1e9, 1e11), between(random, 1e-7, 1e-5), flight(), cap(),
        fabrics[first + random.index(fabrics.size() - first)]);
  }
  return text + "}\n";
}

std::string experiment(Random& random, const Shape& shape) {
  std::string text = fmt::format(
      "schema_version: 1\nname: e\ntopology: topo.yaml\nmodel: model.yaml\n"
      "trace: {{file: t.moet, train: even, eval: odd}}\nranks: {}\ntokens_per_rank: {}\n"
      "payload: {{dispatch: {}, combine: bf16}}\n",
      shape.num_nodes * shape.gpus_per_node, 8 + random.index(25),
      one_of<std::string>(random, {"bf16", "fp8"}));
  if (random.index(2) == 0) text += fmt::format("chunk: {} B\n", 300 + random.index(4000));
  return text + fmt::format("runs:\n  - {{name: a, placement: {}, dispatch: {}}}\n",
                            one_of<std::string>(
                                random, {"contiguous", "random", "load_balanced", "collaboration"}),
                            one_of<std::string>(random, {"standard", "dedup", "hierarchical"}));
}

constexpr const char* kModel =
    "schema_version: 1\nname: small\ndescription: test\nnum_layers: 3\n"
    "moe_layers: {first: 1, step: 1}\nhidden: 128\nexpert_intermediate: 32\nnum_experts: 16\n"
    "num_topk: 4\nnum_shared_experts: 0\nrouting: test\n";

class RandomExperiment : public testing::ProgramTest,
                         public ::testing::WithParamInterface<std::uint64_t> {
 protected:
  // Layer times of the one run.
  [[nodiscard]] std::vector<double> times(const std::string& engine) const {
    const auto document =
        json_of("simulate e.yaml -o " + engine.substr(0, engine.find(' ')) + " --engine " + engine);
    std::vector<double> seconds;
    if (!document.contains("runs")) return seconds;
    for (const auto& layer : document.at("runs").at(0).at("layers")) {
      seconds.push_back(layer.at("time_s").get<double>());
    }
    return seconds;
  }
};

TEST_P(RandomExperiment, TakesTheSameTimeInAllEngines) {
  Random random(GetParam());
  const Shape shape{1 + random.index(3), std::uint64_t{1} << (1 + random.index(2))};
  put("topo.yaml", topology(random, shape));
  put("e.yaml", experiment(random, shape));
  put("model.yaml", kModel);
  write_moet(
      folder_ / "work/t.moet",
      testing::random_routing(16, 4, {1, 2}, std::vector<std::uint64_t>(12, 20), true, GetParam()));
  const std::string described = text("topo.yaml") + text("e.yaml");
  const std::vector<double> simgrid = times("simgrid --precision 0");
  const std::vector<double> exact = times("flow --precision 0");
  const std::vector<double> coarse = times("flow");
  const std::vector<double> bound = times("bound");
  ASSERT_EQ(simgrid.size(), 2U) << described;
  ASSERT_EQ(exact.size(), 2U) << described;
  ASSERT_EQ(coarse.size(), 2U) << described;
  ASSERT_EQ(bound.size(), 2U) << described;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NEAR(exact[i] / simgrid[i], 1.0, 1e-4) << described;
    EXPECT_NEAR(coarse[i] / exact[i], 1.0, 0.05) << described;
    EXPECT_LE(bound[i], exact[i] * (1.0 + 1e-9)) << described;
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, RandomExperiment, ::testing::Range<std::uint64_t>(0, 32));

}  // namespace
}  // namespace coterie
