// How good placements are, and how fast they are counted and learnt.
//
//   bench_place [--traces DIR] [--ranks 4,8,16,32,64] [--layers N] [--python PYTHON]
//               [--only TEXT] [--no-times] [--speed]
//
// A table per trace and number of ranks: every strategy, and the partitioners Mt-KaHyPar and METIS
// where PYTHON (default python3) has the packages mtkahypar and pymetis (partition_peers.py runs
// them), on the recorded traces below DIR (default: the developer's data, see README.md), of which N
// layers (default 6) spread over the model are taken. Learnt on even sequences, measured on odd ones,
// means over layers. `load_balanced` is EPLB's algorithm. `train` and `eval` are fan-out, distinct
// ranks per token, on the two parts, `load` that of the fullest rank over the mean on the evaluated
// one. `from optimal` is what separates the training part's fan-out from its lower bound
// (fan_out_bound.hpp), with as many slots and no cap. Seconds are those of learning all the layers on
// two threads.
//
// `rails ms` and `NVL72 ms` are the mean layer's time on the evaluated part as the flow engine
// predicts it on h100_rail_8x8 and gb200_nvl72: dedup over NCCL, 4,096 tokens per rank, FP8 dispatch,
// BF16 combine. `time_aware` is learnt for each of the two. --no-times leaves all of that out. --only
// takes the traces whose name has this text.
//
// --speed, instead: counting, fan_out against the same counts by one std::set per token, on one
// core; an entry is one (token, layer, expert). Learning: seconds per layer of every strategy.
// Medians of several runs.

#include <fmt/format.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <sstream>
#include <tuple>

#include "core/error.hpp"
#include "core/statistics.hpp"
#include "core/table.hpp"
#include "sim/experiment/layer_times.hpp"
#include "tests/bench/recorded.hpp"
#include "tests/workloads/placement/routings.hpp"
#include "workloads/placement/distance.hpp"
#include "workloads/plan/fan_out.hpp"

namespace coterie {
namespace {

double median_seconds(int runs, const std::function<void()>& body) {
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return median(std::move(seconds));
}

// The baseline: distinct ranks and nodes of every token with sets.
double naive_fan_out(const Routing& routing, const ExpertHosts& hosts,
                     std::uint32_t ranks_per_node) {
  std::uint64_t ranks_hit = 0;
  std::uint64_t nodes_hit = 0;
  const auto experts = routing.layer_experts(0);
  for (std::size_t begin = 0; begin < experts.size(); begin += routing.num_topk) {
    std::set<std::uint32_t> ranks;
    std::set<std::uint32_t> nodes;
    for (std::uint32_t j = 0; j < routing.num_topk; ++j) {
      const std::uint32_t rank = hosts.ranks[experts[begin + j]];
      ranks.insert(rank);
      nodes.insert(rank / ranks_per_node);
    }
    ranks_hit += ranks.size();
    nodes_hit += nodes.size();
  }
  return static_cast<double>(ranks_hit + nodes_hit) / static_cast<double>(routing.num_tokens());
}

struct Shape {
  std::uint32_t num_experts, num_topk, num_ranks;
};

void bench_counting() {
  Table table{{"experts / top-k / ranks", "entries/s", "sets: entries/s", "ratio"}, {}};
  for (const Shape& shape :
       {Shape{64, 6, 8}, Shape{256, 8, 64}, Shape{256, 8, 256}, Shape{1024, 8, 1024}}) {
    const Routing routing =
        testing::uniform_routing({shape.num_experts, shape.num_topk, 500'000, 256, 1}, 1);
    PlacementRequest request;
    request.strategy = "contiguous";
    request.num_ranks = shape.num_ranks;
    const LayerPlacement layer = make_placement(routing, request).layers[0];
    const ExpertHosts hosts = expert_hosts(layer, shape.num_experts);
    const RankTokens tokens =
        deal_tokens(routing, shape.num_ranks, std::nullopt, SequenceDeal::kRoundRobin);
    const auto entries = static_cast<double>(routing.experts.size());
    double checksum = 0.0;
    const double fast =
        median_seconds(7, [&] { checksum += fan_out(routing, 0, layer, 8, tokens).fanout_ranks; });
    const double naive = median_seconds(3, [&] { checksum += naive_fan_out(routing, hosts, 8); });
    table.rows.push_back({fmt::format("{} / {} / {}{}", shape.num_experts, shape.num_topk,
                                      shape.num_ranks, checksum > 0.0 ? "" : " (empty)"),
                          fmt::format("{:.0f} M", entries / fast * 1e-6),
                          fmt::format("{:.1f} M", entries / naive * 1e-6),
                          fmt::format("{:.1f}x", naive / fast)});
  }
  fmt::print("fan_out, one core, against one std::set per token\n\n{}\n", render(table));
}

void bench_learning() {
  Table table{{"strategy", "64 experts, 8 ranks: s/layer", "256 experts, 64 ranks: s/layer",
               "fan-out over contiguous"},
              {}};
  const Routing small = testing::planted_routing({64, 6, 16'384, 64, 1}, 8, 0.6, 2);
  const Routing large = testing::planted_routing({256, 8, 16'384, 64, 1}, 32, 0.6, 2);
  const auto tokens = deal_tokens(large, 64, std::nullopt, SequenceDeal::kRoundRobin);
  double contiguous = 0.0;
  for (const std::string& strategy : placement_strategies()) {
    if (strategy_needs_times(strategy)) continue;  // bench_time_aware
    PlacementRequest request;
    request.strategy = strategy;
    request.ranks_per_node = 8;
    request.num_ranks = 8;
    const double small_s = median_seconds(3, [&] { make_placement(small, request); });
    request.num_ranks = 64;
    Placement placement;
    const double large_s = median_seconds(3, [&] { placement = make_placement(large, request); });
    const double counted = fan_out(large, 0, placement.layers[0], 8, tokens).fanout_ranks;
    if (strategy == "contiguous") contiguous = counted;
    table.rows.push_back({strategy, fmt::format("{:.4f}", small_s), fmt::format("{:.4f}", large_s),
                          fmt::format("{:.3f}", counted / contiguous)});
  }
  fmt::print("Learning one layer from 16,384 tokens of planted groups, one core\n\n{}",
             render(table));
}

struct Options {
  std::filesystem::path traces = std::filesystem::path(COTERIE_DATA) / "traces";
  std::vector<std::uint32_t> ranks = {4, 8, 16, 32, 64};
  std::size_t num_layers = 6;
  std::string python = "python3";
  std::string only;  // traces whose name has this text
  bool times = true;
  bool speed = false;
};

struct Measured {
  std::vector<double> fan_out;  // [layers]
  double mean_fan_out = 0.0;
  double mean_load = 0.0;
};

Measured measure(const Routing& routing, const Placement& placement) {
  const RankTokens tokens =
      deal_tokens(routing, placement.num_ranks, std::nullopt, SequenceDeal::kRoundRobin);
  Measured result;
  const auto num_layers = static_cast<double>(routing.num_layers());
  for (std::size_t i = 0; i < routing.num_layers(); ++i) {
    const FanOut counts = fan_out(routing, i, placement.layers[i], placement.ranks_per_node, tokens,
                                  placement.replica_choice);
    result.fan_out.push_back(counts.fanout_ranks);
    result.mean_fan_out += counts.fanout_ranks / num_layers;
    result.mean_load += counts.rank_load_max_over_mean / num_layers;
  }
  return result;
}

// Runs the partitioner beside this file; nothing where its package is missing.
std::optional<Placement> partition_by_peer(const Options& options, const RecordedParts& set,
                                           const std::string& peer, std::uint32_t num_ranks,
                                           double& seconds) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / fmt::format("coterie_bench_place_{}", getpid());
  std::filesystem::create_directories(folder);
  for (std::size_t layer = 0; layer < set.training.num_layers(); ++layer) {
    std::ofstream out(folder / fmt::format("tokens_{}.txt", layer));
    out << set.training.num_experts << ' ' << set.training.num_topk << '\n';
    const auto experts = set.training.layer_experts(layer);
    for (std::size_t i = 0; i < experts.size(); ++i) {
      out << experts[i] << ((i + 1) % set.training.num_topk == 0 ? '\n' : ' ');
    }
  }
  const std::filesystem::path said = folder / "seconds";
  const std::string command =
      fmt::format("{} {}/tests/bench/partition_peers.py {} {} {} > {} 2> {}", options.python,
                  COTERIE_SOURCE_DIR, peer, folder.string(), num_ranks, said.string(),
                  (folder / "errors").string());
  std::optional<Placement> placement;
  if (std::system(command.c_str()) == 0) {
    std::ifstream(said) >> seconds;
    placement =
        select_layers(read_placement(folder / (peer + ".json"), num_ranks), set.training.layers);
  }
  std::filesystem::remove_all(folder);
  return placement;
}

// The two clusters that placements are timed on.
struct TimedOn {
  std::string name;
  std::shared_ptr<const LayerTimes> times;
};

std::vector<TimedOn> timed_on(const std::string& model, std::uint32_t num_ranks) {
  std::vector<TimedOn> result;
  for (const auto& [name, topology] :
       {std::pair{"rails", "h100_rail_8x8"}, {"NVL72", "gb200_nvl72"}}) {
    LayerTimesSetup setup;
    setup.cluster = load_cluster(topology, {}, num_ranks);
    setup.model = load_model(model);
    setup.num_ranks = num_ranks;
    setup.transport.name = "nccl";
    setup.dispatch_payload = PayloadType::kFp8;
    setup.tokens_per_rank = 4096;
    result.push_back({name, make_layer_times(std::move(setup))});
  }
  return result;
}

struct Contender {
  std::string name;
  PlacementRequest request;
};

std::vector<Contender> contenders(std::uint32_t num_ranks, const std::vector<TimedOn>& clusters) {
  std::vector<Contender> result;
  PlacementRequest request;
  request.num_ranks = num_ranks;
  request.ranks_per_node = std::min(num_ranks, 8u);
  request.num_jobs = kBenchJobs;
  for (const std::string& strategy : placement_strategies()) {
    request.strategy = strategy;
    if (!strategy_needs_times(strategy)) {
      result.push_back({strategy, request});
      continue;
    }
    for (const TimedOn& cluster : clusters) {
      PlacementRequest timed = request;
      timed.times = cluster.times;
      timed.ranks_per_node = cluster.times->cost().ranks_per_node;
      result.push_back({fmt::format("{}, {}", strategy, cluster.name), timed});
    }
  }
  request.strategy = "collaboration_refined";
  request.max_imbalance = 1.1;
  result.push_back({"collaboration_refined, cap 1.1", request});
  request.max_imbalance.reset();
  request.num_replicas = num_ranks;
  for (const char* const strategy :
       {"load_balanced", "load_balanced_joint", "collaboration_refined"}) {
    request.strategy = strategy;
    result.push_back({fmt::format("{}, {} replicas", strategy, num_ranks), request});
  }
  return result;
}

void add_rows(const Options& options, const RecordedParts& set, const std::string& model,
              std::uint32_t num_ranks, Table& table) {
  const std::vector<TimedOn> clusters =
      options.times ? timed_on(model, num_ranks) : std::vector<TimedOn>{};
  const auto add_missing = [&](const std::string& name, const std::string& why) {
    std::vector<std::string> row(table.header.size(), "-");
    row[0] = name;
    row.back() = why;
    table.rows.push_back(std::move(row));
  };
  // The bound of placements without replicas is sought from the best of them.
  PlacementRequest best_request;
  best_request.strategy = "collaboration_refined";
  best_request.num_ranks = num_ranks;
  best_request.ranks_per_node = std::min(num_ranks, 8u);
  best_request.num_jobs = kBenchJobs;
  const Placement best = make_placement(set.training, best_request);
  const double bound =
      mean_distance(fan_out_distance(set.training, best, measure(set.training, best).fan_out,
                                     std::nullopt, BoundEffort::kTight, kBenchJobs))
          .bound;
  const auto add = [&](const std::string& name, const Placement& placement, double seconds,
                       double least) {
    const Measured train = measure(set.training, placement);
    const Measured eval = measure(set.evaluated, placement);
    std::vector<std::string> row = {name, fmt::format("{:.3f}", train.mean_fan_out),
                                    fmt::format("{:.3f}", eval.mean_fan_out),
                                    fmt::format("{:.2f}", eval.mean_load)};
    for (const TimedOn& cluster : clusters) {
      row.push_back(
          fmt::format("{:.3f}", 1e3 * seconds_on(*cluster.times, set.evaluated, placement) /
                                    static_cast<double>(set.evaluated.num_layers())));
    }
    row.push_back(fmt::format("{:.2f}", seconds));
    row.push_back(fmt::format("{:.1f} %", 100.0 * (train.mean_fan_out / least - 1.0)));
    table.rows.push_back(std::move(row));
  };
  for (const Contender& contender : contenders(num_ranks, clusters)) {
    const auto start = std::chrono::steady_clock::now();
    Placement placement;
    try {
      placement = make_placement(set.training, contender.request);
    } catch (const InputError& error) {
      add_missing(contender.name, "cannot be met");
      continue;
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    double least = bound;
    if (contender.request.num_replicas > 0) {
      least = mean_distance(fan_out_distance(set.training, placement,
                                             measure(set.training, placement).fan_out, std::nullopt,
                                             BoundEffort::kTight, kBenchJobs))
                  .bound;
    }
    add(contender.name, placement, seconds, least);
  }
  for (const char* const peer : {"mt_kahypar", "metis"}) {
    double seconds = 0.0;
    if (const auto placement = partition_by_peer(options, set, peer, num_ranks, seconds)) {
      add(peer, *placement, seconds, bound);
    } else {
      add_missing(peer, "not installed");
    }
  }
}

void bench_quality(const Options& options) {
  std::vector<std::string> header = {"placement", "train", "eval", "load"};
  if (options.times) header.insert(header.end(), {"rails ms", "NVL72 ms"});
  header.insert(header.end(), {"seconds", "from optimal"});
  for (const auto& [folder, name, model] :
       {std::tuple{"deepseek-v2-lite-esft", "intent", "deepseek_v2_lite"},
        {"deepseek-v2-lite-esft", "law", "deepseek_v2_lite"},
        {"deepseek-v2-lite-esft", "summary", "deepseek_v2_lite"},
        {"gpt-oss-20b", "decode", "gpt_oss_20b"}}) {
    if (std::string(name).find(options.only) == std::string::npos) continue;
    const std::optional<RecordedParts> set =
        load_recorded(options.traces, folder, name, options.num_layers);
    if (!set) continue;
    for (const std::uint32_t ranks : options.ranks) {
      if (ranks > set->training.num_experts) continue;
      Table table{header, {}};
      add_rows(options, *set, model, ranks, table);
      fmt::print("{}, {} ranks\n\n{}\n", name, ranks, render(table));
      std::fflush(stdout);
    }
  }
}

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string key = argv[i];
    if (key == "--speed" || key == "--no-times") {
      options.speed |= key == "--speed";
      options.times &= key != "--no-times";
      continue;
    }
    if (i + 1 == argc) {
      throw InputError(key, "no value", "an option with its value, --no-times or --speed");
    }
    const std::string value = argv[++i];
    if (key == "--traces") {
      options.traces = value;
    } else if (key == "--python") {
      options.python = value;
    } else if (key == "--only") {
      options.only = value;
    } else if (key == "--layers") {
      options.num_layers = std::stoul(value);
    } else if (key == "--ranks") {
      options.ranks.clear();
      std::stringstream list(value);
      for (std::string item; std::getline(list, item, ',');) {
        options.ranks.push_back(static_cast<std::uint32_t>(std::stoul(item)));
      }
    } else {
      throw InputError(key, "an unknown option",
                       "--traces, --ranks, --layers, --python, --only, --no-times or --speed");
    }
  }
  return options;
}

}  // namespace
}  // namespace coterie

int main(int argc, char** argv) {
  try {
    const coterie::Options options = coterie::read_options(argc, argv);
    if (options.speed) {
      coterie::bench_counting();
      coterie::bench_learning();
    } else {
      coterie::bench_quality(options);
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_place: {}\n", error.what());
    return 2;
  }
}
