// The simgrid predictor against the program that one would write first: S4U, one sendto for each
// pair, all started at once, SimGrid's default precision, same platform. Both simulate, on a star of
// 400 Gb/s links, the dispatch of a 64-rank flat dedup plan of recorded routing (`law`: law.npz, 4,096
// tokens per rank) or an all-to-all of log-normal sizes (`log-normal`). The baseline of the ratios is
// the naive program as it stands in tutorials, with CM02 and SimGrid's default cross-traffic (the
// load that acknowledgements put on the way back); differences are against the naive program
// without cross-traffic, which is the model that our engines have. Each simulation has a process of
// its own; times are CPU seconds of that process.
//
//   build/release/bin/bench_simgrid [law|log-normal] [RANKS] [REPETITIONS]     # law: 64 ranks only

#include <fmt/format.h>
#include <sys/resource.h>
#include <simgrid/s4u.hpp>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/child_process.hpp"
#include "core/table.hpp"
#include "sim/engines/engine.hpp"
#include "tests/sim/engines/flow_cases.hpp"

namespace coterie {
namespace {

namespace sg = simgrid::s4u;

constexpr std::uint32_t kTokensPerRank = 4096;
constexpr std::uint32_t kLayer = 12;      // of the trace's 26
constexpr std::int64_t kRowBytes = 4096;  // hidden 2048 in BF16
constexpr double kBandwidth = 50e9;       // of the star's links
constexpr double kLatency = 500e-9;

struct Run {
  double makespan_s = 0.0;
  double cpu_s = 0.0;
};

// The dispatch of one layer, every pair a transfer.
TrafficMatrix traffic_of_plan(std::uint32_t num_ranks) {
  if (const auto routing = testing::recorded_routing(COTERIE_DATA)) {
    LayerPlacement contiguous;  // one expert a rank
    for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
      contiguous.rank_experts.push_back({static_cast<ExpertIdx>(rank)});
    }
    const RankTokens tokens =
        deal_tokens(*routing, num_ranks, kTokensPerRank, SequenceDeal::kRoundRobin);
    const LayerPlan plan = make_plan(*routing, kLayer, contiguous, tokens,
                                     {DispatchPolicy::kDedup, 1, PlanDetail::kCounts});
    return stage_traffic(plan, 0, Direction::kDispatch, {Bytes{kRowBytes}, Bytes{kRowBytes}});
  }
  fmt::print("no recorded routing beside the checkout: log-normal sizes instead\n");
  return testing::make_traffic(testing::Pattern::kLogNormal, num_ranks, 1e6, 1);
}

// As the examples of SimGrid's documentation put it: hosts, links, an actor per host.
double naive(const TrafficMatrix& traffic, std::uint32_t num_ranks, bool cross_traffic) {
  std::string program_name = "naive";
  char* arguments[] = {program_name.data(), nullptr};
  int count = 1;
  sg::Engine engine(&count, arguments);
  sg::Engine::set_config("network/model:CM02");
  sg::Engine::set_config("network/TCP-gamma:0");  // no window bound
  sg::Engine::set_config(cross_traffic ? "network/crosstraffic:1" : "network/crosstraffic:0");
  auto* zone = sg::create_full_zone("cluster");
  std::vector<sg::Host*> hosts;
  std::vector<sg::Link*> up, down;
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    hosts.push_back(zone->create_host(fmt::format("h{}", rank), 1e9));
    up.push_back(zone->create_link(fmt::format("u{}", rank), kBandwidth)->set_latency(kLatency));
    down.push_back(zone->create_link(fmt::format("d{}", rank), kBandwidth)->set_latency(kLatency));
  }
  for (std::uint32_t src = 0; src < num_ranks; ++src) {
    for (std::uint32_t dst = 0; dst < num_ranks; ++dst) {
      if (src == dst) continue;
      zone->add_route(hosts[src]->get_netpoint(), hosts[dst]->get_netpoint(), nullptr, nullptr,
                      {sg::LinkInRoute(up[src]), sg::LinkInRoute(down[dst])}, false);
    }
  }
  zone->seal();
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    sg::Actor::create("sender", hosts[rank], [&, rank] {
      std::vector<sg::CommPtr> sends;
      for (const TrafficEntry& entry : traffic.entries) {
        if (entry.src != rank || entry.dst == rank) continue;
        sends.push_back(sg::Comm::sendto_async(hosts[rank], hosts[entry.dst],
                                               static_cast<std::uint64_t>(entry.bytes)));
      }
      for (const sg::CommPtr& send : sends) send->wait();
    });
  }
  engine.run();
  return sg::Engine::get_clock();
}

double child_cpu_s() {
  rusage usage{};
  getrusage(RUSAGE_CHILDREN, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

// Median CPU time of the repetitions; each in a child, or starting one itself.
Run measure(int repetitions, const std::function<double()>& simulate) {
  std::vector<double> cpu;
  Run run;
  for (int i = 0; i < repetitions; ++i) {
    const double before = child_cpu_s();
    const std::string bytes = run_in_child("benchmark", 0.0, [&] {
      const double makespan_s = simulate();
      return std::string(reinterpret_cast<const char*>(&makespan_s), sizeof(makespan_s));
    });
    std::memcpy(&run.makespan_s, bytes.data(), sizeof(double));
    cpu.push_back(child_cpu_s() - before);
  }
  std::sort(cpu.begin(), cpu.end());
  run.cpu_s = cpu[cpu.size() / 2];
  return run;
}

void compare_all(bool law, std::uint32_t num_ranks, int repetitions) {
  const TrafficMatrix traffic =
      law ? traffic_of_plan(num_ranks)
          : testing::make_traffic(testing::Pattern::kLogNormal, num_ranks, 1e6, 1);
  const Network network(load_cluster("star", {}, num_ranks));
  const Program program = testing::traffic_of(traffic, network, testing::kBare);
  const auto engine = [&](const char* name, std::optional<double> precision) {
    return [&, name, precision] {
      EngineOptions options;
      options.relative_precision = precision;
      return run_engine(name, resolve(program, network), options).makespan_s;
    };
  };
  const Run baseline = measure(repetitions, [&] { return naive(traffic, num_ranks, true); });
  const Run same_model = measure(repetitions, [&] { return naive(traffic, num_ranks, false); });
  Table table{{"program", "makespan", "difference", "CPU", "faster than naive"}, {}};
  const auto add = [&](const std::string& name, const Run& run) {
    table.rows.push_back(
        {name, fmt::format("{:.4f} ms", 1e3 * run.makespan_s),
         fmt::format("{:+.3f} %", 100.0 * (run.makespan_s / same_model.makespan_s - 1.0)),
         fmt::format("{:.4f} s", run.cpu_s), fmt::format("{:.1f}x", baseline.cpu_s / run.cpu_s)});
  };
  add("naive S4U (baseline)", baseline);
  add("naive S4U without cross-traffic", same_model);
  add("simgrid, exact", measure(repetitions, engine("simgrid", 0.0)));
  add("simgrid (default)", measure(repetitions, engine("simgrid", std::nullopt)));
  for (const double precision : {1e-3, 3e-3, 1e-2}) {
    add(fmt::format("simgrid, precision {:g}", precision),
        measure(repetitions, engine("simgrid", precision)));
  }
  add("flow, exact", measure(repetitions, engine("flow", 0.0)));
  add("flow (default)", measure(repetitions, engine("flow", std::nullopt)));
  fmt::print("{} ranks, {} transfers; median of {} runs\n\n{}", num_ranks, program.num_ops(),
             repetitions, render(table));
}

}  // namespace
}  // namespace coterie

int main(int argc, char** argv) {
  const bool law = argc < 2 || std::string(argv[1]) != "log-normal";
  const int num_ranks = law || argc < 3 ? 64 : std::max(2, std::atoi(argv[2]));
  coterie::compare_all(law, static_cast<std::uint32_t>(num_ranks),
                       argc > 3 ? std::max(1, std::atoi(argv[3])) : 5);
}
