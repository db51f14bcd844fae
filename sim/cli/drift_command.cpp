// `coterie drift`: learns placements on one window of traces and judges them on later ones: what
// re-placing gains, what moving the weights costs, and when that breaks even.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/json.hpp"
#include "core/statistics.hpp"
#include "core/table.hpp"
#include "sim/cli/commands.hpp"
#include "sim/cli/placement_options.hpp"
#include "sim/experiment/move_time.hpp"
#include "workloads/placement/distance.hpp"
#include "workloads/placement/moves.hpp"
#include "workloads/placement/windows.hpp"
#include "workloads/plan/fan_out.hpp"
#include "workloads/plan/payload.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

struct DriftArguments {
  PlacementOptions options;
  std::vector<std::string> traces;
  std::uint64_t window_tokens = 2048;
  std::uint32_t every = 1;
  std::uint32_t tokens_per_rank = 128;
  std::string weights = "bf16";
  std::uint32_t num_curve_subsets = 0;
  bool json = false;
};

// The two payloads, the network and what else stays the same for all windows.
struct DriftCase {
  const DriftArguments& arguments;
  PlacementRequest request;
  double expert_bytes = 0.0;
  PayloadSizes payload;
  DispatchPolicy policy = DispatchPolicy::kDedup;
  std::optional<LayerTimesSetup> setup;  // both with a topology only
  std::optional<Network> network;
  double loosest_cap = 0.0;  // that a placement was learnt under
};

// Means over layers, and over steps once averaged.
struct Judged {
  double fan_out = 0.0;
  double load = 0.0;        // of the fullest rank over the mean
  double wire_bytes = 0.0;  // of a step, all layers, both ways, that leave their rank
  double step_s = 0.0;      // predicted, all layers; 0 without a topology
};

struct Replacing {
  MoveCounts moves;
  double time_s = 0.0;     // with nothing else on the links
  MoveBesideSteps beside;  // zero where steps cannot go on meanwhile
};

// One way to place, over all judged windows.
struct Policy {
  std::string name;
  std::vector<Judged> windows;  // [num_judged]
  std::vector<Replacing> replacings;
  std::size_t num_steps = 0;
};

Judged judge(const DriftCase& drift, const Routing& tokens, const RankTokens& dealt,
             const Placement& placement, bool timed) {
  const std::size_t num_layers = tokens.num_layers();
  std::vector<Judged> layers(num_layers);
  for_each_layer(drift.request.num_jobs, num_layers, [&](std::size_t i) {
    const FanOut counts = fan_out(tokens, i, placement.layers[i], placement.ranks_per_node, dealt,
                                  placement.replica_choice);
    const TierRows& rows = drift.policy == DispatchPolicy::kStandard       ? counts.standard
                           : drift.policy == DispatchPolicy::kHierarchical ? counts.hierarchical
                                                                           : counts.dedup;
    const double row_bytes =
        static_cast<double>(drift.payload.dispatch_row.value + drift.payload.combine_row.value);
    layers[i].fan_out = counts.fanout_ranks;
    layers[i].load = counts.rank_load_max_over_mean;
    layers[i].wire_bytes =
        (rows.scale_up + rows.network) * row_bytes * static_cast<double>(tokens.num_tokens());
    if (timed) {
      layers[i].step_s = drift.arguments.options.times->predict_s(tokens, i, placement.layers[i],
                                                                  placement.replica_choice);
    }
  });
  Judged sum;
  for (const Judged& layer : layers) {
    sum.fan_out += layer.fan_out / static_cast<double>(num_layers);
    sum.load += layer.load / static_cast<double>(num_layers);
    sum.wire_bytes += layer.wire_bytes;
    sum.step_s += layer.step_s;
  }
  return sum;
}

Judged judge_step(const DriftCase& drift, const Routing& step, const Placement& placement) {
  const RankTokens dealt =
      deal_tokens(step, placement.num_ranks, std::nullopt, SequenceDeal::kRoundRobin);
  return judge(drift, step, dealt, placement, drift.arguments.options.times != nullptr);
}

Judged mean_of(const std::vector<Judged>& all) {
  Judged result;
  const auto count = static_cast<double>(all.size());
  for (const Judged& one : all) {
    result.fan_out += one.fan_out / count;
    result.load += one.load / count;
    result.wire_bytes += one.wire_bytes / count;
    result.step_s += one.step_s / count;
  }
  return result;
}

// Few tokens may leave no placement under the cap: it is then loosened by a twentieth, at most to
// what the ranks allow.
Placement learn(DriftCase& drift, const Routing& tokens, std::uint64_t seed) {
  PlacementRequest request = drift.request;
  request.seed = seed;
  const double loosest = 2.0 * request.num_ranks;
  for (;;) {
    try {
      Placement placement = make_placement(tokens, request);
      drift.loosest_cap = std::max(drift.loosest_cap, request.max_imbalance.value_or(0.0));
      return placement;
    } catch (const InputError&) {
      if (!request.max_imbalance || *request.max_imbalance > loosest) throw;
      request.max_imbalance = *request.max_imbalance * 1.05;
    }
  }
}

// Renumbers the new placement's ranks so that least moves, and says what does. `beside`: the step
// that goes on meanwhile, if it can.
Replacing replace(const DriftCase& drift, const Placement& before, Placement& after,
                  const Routing* beside) {
  after = renumbered_to_stay(before, after);
  Replacing result;
  result.moves = count_moves(expert_moves(before, after), after.num_ranks, after.ranks_per_node);
  if (drift.network) {
    result.time_s = move_time_s(*drift.network, result.moves, after.num_ranks, drift.expert_bytes);
    if (beside != nullptr) {
      result.beside = move_beside_steps(*drift.setup, *drift.network, *beside, before, result.moves,
                                        drift.expert_bytes);
    }
  }
  return result;
}

// The policies on windows 1 and on; window 0 is what the first placement is learnt on.
std::vector<Policy> follow(DriftCase& drift, const Routing& all,
                           const std::vector<TokenRange>& windows) {
  const auto& arguments = drift.arguments;
  const auto tokens_of = [&](std::size_t first, std::size_t last) {
    std::vector<TokenRange> sequences;
    for (std::uint64_t s = windows[first].first; s < windows[last].second; ++s) {
      sequences.emplace_back(all.sequence_begin[s], all.sequence_begin[s + 1]);
    }
    return select_tokens(all, sequences);
  };
  PlacementRequest plain;
  plain.strategy = "contiguous";
  plain.num_ranks = drift.request.num_ranks;
  plain.ranks_per_node = drift.request.ranks_per_node;
  const std::uint64_t seed = drift.request.seed;
  std::vector<Policy> policies = {
      {"contiguous", {}, {}}, {"static", {}, {}}, {"periodic", {}, {}}, {"per batch", {}, {}}};
  const Placement contiguous = make_placement(tokens_of(0, 0), plain);
  Placement fixed = learn(drift, tokens_of(0, 0), seed);
  const auto steps_of_window = [&](std::size_t w) {
    return steps_of(tokens_of(w, w), drift.request.num_ranks, arguments.tokens_per_rank);
  };
  policies[1].replacings.push_back(replace(drift, contiguous, fixed, &steps_of_window(1).front()));
  Placement periodic = fixed;
  Placement batch = fixed;
  for (std::size_t w = 1; w < windows.size(); ++w) {
    const std::vector<Routing> steps = steps_of_window(w);
    for (Policy& policy : policies) policy.num_steps += steps.size();
    if (w > 1 && w % arguments.every == 0) {
      Placement next = learn(drift, tokens_of(w - arguments.every, w - 1), seed);
      policies[2].replacings.push_back(replace(drift, periodic, next, &steps.front()));
      periodic = std::move(next);
    }
    std::vector<std::vector<Judged>> judged(policies.size());
    for (const Routing& step : steps) {
      Placement next = learn(drift, step, seed);
      policies[3].replacings.push_back(replace(drift, batch, next, nullptr));
      batch = std::move(next);
      judged[0].push_back(judge_step(drift, step, contiguous));
      judged[1].push_back(judge_step(drift, step, fixed));
      judged[2].push_back(judge_step(drift, step, periodic));
      judged[3].push_back(judge_step(drift, step, batch));
    }
    for (std::size_t p = 0; p < policies.size(); ++p) {
      policies[p].windows.push_back(mean_of(judged[p]));
    }
  }
  return policies;
}

// What a policy costs and gains over the one that it departs from.
struct Balance {
  Judged mean;
  double moved_bytes = 0.0;    // per re-placing, mean
  double most_received = 0.0;  // bytes at one rank, per re-placing, mean
  double between_nodes = 0.0;  // bytes
  double move_s = 0.0;
  MoveBesideSteps beside;
  double gain = 0.0;  // per step: seconds, or bytes on the wire without a topology
  // Steps after which a re-placing has paid, where steps stand still until the weights have arrived,
  // and where they go on beside; absent: never, or nothing moves.
  std::optional<double> break_even, break_even_beside;
};

std::vector<Balance> weigh(const DriftCase& drift, const std::vector<Policy>& policies) {
  std::vector<Balance> balances;
  for (std::size_t p = 0; p < policies.size(); ++p) {
    Balance balance;
    balance.mean = mean_of(policies[p].windows);
    const auto count = static_cast<double>(std::max<std::size_t>(policies[p].replacings.size(), 1));
    for (const Replacing& one : policies[p].replacings) {
      balance.moved_bytes += static_cast<double>(one.moves.total) * drift.expert_bytes / count;
      balance.most_received +=
          static_cast<double>(one.moves.most_received) * drift.expert_bytes / count;
      balance.between_nodes +=
          static_cast<double>(one.moves.between_nodes) * drift.expert_bytes / count;
      balance.move_s += one.time_s / count;
      balance.beside.moved_s += one.beside.moved_s / count;
      balance.beside.delay_s += one.beside.delay_s / count;
    }
    if (p > 0) {
      const Judged& from = balances[p == 1 ? 0 : 1].mean;
      const bool timed = drift.network.has_value();
      balance.gain =
          timed ? from.step_s - balance.mean.step_s : from.wire_bytes - balance.mean.wire_bytes;
      const double cost = timed ? balance.move_s : balance.moved_bytes;
      if (balance.gain > 0.0 && cost > 0.0) {
        balance.break_even = cost / balance.gain;
        if (balance.beside.moved_s > 0.0) {
          balance.break_even_beside = std::max(0.0, balance.beside.delay_s) / balance.gain;
        }
      }
    }
    balances.push_back(balance);
  }
  return balances;
}

struct CurvePoint {
  std::string trace;
  std::uint64_t num_tokens = 0;
  std::vector<double> fan_out;  // [num_subsets] on the evaluation part
  std::vector<double> load;
};

// Learns on samples of the even sequences and judges on the odd ones.
std::vector<CurvePoint> learning_curve(DriftCase& drift, const Routing& trace) {
  constexpr std::uint64_t kFewest = 64;
  constexpr int kMostPoints = 8;
  const Routing pool = select(trace, SequencePart::kEven);
  const Routing eval = select(trace, SequencePart::kOdd);
  if (eval.num_tokens() == 0) {
    throw InputError(fmt::format("trace {}", trace.origin), "one sequence",
                     "at least two, to learn on one and judge on the other");
  }
  const RankTokens dealt =
      deal_tokens(eval, drift.request.num_ranks, std::nullopt, SequenceDeal::kRoundRobin);
  std::vector<CurvePoint> curve;
  std::uint64_t num_tokens = pool.num_tokens();
  for (int i = 0; i < kMostPoints && (i == 0 || num_tokens >= kFewest); ++i, num_tokens /= 2) {
    CurvePoint point{trace.origin, num_tokens, {}, {}};
    for (std::uint32_t s = 0; s < drift.arguments.num_curve_subsets; ++s) {
      const std::uint64_t seed = drift.request.seed + s;
      const Placement placement = learn(drift, draw_tokens(pool, num_tokens, seed), seed);
      const Judged judged = judge(drift, eval, dealt, placement, false);
      point.fan_out.push_back(judged.fan_out);
      point.load.push_back(judged.load);
    }
    curve.push_back(point);
  }
  std::reverse(curve.begin(), curve.end());
  return curve;
}

double steps_per_replacing(const Policy& policy) {
  return static_cast<double>(policy.num_steps) /
         static_cast<double>(std::max<std::size_t>(policy.replacings.size(), 1));
}

std::string gigabytes(double bytes) {
  return bytes == 0.0 ? "-" : fmt::format("{:.3f}", bytes * 1e-9);
}

std::string microseconds(double seconds) {
  return seconds == 0.0 ? "-" : fmt::format("{:.0f}", seconds * 1e6);
}

void print_policies(const DriftCase& drift, const std::vector<Policy>& policies,
                    const std::vector<Balance>& balances) {
  const bool timed = drift.network.has_value();
  Table paying{{"policy", "fan-out", "load"}, {}};
  Table moving{{"policy", "re-placings", "GB moved each", "most to a rank", "between nodes"}, {}};
  const auto add = [](Table& table, std::initializer_list<const char*> names) {
    table.header.insert(table.header.end(), names.begin(), names.end());
  };
  if (timed) {
    add(paying,
        {"step us", "gain us", "move us", "delay us", "steps each", "break even", "beside"});
    add(moving, {"move us", "beside steps us"});
  } else {
    add(paying, {"step GB on wires", "gain GB", "steps each", "break even"});
  }
  for (std::size_t p = 0; p < policies.size(); ++p) {
    const Balance& b = balances[p];
    const auto steps = [](const std::optional<double>& value, bool moves) -> std::string {
      if (!value) return moves ? "never" : "-";
      return *value < 100.0 ? fmt::format("{:.1f}", *value) : fmt::format("{:.0f}", *value);
    };
    std::vector<std::string> row = {policies[p].name, fmt::format("{:.3f}", b.mean.fan_out),
                                    fmt::format("{:.3f}", b.mean.load)};
    row.push_back(timed ? fmt::format("{:.1f}", b.mean.step_s * 1e6)
                        : fmt::format("{:.4f}", b.mean.wire_bytes * 1e-9));
    row.push_back(p == 0  ? "-"
                  : timed ? fmt::format("{:.1f}", b.gain * 1e6)
                          : fmt::format("{:.4f}", b.gain * 1e-9));
    if (timed) {
      row.push_back(microseconds(b.move_s));
      row.push_back(microseconds(b.beside.delay_s));
    }
    row.push_back(p == 0 ? "-" : fmt::format("{:.1f}", steps_per_replacing(policies[p])));
    row.push_back(steps(b.break_even, b.moved_bytes > 0.0));
    if (timed) row.push_back(steps(b.break_even_beside, b.beside.moved_s > 0.0));
    paying.rows.push_back(row);
    if (p == 0) continue;
    moving.rows.push_back({policies[p].name, std::to_string(policies[p].replacings.size()),
                           gigabytes(b.moved_bytes), gigabytes(b.most_received),
                           gigabytes(b.between_nodes)});
    if (timed) {
      moving.rows.back().push_back(microseconds(b.move_s));
      moving.rows.back().push_back(microseconds(b.beside.moved_s));
    }
  }
  fmt::print("{}\n", render(paying));
  fmt::print(
      "load: of the fullest rank over the mean\n"
      "gain: per step, of static over contiguous, of the others over static\n"
      "steps each: that follow a re-placing here, before the next one or the end of the traces\n"
      "break even: steps until the gain has paid for a re-placing; where there are fewer steps "
      "each, "
      "it does not pay\n");
  if (timed) {
    fmt::print(
        "move: with nothing else on {}, steps stand still\n"
        "delay: of steps that go on beside the move, whose rows share the links with it ({:.4f} GB "
        "a step); beside: steps until the gain has paid for that\n",
        drift.network->cluster().name, balances[1].mean.wire_bytes * 1e-9);
  } else {
    fmt::print(
        "without --topology, moves break even in bytes on the wires; a step puts {:.4f} GB there "
        "(static)\n",
        balances[1].mean.wire_bytes * 1e-9);
  }
  fmt::print("\n{}", render(moving));
}

nlohmann::ordered_json as_json(const DriftCase& drift, const std::vector<Policy>& policies,
                               const std::vector<Balance>& balances,
                               const std::vector<CurvePoint>& curve) {
  const bool timed = drift.network.has_value();
  nlohmann::ordered_json document;
  document["strategy"] = drift.request.strategy;
  document["expert_bytes"] = drift.expert_bytes;
  document["loosest_cap"] = drift.loosest_cap;
  document["policies"] = nlohmann::ordered_json::array();
  for (std::size_t p = 0; p < policies.size(); ++p) {
    const Balance& b = balances[p];
    nlohmann::ordered_json entry = {{"name", policies[p].name},
                                    {"fan_out", b.mean.fan_out},
                                    {"load_max_over_mean", b.mean.load},
                                    {"wire_bytes_per_step", b.mean.wire_bytes},
                                    {"num_replacings", policies[p].replacings.size()},
                                    {"moved_bytes", b.moved_bytes},
                                    {"most_received_bytes", b.most_received},
                                    {"between_nodes_bytes", b.between_nodes}};
    if (timed) {
      entry["step_s"] = b.mean.step_s;
      entry["move_s"] = b.move_s;
      if (b.beside.moved_s > 0.0) {
        entry["move_beside_steps_s"] = b.beside.moved_s;
        entry["steps_delay_s"] = b.beside.delay_s;
      }
    }
    if (p > 0) entry[timed ? "gain_s" : "gain_bytes"] = b.gain;
    if (b.break_even) entry["break_even_steps"] = *b.break_even;
    if (b.break_even_beside) entry["break_even_beside_steps"] = *b.break_even_beside;
    if (p > 0) entry["steps_per_replacing"] = steps_per_replacing(policies[p]);
    entry["window_fan_out"] = nlohmann::ordered_json::array();
    for (const Judged& window : policies[p].windows) {
      entry["window_fan_out"].push_back(window.fan_out);
    }
    document["policies"].push_back(entry);
  }
  document["curve"] = nlohmann::ordered_json::array();
  for (const CurvePoint& point : curve) {
    document["curve"].push_back({{"trace", point.trace},
                                 {"tokens", point.num_tokens},
                                 {"fan_out", point.fan_out},
                                 {"load_max_over_mean", point.load}});
  }
  return document;
}

void run_drift(DriftArguments& arguments) {
  PlacementOptions& options = arguments.options;
  std::vector<Routing> traces;
  for (const std::string& path : arguments.traces) traces.push_back(read_routing(path));
  const Routing all = concatenate(traces);
  if (arguments.weights != "bf16" && arguments.weights != "fp8") {
    throw InputError("--weights", fmt::format("\"{}\"", arguments.weights), "one of bf16, fp8");
  }
  if (!strategy_learns(options.strategy)) {
    throw InputError("--strategy", options.strategy, "one that learns from tokens");
  }
  if (options.strategy.starts_with("collaboration") && !options.max_imbalance) {
    options.max_imbalance = 1.1;
  }
  const std::uint64_t per_step =
      std::uint64_t{options.num_ranks.value()} * arguments.tokens_per_rank;
  if (arguments.window_tokens < per_step) {
    throw InputError("--window", std::to_string(arguments.window_tokens),
                     fmt::format("at least {}, the tokens of a step", per_step));
  }
  const std::optional<ModelShape> model = find_model(options, Trace(traces.front()));
  if (!model) {
    throw InputError("--model", "no preset that fits the trace", "the model whose weights move");
  }
  if (!options.topology.empty()) options.tokens_per_rank = arguments.tokens_per_rank;
  std::optional<LayerTimesSetup> setup = layer_times_setup(options, Trace(traces.front()), all);
  if (setup) options.times = make_layer_times(*setup);
  const auto choice = replica_choice_option(options).value_or(ReplicaChoice::kLocality);
  const auto policy = parse_policy(options.dispatch);
  if (!policy) {
    throw InputError("--dispatch", fmt::format("\"{}\"", options.dispatch),
                     "one of standard, dedup, hierarchical");
  }
  const auto payload = [&](const char* option, const std::string& value) {
    const auto type = parse_payload(value);
    if (!type) throw InputError(option, fmt::format("\"{}\"", value), "one of bf16, fp8");
    return row_payload(*type, model->hidden);
  };
  DriftCase drift{
      arguments,
      placement_request(options, replicas_option(options.replicas), choice),
      static_cast<double>(expert_parameters(*model)) * (arguments.weights == "bf16" ? 2.0 : 1.0),
      {payload("--dispatch-payload", options.dispatch_payload),
       payload("--combine-payload", options.combine_payload)},
      *policy,
      std::move(setup),
      std::nullopt};
  if (strategy_needs_times(options.strategy)) drift.request.times = options.times;
  if (drift.setup) drift.network.emplace(drift.setup->cluster);
  std::vector<TokenRange> windows;
  std::uint64_t first_sequence = 0;
  std::vector<std::string> window_traces;
  for (std::size_t t = 0; t < traces.size(); ++t) {
    for (const auto& [first, last] : sequence_windows(traces[t], arguments.window_tokens)) {
      windows.emplace_back(first_sequence + first, first_sequence + last);
      window_traces.push_back(traces[t].origin);
    }
    first_sequence += traces[t].num_sequences();
  }
  if (windows.size() < 2) {
    throw InputError("--window", std::to_string(arguments.window_tokens),
                     "fewer tokens, so that there are at least two windows");
  }
  const std::vector<Policy> policies = follow(drift, all, windows);
  const std::vector<Balance> balances = weigh(drift, policies);
  std::vector<CurvePoint> curve;
  for (std::size_t t = 0; arguments.num_curve_subsets > 0 && t < traces.size(); ++t) {
    const std::vector<CurvePoint> points = learning_curve(drift, traces[t]);
    curve.insert(curve.end(), points.begin(), points.end());
  }
  if (arguments.json) {
    nlohmann::ordered_json document = as_json(drift, policies, balances, curve);
    document["window_traces"] = window_traces;
    fmt::print("{}\n", dump_json(document));
    return;
  }
  fmt::print("{} on {}; an expert of {} is {:.2f} MB ({}); steps of {}, {}\n\n", options.strategy,
             counted(drift.request.num_ranks, "rank"), model->name, drift.expert_bytes * 1e-6,
             arguments.weights, counted(per_step, "token"), counted(all.num_layers(), "layer"));
  Table drifting{{"window", "trace", "sequences", "contiguous", "static", "periodic", "per batch"},
                 {},
                 {0, 1}};
  for (std::size_t w = 0; w < windows.size(); ++w) {
    drifting.rows.push_back({std::to_string(w), window_traces[w],
                             std::to_string(windows[w].second - windows[w].first)});
    for (const Policy& one : policies) {
      drifting.rows.back().push_back(w == 0 ? "learnt on"
                                            : fmt::format("{:.3f}", one.windows[w - 1].fan_out));
    }
  }
  fmt::print("Fan-out, distinct ranks per token\n\n{}\n", render(drifting));
  print_policies(drift, policies, balances);
  if (!curve.empty()) {
    Table table{{"trace", "tokens", "fan-out", "least", "most", "load max/mean"}, {}};
    for (const CurvePoint& point : curve) {
      table.rows.push_back({point.trace, std::to_string(point.num_tokens),
                            fmt::format("{:.3f}", median(point.fan_out)),
                            fmt::format("{:.3f}", quantile(point.fan_out, 0.0)),
                            fmt::format("{:.3f}", quantile(point.fan_out, 1.0)),
                            fmt::format("{:.3f}", median(point.load))});
    }
    fmt::print(
        "\nLearnt on so many tokens of the even sequences, judged on the odd ones (median "
        "and range of {} draws)\n\n{}",
        arguments.num_curve_subsets, render(table));
  }
  if (options.max_imbalance && drift.loosest_cap > *options.max_imbalance) {
    fmt::print(
        "\nSome tokens allowed no placement under the cap of {}: it was loosened for them, to "
        "{:.3f} at most.\n",
        *options.max_imbalance, drift.loosest_cap);
  }
}

}  // namespace

void add_drift_command(CLI::App& app) {
  auto arguments = std::make_shared<DriftArguments>();
  arguments->options.strategy = "collaboration_refined";
  CLI::App* command = app.add_subcommand(
      "drift", "Judges placements on later text than they were learnt on, and when to re-place");
  add_placement_options(*command, arguments->options);
  add_time_options(*command, arguments->options);
  for (const char* name : {"TRACE", "--train", "--tokens-per-rank"}) {
    command->remove_option(command->get_option(name));
  }
  command
      ->add_option("TRACE", arguments->traces, "The .moet traces, in the order in which they come")
      ->required();
  command->get_option("--ranks")->required();
  command->get_option("--strategy")->capture_default_str();
  command->get_option("--max-imbalance")
      ->description(
          "Balance cap of the collaboration strategies on what they learn from; default: "
          "1.1. Loosened where tokens allow no placement under it");
  command
      ->add_option("--window", arguments->window_tokens,
                   "Least tokens of a window, whole sequences; the first one is learnt on")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40))
      ->capture_default_str();
  command
      ->add_option("--every", arguments->every,
                   "Windows between periodic re-placings, which learn on those just past")
      ->check(CLI::Range(1u, 1u << 20))
      ->capture_default_str();
  command
      ->add_option("--tokens-per-rank", arguments->tokens_per_rank,
                   "Tokens of a rank in a step, which is what `per batch` learns on")
      ->check(CLI::Range(1u, 1u << 24))
      ->capture_default_str();
  command->add_option("--weights", arguments->weights, "Type of the experts' weights: bf16, fp8")
      ->capture_default_str();
  command
      ->add_option("--curve", arguments->num_curve_subsets,
                   "Also learns on ever fewer tokens, so many draws of each number")
      ->check(CLI::Range(0u, 1000u))
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Print the result as JSON and nothing else");
  command->footer(
      "Example:\n  coterie drift law.moet intent.moet --ranks 8 --window 2048 --topology "
      "h200_node_calibrated --curve 5");
  command->callback([arguments] { run_drift(*arguments); });
}

}  // namespace coterie
