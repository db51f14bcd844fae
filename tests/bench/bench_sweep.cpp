// Points of a sweep in workers that live on and remember what points have in common, against the
// baseline: a process for every point, which remembers nothing. Both compute the same rows, which is
// checked. Two sweeps over the bandwidth of NVLink: `law` (recorded routing, 8 ranks, 26 layers, three
// runs) and `tiny` (uniform routing of 256 tokens in one layer, one run). Times are CPU seconds of the
// workers, loading the experiments included; the journal and the start of the program are not.
//
//   build/release/bin/bench_sweep [REPETITIONS]

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/child_process.hpp"
#include "core/file.hpp"
#include "core/memo.hpp"
#include "core/statistics.hpp"
#include "core/table.hpp"
#include "core/worker_pool.hpp"
#include "sim/experiment/simulate.hpp"
#include "sim/sweep/rows.hpp"
#include "tests/workloads/placement/routings.hpp"
#include "workloads/trace/importer.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

constexpr const char* kExperiment = R"(schema_version: 1
topology: h100_node
model: deepseek_v2_lite
trace: {file: NAME.moet, train: even, eval: odd}
ranks: 8
payload: {dispatch: fp8, combine: bf16}
engine: flow
TOKENS
runs:
  - {name: dedup,         placement: contiguous,    dispatch: dedup}
)";
constexpr const char* kMoreRuns =
    R"(  - {name: standard,      placement: contiguous,    dispatch: standard}
  - {name: collaboration, placement: collaboration, dispatch: dedup}
)";

double child_cpu_s() {
  rusage usage{};
  getrusage(RUSAGE_CHILDREN, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

std::string evaluate(const fs::path& base, std::size_t point, Memo* memo) {
  const std::vector<Override> settings{
      {"topology.scale_up.bandwidth", fmt::format("{} GB/s", 200 + point)}};
  const Experiment experiment =
      load_experiment(base, settings, memo ? EffectiveYaml::kLeaveOut : EffectiveYaml::kMake);
  SimulateOptions options;
  options.cache = base.parent_path() / "cache";
  options.memo = memo;
  options.timelines = false;
  return sweep_rows(experiment, simulate(experiment, options)).dump();
}

void measure(const fs::path& base, std::size_t num_points, int repetitions, Table& table) {
  std::vector<double> before, now, ratios;
  for (int i = 0; i <= repetitions; ++i) {
    std::vector<std::string> expected(num_points), found(num_points);
    double start = child_cpu_s();
    ChildWork children;
    children.name = [](std::size_t point) { return std::to_string(point); };
    children.body = [&](std::size_t point) { return evaluate(base, point, nullptr); };
    children.done = [&](std::size_t point, ChildProcess& child) {
      expected[point] = child.result();
    };
    run_in_children(1, num_points, 0.0, children);
    const double before_s = child_cpu_s() - start;

    start = child_cpu_s();
    Memo memo(std::size_t{256} << 20U);
    PoolWork pool;
    pool.name = children.name;
    pool.body = [&](std::size_t point) { return evaluate(base, point, &memo); };
    pool.done = [&](std::size_t point, WorkResult result) { found[point] = result.take(); };
    run_in_workers(1, num_points, 0.0, pool);
    const double now_s = child_cpu_s() - start;
    if (expected != found) throw Error(ExitCode::kCheckFailed, "the rows differ");
    if (i == 0) continue;  // learns the placements, which a sweep keeps on disk
    before.push_back(static_cast<double>(num_points) / before_s);
    now.push_back(static_cast<double>(num_points) / now_s);
    ratios.push_back(before_s / now_s);
  }
  const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
  table.rows.push_back({base.stem().string(), std::to_string(num_points),
                        fmt::format("{:.1f}", median(before)), fmt::format("{:.1f}", median(now)),
                        fmt::format("{:.1f}x ({:.1f} to {:.1f})", median(ratios), *least, *most)});
}

void compare(int repetitions) {
  const fs::path folder =
      fs::temp_directory_path() / fmt::format("coterie_bench_sweep_{}", ::getpid());
  make_folder(folder / "cache");
  const auto write_experiment = [&](const std::string& name, const std::string& tokens, bool all) {
    std::string text = kExperiment;
    text.replace(text.find("NAME"), 4, name);
    text.replace(text.find("TOKENS"), 6, tokens);
    write_file(folder / (name + ".yaml"), text + (all ? kMoreRuns : ""));
  };
  Table table{{"sweep", "points", "a process each: points/s", "workers: points/s", "ratio"}, {}};
  write_moet(folder / "tiny.moet", testing::uniform_routing({64, 6, 256, 16, 1}, 1));
  write_experiment("tiny", "", false);
  measure(folder / "tiny.yaml", 400, repetitions, table);
  const fs::path law = fs::path(COTERIE_DATA) / "traces/deepseek-v2-lite-esft/law.npz";
  if (fs::exists(law)) {
    const std::vector<fs::path> inputs{law};
    write_moet(folder / "law.moet", import_traces(inputs, "npz", {}).trace);
    write_experiment("law", "tokens_per_rank: 4096", true);
    measure(folder / "law.yaml", 64, repetitions, table);
  } else {
    fmt::print("no recorded routing beside the checkout: `tiny` only\n");
  }
  fs::remove_all(folder);
  fmt::print("median of {} runs (least to most), CPU time\n\n{}", repetitions, render(table));
}

}  // namespace
}  // namespace coterie

int main(int argc, char** argv) {
  coterie::compare(argc > 1 ? std::max(1, std::atoi(argv[1])) : 5);
}
