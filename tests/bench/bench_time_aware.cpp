// How long layers take under the strategies that place experts, as the flow engine predicts it.
//
//   bench_time_aware [--traces DIR] [--layers N] [--only TEXT] [--tokens N] [--detail]
//
// Recorded traces below DIR (default: the developer's data) on clusters with every transport that
// they have parameters for and `ideal`, under `dedup`, and under `hierarchical` where there are
// several nodes. Learnt on even sequences, timed on odd ones, N layers (default 4) spread over the
// model, 4,096 tokens per rank (fewer where a transport takes no more). `fastest other` is the
// fastest of contiguous, load_balanced and the collaboration strategies with and without caps, by
// the sum over the layers; `over it` is its time over that of time_aware, so that below 1 means
// that time_aware loses. `seconds` are those of learning time_aware with two threads.
//
//   bench_time_aware --measured [--traces DIR]
//
// Recorded runs of a runtime, and the same predicted: those on 4 H200 (beside the traces,
// measurements/runtime_4xh200) on h200_nvlink_4_calibrated, and those of 4 and 8 ranks on two H100,
// which share the GPUs (runtime/results/h100_direct_2gpu), on h100_direct_2x2_calibrated and
// h100_direct_2x4_calibrated. Of the pairs of placements of one policy and one start that differ by
// more than a percent, how many are predicted in the measured order, and how many the rates order so
// that time_aware follows; and where time_aware is predicted.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/results.hpp"
#include "sim/experiment/layer_times.hpp"
#include "tests/bench/recorded.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/placement/time_search.hpp"
#include "workloads/trace/importer.hpp"

namespace coterie {
namespace {

struct Options {
  std::filesystem::path traces = std::filesystem::path(COTERIE_DATA) / "traces";
  std::size_t num_layers = 4;
  std::string only;  // cases whose name has this text
  std::uint32_t tokens = 4096;
  bool detail = false;
  bool measured = false;
};

struct Machine {
  std::string topology;
  std::vector<std::uint32_t> ranks;
  bool network_binds = false;  // rows cross a tier slower than NVLink
};

const std::vector<Machine>& machines() {
  static const std::vector<Machine> kMachines = {
      {"a6000_pcie_4", {4}, true},
      {"h200_node", {4, 8}, false},
      {"h200_node_calibrated", {8}, false},
      {"h200_nvlink_4_calibrated", {4}, false},
      {"h100_rail_8x8", {16, 32, 64}, true},
      {"h100_rail_optimised_calibrated", {16, 64}, true},
      {"gb200_nvl72", {8, 32, 64}, false},
      {"gb200_nvl72_calibrated", {32}, false},
      {"h100_leaf_spine_2to1", {16, 32, 64}, true},
  };
  return kMachines;
}

struct Set {
  ModelShape model;
  RecordedParts parts;
};

struct Contender {
  std::string name;
  std::string strategy;
  std::optional<double> cap;
};

const std::vector<Contender>& others() {
  static const std::vector<Contender> kOthers = {
      {"contiguous", "contiguous", {}},
      {"load_balanced", "load_balanced", {}},
      {"collaboration", "collaboration", {}},
      {"collaboration_refined", "collaboration_refined", {}},
      {"refined 1.4", "collaboration_refined", 1.4},
      {"refined 1.2", "collaboration_refined", 1.2},
      {"refined 1.1", "collaboration_refined", 1.1},
      {"refined 1.05", "collaboration_refined", 1.05},
      {"two_level", "collaboration_two_level", {}},
      {"two_level 1.1", "collaboration_two_level", 1.1},
  };
  return kOthers;
}

struct Case {
  const Set& set;
  std::string topology, transport;
  std::uint32_t num_ranks;
  DispatchPolicy policy;
  bool network_binds;

  [[nodiscard]] std::string name() const {
    return fmt::format("{} {} {} EP{} {}", set.parts.name, topology, transport, num_ranks,
                       to_string(policy));
  }
};

struct Summary {
  std::uint32_t num_cases = 0, num_losses = 0, num_bound = 0;
  double worst = 10.0, log_sum = 0.0, bound_log_sum = 0.0;
};

class Bench {
 public:
  explicit Bench(Options options) : options_(std::move(options)) {}

  void add(const Case& c) {
    if (c.name().find(options_.only) == std::string::npos) return;
    LayerTimesSetup setup;
    setup.cluster = load_cluster(c.topology, {}, c.num_ranks);
    setup.model = c.set.model;
    setup.num_ranks = c.num_ranks;
    setup.policy = c.policy;
    setup.transport.name = c.transport;
    // Where the GPU knows FP8.
    const bool fp8 = setup.cluster.gpu.fp8_peak.value > 1.5 * setup.cluster.gpu.bf16_peak.value;
    setup.dispatch_payload = fp8 ? PayloadType::kFp8 : PayloadType::kBf16;
    setup.tokens_per_rank = options_.tokens;
    for (const TransportParameters& transport : setup.cluster.transports) {
      const auto* limited = std::get_if<DeepepLowLatencyParameters>(&transport);
      if (limited == nullptr || transport_name(transport) != c.transport) continue;
      setup.tokens_per_rank = std::min(options_.tokens, limited->max_tokens_per_rank);
    }
    const auto start = std::chrono::steady_clock::now();
    const auto times = make_layer_times(setup);
    PlacementRequest request;
    request.strategy = "time_aware";
    request.num_ranks = c.num_ranks;
    request.ranks_per_node = times->cost().ranks_per_node;
    request.num_jobs = kBenchJobs;
    request.times = times;
    const Placement placed = make_placement(c.set.parts.training, request);
    const double learning_s =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double time_s = seconds_on(*times, c.set.parts.evaluated, placed);
    std::string best_name;
    double best_s = 0.0;
    double contiguous_s = 0.0;
    std::string detail;
    for (const Contender& other : others()) {
      const Placement* placement = other_placement(c, request, other);
      if (placement == nullptr) continue;
      const double other_s = seconds_on(*times, c.set.parts.evaluated, *placement);
      if (other.name == "contiguous") contiguous_s = other_s;
      if (options_.detail) {
        detail += fmt::format("    {:<24}{:.4f} ms (training {:.4f})\n", other.name, other_s * 1e3,
                              seconds_on(*times, c.set.parts.training, *placement) * 1e3);
      }
      if (!best_name.empty() && other_s >= best_s) continue;
      best_name = other.name;
      best_s = other_s;
    }
    const double ratio = best_s / time_s;
    fmt::print("{:<70} {:>9.4f} ms  {:>9.4f} ms {:<22} {:>6.3f} {:>6.3f}  {:>6.2f} s\n", c.name(),
               time_s * 1e3, best_s * 1e3, best_name, ratio, contiguous_s / time_s, learning_s);
    if (options_.detail) {
      fmt::print("    {:<24}{:.4f} ms (training {:.4f})\n{}", "time_aware", time_s * 1e3,
                 seconds_on(*times, c.set.parts.training, placed) * 1e3, detail);
    }
    std::fflush(stdout);
    ++summary_.num_cases;
    if (ratio < 0.99) ++summary_.num_losses;
    summary_.worst = std::min(summary_.worst, ratio);
    summary_.log_sum += std::log(ratio);
    if (!c.network_binds) return;
    ++summary_.num_bound;
    summary_.bound_log_sum += std::log(ratio);
  }

  void print_summary() const {
    if (summary_.num_cases == 0) return;
    fmt::print(
        "\n{} cases: time_aware is slower by more than 1 percent in {}, at worst {:.3f} of the "
        "fastest other; geometric mean {:.3f}, where a network binds {:.3f} ({} cases)\n",
        summary_.num_cases, summary_.num_losses, summary_.worst,
        std::exp(summary_.log_sum / summary_.num_cases),
        std::exp(summary_.bound_log_sum / std::max(1u, summary_.num_bound)), summary_.num_bound);
  }

 private:
  // Learnt once per trace and ranks, whatever the machine; nothing where a cap cannot be met.
  const Placement* other_placement(const Case& c, PlacementRequest request,
                                   const Contender& other) {
    const std::string key = fmt::format("{} {} {} {}", c.set.parts.name, c.num_ranks,
                                        request.ranks_per_node, other.name);
    auto [found, is_new] = placements_.try_emplace(key);
    if (is_new) {
      request.strategy = other.strategy;
      request.max_imbalance = other.cap;
      request.times = nullptr;
      try {
        found->second = make_placement(c.set.parts.training, request);
      } catch (const InputError&) {
        // A cap that cannot be met: nothing to compare with.
      }
    }
    return found->second ? &*found->second : nullptr;
  }

  Options options_;
  std::map<std::string, std::optional<Placement>> placements_;
  Summary summary_;
};

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string key = argv[i];
    if (key == "--detail" || key == "--measured") {
      (key == "--detail" ? options.detail : options.measured) = true;
      continue;
    }
    if (i + 1 == argc)
      throw InputError(key, "no value", "an option with its value, --detail or --measured");
    const std::string value = argv[++i];
    if (key == "--traces") {
      options.traces = value;
    } else if (key == "--only") {
      options.only = value;
    } else if (key == "--layers") {
      options.num_layers = std::stoul(value);
    } else if (key == "--tokens") {
      options.tokens = static_cast<std::uint32_t>(std::stoul(value));
    } else {
      throw InputError(key, "an unknown option", "--traces, --only, --layers, --tokens, --detail");
    }
  }
  return options;
}

// Measured runs ----------------------------------------------------------------------------------

struct Pairs {
  std::uint32_t num_pairs = 0, num_predicted = 0, num_by_rates = 0;
};

// Where reports were measured.
struct MeasuredOn {
  std::string topology, transport;
  std::uint32_t num_ranks;
  bool hierarchical;                 // such runs are of these nodes
  std::filesystem::path placements;  // of runs whose placement was learnt beforehand
  Bytes chunk;
};

// Seconds that the rates give a placement, summed over the layers.
double rates_on(const LayerCost& cost, const Routing& routing, const Placement& placement) {
  double sum = 0.0;
  for (std::size_t i = 0; i < routing.num_layers(); ++i) {
    const std::span<const ExpertIdx> experts = routing.layer_experts(i);
    std::vector<std::uint64_t> load(routing.num_experts, 0);
    for (const ExpertIdx expert : experts) ++load[expert];
    std::vector<std::uint32_t> parts(routing.num_experts, 0);
    for (std::uint32_t rank = 0; rank < cost.num_ranks; ++rank) {
      for (const ExpertIdx expert : placement.layers[i].rank_experts[rank]) parts[expert] = rank;
    }
    const TokenSample sample(experts, routing.num_topk, routing.num_experts);
    sum += layer_cost_s({sample, load, cost}, parts);
  }
  return sum;
}

// The runs of one file: measured and predicted, sums over its layers.
void compare_measured(const std::filesystem::path& file, const MeasuredOn& machine,
                      const Routing& training, const Routing& evaluated, Pairs& pairs) {
  const Results results = results_from_json(nlohmann::json::parse(read_file(file)), file.string());
  struct Row {
    std::string name, policy;
    double measured_s, predicted_s, rates_s;
  };
  std::vector<Row> rows;
  fmt::print("{}\n", file.filename() == "results.json" ? file.parent_path().filename().string()
                                                       : file.stem().string());
  std::optional<PlacementRequest> aware;
  for (const RunReport& run : results.runs) {
    if (run.policy == "hierarchical" && !machine.hierarchical) continue;
    if (!run.transport.empty() && run.transport != machine.transport) continue;
    std::vector<std::size_t> layer_idxs;
    for (const LayerReport& layer : run.layers) {
      const auto found = std::find(training.layers.begin(), training.layers.end(), layer.layer);
      layer_idxs.push_back(static_cast<std::size_t>(found - training.layers.begin()));
    }
    const Routing train = select_layers(training, layer_idxs);
    const Routing eval = select_layers(evaluated, layer_idxs);
    LayerTimesSetup setup;
    setup.cluster = load_cluster(machine.topology, {}, machine.num_ranks);
    setup.model = load_model("deepseek_v2_lite");
    setup.model.hidden = run.provenance.at("hidden").get<std::uint32_t>();
    setup.model.expert_intermediate = run.provenance.at("expert_intermediate").get<std::uint32_t>();
    setup.model.shared_intermediate = setup.model.expert_intermediate;
    setup.num_ranks = machine.num_ranks;
    setup.policy = parse_policy(run.policy).value();
    setup.transport.name = machine.transport;
    setup.chunk = machine.chunk;
    setup.dispatch_payload = parse_payload(run.dispatch_payload).value();
    setup.tokens_per_rank = run.tokens_per_rank;
    const auto times = make_layer_times(setup);
    PlacementRequest request;
    request.num_ranks = machine.num_ranks;
    request.ranks_per_node = times->cost().ranks_per_node;
    request.num_jobs = kBenchJobs;
    request.strategy = run.placement;
    if (const auto dash = run.name.rfind("refined-"); dash != std::string::npos) {
      request.max_imbalance = std::stod(run.name.substr(dash + 8));
    }
    if (run.name == "hierarchical-two-direct") request.max_imbalance = 1.2;  // epN_hHIDDEN.yaml
    const Placement placement = run.placement == "time_aware" ? read_placement(machine.placements)
                                                              : make_placement(train, request);
    rows.push_back({run.name, run.policy, run.time_s(), seconds_on(*times, eval, placement),
                    rates_on(times->cost(), eval, placement)});
    fmt::print("    {:<40} measured {:>9.4f} ms, predicted {:>9.4f}, by the rates {:>9.4f}\n",
               run.name, rows.back().measured_s * 1e3, rows.back().predicted_s * 1e3,
               rows.back().rates_s * 1e3);
    if (setup.policy == DispatchPolicy::kDedup) {
      aware = request;
      aware->times = times;
    }
    if (&run != &results.runs.back() || !aware) continue;
    aware->strategy = "time_aware";
    aware->max_imbalance.reset();
    fmt::print("    {:<40} {:>31} {:>9.4f}\n", "dedup, placed by time here", "predicted",
               seconds_on(*aware->times, eval, make_placement(train, *aware)) * 1e3);
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t j = i + 1; j < rows.size(); ++j) {
      if (rows[i].policy != rows[j].policy) continue;
      const double ratio = rows[i].measured_s / rows[j].measured_s;
      if (ratio < 1.01 && ratio > 1.0 / 1.01) continue;
      ++pairs.num_pairs;
      if ((ratio < 1.0) == (rows[i].rates_s < rows[j].rates_s)) ++pairs.num_by_rates;
      if ((ratio < 1.0) == (rows[i].predicted_s < rows[j].predicted_s)) {
        ++pairs.num_predicted;
      } else {
        fmt::print("    in another order: {} ({:.1f} % apart) {}\n", rows[i].name,
                   std::abs(ratio - 1.0) * 100.0, rows[j].name);
      }
    }
  }
  std::fflush(stdout);
}

// The files of `folder` whose names `wanted` takes, in order.
std::vector<std::filesystem::path> files_of(const std::filesystem::path& folder,
                                            const std::function<bool(const std::string&)>& wanted) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (wanted(entry.path().filename().string())) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

void print_pairs(const std::string& machine, const Pairs& pairs) {
  fmt::print(
      "\n{}: of {} pairs of placements {} are predicted in the measured order, {} by the rates\n\n",
      machine, pairs.num_pairs, pairs.num_predicted, pairs.num_by_rates);
}

void run_measured(const Options& options) {
  const std::filesystem::path path = options.traces / "deepseek-v2-lite-esft" / "law.npz";
  if (!std::filesystem::exists(path)) {
    fmt::print("no trace {}\n", path.string());
    return;
  }
  const std::vector<std::filesystem::path> inputs = {path};
  const auto trace = std::get<Routing>(import_traces(inputs, "npz", {}).trace);
  const Routing training = select(trace, SequencePart::kEven);
  const Routing evaluated = select(trace, SequencePart::kOdd);
  const std::filesystem::path h200 =
      options.traces.parent_path() / "measurements" / "runtime_4xh200";
  if (std::filesystem::exists(h200)) {
    // Its hierarchical runs took one NVLink domain as two nodes.
    const MeasuredOn machine{"h200_nvlink_4_calibrated", "nccl", 4, false, {}, Bytes{1 << 20}};
    Pairs pairs;
    for (const std::filesystem::path& file : files_of(h200, [](const std::string& name) {
           return name == "results.json" || name.starts_with("caps-");
         })) {
      compare_measured(file, machine, training, evaluated, pairs);
    }
    print_pairs("4 H200", pairs);
  } else {
    fmt::print("no measurements {}\n", h200.string());
  }
  const std::filesystem::path h100 =
      std::filesystem::path(COTERIE_SOURCE_DIR) / "runtime" / "results" / "h100_direct_2gpu";
  for (const auto& [topology, num_ranks] :
       {std::pair{"h100_direct_2x2_calibrated", 4u}, {"h100_direct_2x4_calibrated", 8u}}) {
    const std::string ranks = fmt::format("-ep{}", num_ranks);
    Pairs pairs;
    for (const std::filesystem::path& file :
         files_of(h100 / "reports",
                  [&](const std::string& name) { return name.find(ranks) != std::string::npos; })) {
      // law-hHIDDEN-tTOKENS-bf16-epN-startI.json
      const std::string name = file.filename().string();
      const std::string placed = name.substr(0, name.find("-bf16")) + ranks + ".json";
      compare_measured(
          file, {topology, "direct", num_ranks, true, h100 / "placements" / placed, Bytes{4 << 20}},
          training, evaluated, pairs);
    }
    print_pairs(fmt::format("{} ranks on 2 H100", num_ranks), pairs);
  }
}

void run(const Options& options) {
  if (options.measured) {
    run_measured(options);
    return;
  }
  Bench bench(options);
  for (const auto& [folder, name, model] :
       {std::tuple{"deepseek-v2-lite-esft", "intent", "deepseek_v2_lite"},
        {"deepseek-v2-lite-esft", "law", "deepseek_v2_lite"},
        {"deepseek-v2-lite-esft", "summary", "deepseek_v2_lite"},
        {"gpt-oss-20b", "decode", "gpt_oss_20b"}}) {
    auto parts = load_recorded(options.traces, folder, name, options.num_layers);
    if (!parts) continue;
    const Set set{load_model(model), *std::move(parts)};
    for (const Machine& machine : machines()) {
      for (const std::uint32_t ranks : machine.ranks) {
        if (ranks > set.model.num_experts) continue;
        const Cluster cluster = load_cluster(machine.topology, {}, ranks);
        std::vector<std::string> transports{"ideal"};
        for (const auto& transport : cluster.transports) {
          transports.emplace_back(transport_name(transport));
        }
        for (const std::string& transport : transports) {
          bench.add({set, machine.topology, transport, ranks, DispatchPolicy::kDedup,
                     machine.network_binds});
          if (ranks <= cluster.gpus_per_node) continue;
          bench.add({set, machine.topology, transport, ranks, DispatchPolicy::kHierarchical,
                     machine.network_binds});
        }
      }
    }
  }
  bench.print_summary();
}

}  // namespace
}  // namespace coterie

int main(int argc, char** argv) {
  try {
    coterie::run(coterie::read_options(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_time_aware: {}\n", error.what());
    return 2;
  }
}
