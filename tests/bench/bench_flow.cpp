// The flow engine's benchmark: one command, every ratio against a baseline measured in the same
// run.
//
//   build/release/bin/bench_flow [--quick] [--layers N] [--huge] [--ranks N] [--precision P] [--only SECTION]
//
// Sections: error of the knob against exact runs; 128 ranks against the tuned simgrid predictor;
// skewed all-to-allv beside published figures; growth from 64 to 1,024 ranks; exact runs
// (with --huge up to 1,024 ranks); 16,384 GPUs. Times
// are CPU seconds of this process (of the child for simgrid), so that other load on the machine
// counts less; wall-clock seconds stand beside them where several threads run. The naive SimGrid
// program is in bench_simgrid.

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "core/child_process.hpp"
#include "core/table.hpp"
#include "sim/engines/engine.hpp"
#include "sim/engines/flow.hpp"
#include "tests/sim/engines/flow_cases.hpp"
#include "workloads/model.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

using testing::compare;
using testing::Difference;
using testing::flow_cases;
using testing::FlowCase;
using testing::make_network;
using testing::Pattern;
using testing::SendRules;

struct Options {
  bool quick = false;
  bool huge = false;
  unsigned num_layers = 58;
  unsigned num_ranks = 0;                    // of exact runs and fabrics: this size alone; 0: all
  double precision = kFlowDefaultPrecision;  // of growth and fabrics
  std::string only;                          // one section's name; empty: all
};

double cpu_s(int who) {
  rusage usage{};
  getrusage(who, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}
double wall_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// Peak resident memory of this process so far.
double peak_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1024.0 * 1024.0);
}

// Median CPU seconds of `repeats` calls.
template <class Work>
double time_s(int repeats, int who, const Work& work) {
  std::vector<double> samples;
  for (int i = 0; i < repeats; ++i) {
    const double start = cpu_s(who);
    work();
    samples.push_back(cpu_s(who) - start);
  }
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

void print(const std::string& title, const Table& table) {
  fmt::print("\n{}\n\n{}", title, render(table));
  std::fflush(stdout);
}

void describe_machine() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  std::string model = "unknown";
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) == 0) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  }
  fmt::print("machine: {} cores, {} (/proc/cpuinfo), gcc {}\n", std::thread::hardware_concurrency(),
             model, __VERSION__);
}

// Errors against precision 0, which agrees with SimGrid at its exact setting to 1e-7 in
// flow_agreement_tests. The rule that solves small programs at every event is off, except in the
// row of the default.
void knob(const Options& options) {
  Table table{{"precision", "worst makespan", "worst rank", "mean worst rank", "CPU s", "exact/it"},
              {}};
  struct Row {
    double precision;
    double exact_visits;
  };
  const FlowOptions defaults;
  const std::vector<Row> rows{{0.0, 0},
                              {0.001, 0},
                              {0.003, 0},
                              {0.01, 0},
                              {0.03, 0},
                              {0.1, 0},
                              {0.01, defaults.exact_visits}};
  std::vector<double> makespan(rows.size()), rank(rows.size()), sum(rows.size()),
      seconds(rows.size());
  std::size_t num_cases = 0;
  for (const FlowCase& item : flow_cases()) {
    if (options.quick && item.num_ranks > 32) continue;
    const Network network = make_network(item);
    const std::optional<Program> program = testing::make_program(item, network, COTERIE_DATA);
    if (!program) continue;
    ++num_cases;
    const Routes routes = resolve_routes(*program, network);
    Execution exact;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      FlowOptions flow;
      flow.relative_precision = rows[i].precision;
      flow.exact_visits = rows[i].exact_visits;
      Execution run;
      seconds[i] += time_s(1, RUSAGE_SELF, [&] { run = simulate_flows(*program, routes, flow); });
      if (i == 0) exact = run;
      const Difference difference = compare(*program, run, exact, item.num_ranks);
      makespan[i] = std::max(makespan[i], std::abs(difference.makespan));
      rank[i] = std::max(rank[i], difference.rank);
      sum[i] += difference.rank;
    }
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    table.rows.push_back(
        {rows[i].exact_visits > 0 ? "0.01 (default)" : fmt::format("{}", rows[i].precision),
         fmt::format("{:.3f}%", 100 * makespan[i]), fmt::format("{:.3f}%", 100 * rank[i]),
         fmt::format("{:.3f}%", 100 * sum[i] / static_cast<double>(num_cases)),
         fmt::format("{:.3f}", seconds[i]), fmt::format("{:.1f}x", seconds[0] / seconds[i])});
  }
  print(fmt::format("Error of the precision knob over {} cases (against precision 0)", num_cases),
        table);
}

void against_simgrid(const Options& options) {
  Table table{{"128 ranks flat, log-normal", "simgrid s", "flow ms", "ratio", "makespan"}, {}};
  const std::uint32_t num_ranks = options.quick ? 64 : 128;
  table.header[0] = fmt::format("{} ranks flat, log-normal", num_ranks);
  for (const SendRules& rules : {testing::kBare, testing::kBareQueue}) {
    const FlowCase item{"star", rules, num_ranks, Pattern::kLogNormal};
    const Network network = make_network(item);
    const Program program = *testing::make_program(item, network, COTERIE_DATA);
    Execution reference;
    Execution run;
    const double simgrid_s =
        time_s(1, RUSAGE_CHILDREN, [&] { reference = run_simgrid(resolve(program, network), {}); });
    const double flow_s = time_s(9, RUSAGE_SELF, [&] {
      run = simulate_flows(program, resolve_routes(program, network), {});
    });
    table.rows.push_back(
        {rules.places == kUnlimitedPlaces ? "star" : "star, 8 sends in flight",
         fmt::format("{:.3f}", simgrid_s), fmt::format("{:.1f}", flow_s * 1e3),
         fmt::format("{:.0f}x", simgrid_s / flow_s),
         fmt::format("{:+.3f}%", 100 * (run.makespan_s / reference.makespan_s - 1))});
  }
  print("Against the tuned simgrid predictor (its default precision)", table);
}

void skewed(const Options&) {
  Table table{{"skewed all-to-allv", "flow ms", "makespan/bound", "packet-level", "naive SimGrid",
               "LogGOPSim (no contention)"},
              {}};
  const std::vector<std::uint32_t> sizes{64, 128, 256};
  const std::vector<std::vector<std::string>> published{
      {"9 s", "5 s", "0.03 s"}, {"41 s", "168 s", "0.35 s"}, {"221 s", "-", "2.8 s"}};
  double sum = 0.0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const FlowCase item{"star", testing::kBare, sizes[i], Pattern::kSkewed};
    const Network network = make_network(item);
    const Program program = *testing::make_program(item, network, COTERIE_DATA);
    Execution run;
    const double flow_s = time_s(5, RUSAGE_SELF, [&] {
      run = simulate_flows(program, resolve_routes(program, network), {});
    });
    sum += flow_s;
    table.rows.push_back(
        {fmt::format("{} GPUs", sizes[i]), fmt::format("{:.1f}", flow_s * 1e3),
         fmt::format("{:.4f}", run.makespan_s / resolve(program, network).bound.makespan_s),
         published[i][0], published[i][1], published[i][2]});
  }
  table.rows.push_back({"together", fmt::format("{:.1f}", sum * 1e3), "", "271 s", "", "3.2 s"});
  print("Skewed MoE all-to-allv beside published times of other simulators", table);
}

// What one case costs in a process of its own, whose peak memory is its own.
struct Cost {
  double num_ops = 0.0;
  double resolve_s = 0.0;
  double flow_s = 0.0;        // median
  double bytes = 0.0;         // of memory at the peak, the program and its routes included
  double engine_bytes = 0.0;  // of it, what the engine added
  double makespan_s = 0.0;
};

Cost cost_of(const FlowCase& item, double precision, int repeats) {
  Cost out;
  const std::string bytes = run_in_child(item.name(), 0.0, [&] {
    const double before = peak_gib();
    const Network network = make_network(item);
    const Program program = *testing::make_program(item, network, COTERIE_DATA);
    Routes routes;
    Cost cost;
    cost.num_ops = static_cast<double>(program.num_ops());
    cost.resolve_s = time_s(1, RUSAGE_SELF, [&] { routes = resolve_routes(program, network); });
    const double resolved = peak_gib();
    FlowOptions flow;
    flow.relative_precision = precision;
    cost.flow_s = time_s(repeats, RUSAGE_SELF, [&] {
      cost.makespan_s = simulate_flows(program, routes, flow).makespan_s;
    });
    constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
    cost.bytes = kGib * (peak_gib() - before);
    cost.engine_bytes = kGib * (peak_gib() - resolved);
    return std::string(reinterpret_cast<const char*>(&cost), sizeof(cost));
  });
  std::memcpy(&out, bytes.data(), sizeof(out));
  return out;
}

void growth(const Options& options) {
  for (const SendRules& rules : {testing::kBare, testing::kBareQueue}) {
    Table table{
        {rules.places == kUnlimitedPlaces ? "star, unlimited in flight" : "star, 8 in flight",
         "transfers", "resolve s", "flow s", "us/transfer", "exponent", "bytes/transfer",
         "of the engine"},
        {}};
    Cost first;
    Cost last;
    for (const std::uint32_t num_ranks : {64U, 128U, 256U, 512U, 1024U, 2048U, 4096U}) {
      if (num_ranks > (options.huge ? 4096U : options.quick ? 256U : 1024U)) continue;
      const Cost cost = cost_of({"star", rules, num_ranks, Pattern::kLogNormal}, options.precision,
                                num_ranks <= 256   ? 9
                                : num_ranks <= 512 ? 3
                                                   : 1);
      const auto exponent = [&](const Cost& from) {
        return from.num_ops > 0.0 ? fmt::format("{:.2f}", std::log(cost.flow_s / from.flow_s) /
                                                              std::log(cost.num_ops / from.num_ops))
                                  : "";
      };
      table.rows.push_back({fmt::format("{} ranks", num_ranks), fmt::format("{}", cost.num_ops),
                            fmt::format("{:.3f}", cost.resolve_s),
                            fmt::format("{:.4f}", cost.flow_s),
                            fmt::format("{:.2f}", 1e6 * cost.flow_s / cost.num_ops), exponent(last),
                            fmt::format("{:.0f}", cost.bytes / cost.num_ops),
                            fmt::format("{:.0f}", cost.engine_bytes / cost.num_ops)});
      if (first.num_ops == 0.0) first = cost;
      last = cost;
    }
    table.rows.push_back({"first to last", "", "", "", "",
                          fmt::format("{:.2f}", std::log(last.flow_s / first.flow_s) /
                                                    std::log(last.num_ops / first.num_ops)),
                          "", ""});
    print("Growth with the number of transfers, flat, log-normal sizes, one core", table);
  }
}

// Fabrics of several hops against a star with the same rules of sending and the same sizes.
void fabrics(const Options& options) {
  Table table{{"8 in flight, log-normal", "transfers", "flow s", "us/transfer", "over the star"},
              {}};
  for (const std::uint32_t num_ranks : {64U, 128U, 256U, 512U}) {
    if (options.quick && num_ranks > 128) continue;
    if (options.num_ranks != 0 && num_ranks != options.num_ranks) continue;
    double star_s = 0.0;
    for (const char* topology : {"star", "h100_rail_optimised", "h100_leaf_spine_2to1",
                                 "h100_fat_tree", "h100_torus", "h100_dragonfly"}) {
      const Cost cost = cost_of({topology, testing::kTypical, num_ranks, Pattern::kLogNormal},
                                options.precision, num_ranks <= 256 ? 5 : 3);
      if (star_s == 0.0) star_s = cost.flow_s;
      table.rows.push_back({fmt::format("{} ranks, {}", num_ranks, topology),
                            fmt::format("{}", cost.num_ops), fmt::format("{:.4f}", cost.flow_s),
                            fmt::format("{:.2f}", 1e6 * cost.flow_s / cost.num_ops),
                            fmt::format("{:.2f}x", cost.flow_s / star_s)});
    }
  }
  print("Fabrics against a star, flat all-to-all, one core", table);
}

// Exact runs, against one solve of everything at every event: what a precision too small to
// allow anything else amounts to. That baseline takes time in proportion to the square of the
// transfers and is left out where it would take minutes.
void exact(const Options& options) {
  for (const SendRules& rules : {testing::kBare, testing::kBareQueue}) {
    Table table{
        {rules.places == kUnlimitedPlaces ? "star, unlimited in flight" : "star, 8 in flight",
         "transfers", "exact s", "us/transfer", "exponent", "rates set/event", "solve per event s",
         "ratio", "makespan", "peak GiB"},
        {}};
    double last_s = 0.0;
    double last_n = 0.0;
    for (const std::uint32_t num_ranks : {64U, 128U, 256U, 512U, 1024U}) {
      if (options.num_ranks == 0 ? num_ranks > (options.huge    ? 1024U
                                                : options.quick ? 128U
                                                                : 256U)
                                 : num_ranks != options.num_ranks) {
        continue;
      }
      const FlowCase item{"star", rules, num_ranks, Pattern::kLogNormal};
      const Network network = make_network(item);
      const Program program = *testing::make_program(item, network, COTERIE_DATA);
      const Routes routes = resolve_routes(program, network);
      FlowOptions flow;
      flow.relative_precision = 0.0;
      Execution run;
      FlowStats stats;
      const double exact_s = time_s(num_ranks <= 128 ? 5 : 1, RUSAGE_SELF,
                                    [&] { run = simulate_flows(program, routes, flow, &stats); });
      const auto n = static_cast<double>(program.num_ops());
      std::vector<std::string> row{
          fmt::format("{} ranks", num_ranks),
          std::to_string(program.num_ops()),
          fmt::format("{:.3f}", exact_s),
          fmt::format("{:.1f}", 1e6 * exact_s / n),
          last_n > 0.0 ? fmt::format("{:.2f}", std::log(exact_s / last_s) / std::log(n / last_n))
                       : "",
          fmt::format("{:.0f}", static_cast<double>(stats.num_solved_flows) /
                                    static_cast<double>(stats.num_solves)),
          "",
          "",
          "",
          fmt::format("{:.2f}", peak_gib())};
      if (num_ranks <= (options.quick ? 128U : 256U)) {
        flow.relative_precision = 1e-12;
        flow.exact_visits = 0.0;
        Execution solved;
        const double solved_s =
            time_s(1, RUSAGE_SELF, [&] { solved = simulate_flows(program, routes, flow); });
        row[6] = fmt::format("{:.3f}", solved_s);
        row[7] = fmt::format("{:.1f}x", solved_s / exact_s);
        row[8] = fmt::format("{:+.1e}", run.makespan_s / solved.makespan_s - 1);
      }
      table.rows.push_back(row);
      last_s = exact_s;
      last_n = n;
    }
    print("Exact runs (precision 0), flat, log-normal sizes, one core", table);
  }
}

// DeepSeek-V3's shape on `num_groups` groups of EP 64 over one leaf/spine fabric, two-level
// dispatch. Routing is synthetic (group-limited, seeded). Eight different groups are planned per
// layer; the others repeat them on their own GPUs.
class Cluster64 {
 public:
  explicit Cluster64(std::uint32_t num_groups)
      : num_groups_(num_groups),
        network_(load_cluster("h100_leaf_spine_2to1", {}, 64 * num_groups)),
        model_(load_model("deepseek_v3")) {}

  struct Shares {
    // CPU seconds of the process.
    double route = 0.0, plan = 0.0, build = 0.0, resolve = 0.0, flow = 0.0;
    double read = 0.0;    // reading the layer's routing from its file once
    double wall_s = 0.0;  // of all of them
    std::size_t num_ops = 0;
    double makespan_s = 0.0;
    FlowStats stats;
  };

  Shares run_layer(std::uint32_t layer) const {
    Shares out;
    const double wall_start = wall_s();
    double start = cpu_s(RUSAGE_SELF);
    const auto lap = [&](double& share) {
      const double now = cpu_s(RUSAGE_SELF);
      share += now - start;
      start = now;
    };
    WorkloadSpec spec;
    spec.seed = layer;
    spec.num_experts = model_.num_experts;
    spec.num_topk = model_.num_topk;
    spec.layers = {layer};
    spec.num_sequences = 512;
    spec.min_tokens = 16;
    spec.max_tokens = 48;
    spec.kind = GroupLimitedKind{};
    const auto path = std::filesystem::temp_directory_path() /
                      fmt::format("bench_flow_{}_{}.moet", ::getpid(), layer);
    write_moet(path, generate(spec));
    lap(out.route);
    const Routing routing = std::get<Routing>(read_moet(path));
    lap(out.read);
    std::filesystem::remove(path);
    LayerPlacement placement;
    placement.layer = layer;
    placement.rank_experts.resize(64);
    for (std::uint32_t expert = 0; expert < model_.num_experts; ++expert) {
      placement.rank_experts[expert / 4].push_back(static_cast<ExpertIdx>(expert));
    }
    std::vector<LayerPlan> groups;
    for (std::uint32_t group = 0; group < num_groups_; ++group) {
      if (group >= 8) {
        groups.push_back(groups[group % 8]);
        continue;
      }
      const RankTokens tokens =
          deal_tokens(routing, 64, 256, SequenceDeal::kRoundRobin, std::uint64_t{group} * 64);
      groups.push_back(make_plan(routing, 0, placement, tokens,
                                 {DispatchPolicy::kHierarchical, 8, PlanDetail::kCounts}));
    }
    lap(out.plan);
    ProgramBuilder builder;
    testing::Sender sender(builder, network_, testing::kTypical);
    const PayloadSizes sizes{row_payload(PayloadType::kFp8, model_.hidden),
                             row_payload(PayloadType::kBf16, model_.hidden)};
    for (std::uint32_t group = 0; group < num_groups_; ++group) {
      testing::add_layer(builder, sender, groups[group], sizes, 64 * group);
    }
    const Program program = std::move(builder).finish();
    lap(out.build);
    const Routes routes = resolve_routes(program, network_);
    lap(out.resolve);
    const Execution run = simulate_flows(program, routes, {}, &out.stats);
    lap(out.flow);
    out.num_ops = program.num_ops();
    out.makespan_s = run.makespan_s;
    out.wall_s = wall_s() - wall_start;
    return out;
  }

 private:
  std::uint32_t num_groups_;
  Network network_;
  ModelShape model_;
};

void large(const Options& options, std::uint32_t num_groups, unsigned num_layers) {
  const double start = wall_s();
  const Cluster64 cluster(num_groups);
  const double setup_s = wall_s() - start;
  const Cluster64::Shares one = cluster.run_layer(3);
  const double total = one.route + one.read + one.plan + one.build + one.resolve + one.flow;
  Table table{{fmt::format("{} GPUs, one layer", 64 * num_groups), "CPU s", "share"}, {}};
  const auto row = [&](const char* name, double value) {
    table.rows.push_back(
        {name, fmt::format("{:.4f}", value), fmt::format("{:.2f}%", 100 * value / total)});
  };
  row("generate and write the routing", one.route);
  row("read the trace once", one.read);
  row("plan (8 groups)", one.plan);
  row("build the program", one.build);
  row("resolve the routes", one.resolve);
  row("flow engine", one.flow);
  row("together", total);
  table.rows.push_back({"together, wall", fmt::format("{:.4f}", one.wall_s), ""});
  table.rows.push_back({"network (once, wall)", fmt::format("{:.4f}", setup_s), ""});
  table.rows.push_back(
      {"together / reading the trace", fmt::format("{:.0f}x", total / one.read), ""});
  print(fmt::format("{} groups of EP 64 on h100_leaf_spine_2to1, two-level dispatch, DeepSeek-V3 "
                    "shape, 256 tokens per rank: {} operations, {} components of which {} differ, "
                    "{} solves of {:.0f} flows on average, layer time {:.3f} ms, peak {:.2f} GiB",
                    num_groups, one.num_ops, one.stats.num_components, one.stats.num_runs,
                    one.stats.num_solves,
                    static_cast<double>(one.stats.num_solved_flows) /
                        static_cast<double>(one.stats.num_solves),
                    one.makespan_s * 1e3, peak_gib()),
        table);
  if (num_layers <= 1) return;
  const double layers_start = wall_s();
  const double layers_cpu = cpu_s(RUSAGE_SELF);
  std::atomic<unsigned> next{0};
  const auto work = [&] {
    for (unsigned i = next++; i < num_layers; i = next++) cluster.run_layer(3 + i);
  };
  std::vector<std::jthread> threads;
  threads.emplace_back(work);
  work();
  threads.clear();
  fmt::print("\n{} layers on 2 threads: {:.1f} s wall, {:.1f} s of CPU, peak {:.2f} GiB{}\n",
             num_layers, wall_s() - layers_start, cpu_s(RUSAGE_SELF) - layers_cpu, peak_gib(),
             options.quick ? " (--quick: not all 58)" : "");
}

int run(const Options& options) {
  describe_machine();
  const auto wanted = [&](const char* section) {
    return options.only.empty() || options.only == section;
  };
  if (wanted("simgrid")) against_simgrid(options);
  if (wanted("skewed")) skewed(options);
  if (wanted("growth")) growth(options);
  if (wanted("fabrics")) fabrics(options);
  if (wanted("exact")) exact(options);
  if (wanted("knob")) knob(options);
  if (wanted("large")) {
    large(options, options.quick ? 32 : 256, options.quick ? 2 : options.num_layers);
  }
  if (options.huge || options.only == "huge") large(options, 1563, 1);
  return 0;
}

}  // namespace
}  // namespace coterie

int main(int argc, char** argv) {
  coterie::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--quick") {
      options.quick = true;
    } else if (argument == "--huge") {
      options.huge = true;
    } else if (argument == "--layers" && i + 1 < argc) {
      options.num_layers = static_cast<unsigned>(std::stoul(argv[++i]));
    } else if (argument == "--ranks" && i + 1 < argc) {
      options.num_ranks = static_cast<unsigned>(std::stoul(argv[++i]));
    } else if (argument == "--precision" && i + 1 < argc) {
      options.precision = std::stod(argv[++i]);
    } else if (argument == "--only" && i + 1 < argc) {
      options.only = argv[++i];
    } else {
      fmt::print(stderr,
                 "usage: bench_flow [--quick] [--layers N] [--huge] [--ranks N] [--precision P] "
                 "[--only simgrid|skewed|growth|fabrics|exact|knob|large|huge]\n");
      return 2;
    }
  }
  return coterie::run(options);
}
