// `coterie analyze`: what a placement makes of a trace, counted without simulating anything.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/json.hpp"
#include "core/table.hpp"
#include "core/units.hpp"
#include "sim/cli/commands.hpp"
#include "sim/cli/placement_options.hpp"
#include "workloads/model.hpp"
#include "workloads/placement/distance.hpp"
#include "workloads/plan/fan_out.hpp"
#include "workloads/plan/payload.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

using Json = nlohmann::ordered_json;

struct AnalyzeArguments {
  PlacementOptions options;
  std::string placement_file;
  std::string eval = "odd";
  bool allow_training_part = false;
  bool json = false;
  std::string bound = "quick";
  std::optional<std::uint32_t> hidden;
  std::string payload = "bf16";
  std::string deal = "round_robin";
};

// The width of a token row, and where it is known from.
struct Hidden {
  std::uint32_t values = 0;
  std::string source;
};

std::optional<Hidden> find_hidden(const AnalyzeArguments& arguments, const Routing& trace) {
  if (arguments.hidden) return Hidden{*arguments.hidden, "--hidden"};
  const std::optional<ModelShape> model = find_model(arguments.options, trace);
  if (!model) return std::nullopt;
  const bool named = !arguments.options.model.empty() || model->name == trace.model;
  return Hidden{model->hidden, named ? model->name : fmt::format("the shape of {}", model->name)};
}

// Dispatch rows and bytes of one policy, mean per token and layer.
struct PolicyTraffic {
  std::string policy;
  TierRows rows;
  TierRows copies;  // served by those rows, for the metadata
  std::optional<TierRows> bytes;
};

struct Analysis {
  std::vector<FanOut> layers;
  FanOut mean;
  std::vector<PolicyTraffic> traffic;
  std::vector<FanOutDistance> distances;  // [layers], empty where not asked for
};

void accumulate(TierRows& sum, const TierRows& rows, double share) {
  sum.local += share * rows.local;
  sum.scale_up += share * rows.scale_up;
  sum.network += share * rows.network;
}

FanOut mean_fan_out(const std::vector<FanOut>& layers) {
  FanOut mean;
  const double share = 1.0 / static_cast<double>(layers.size());
  for (const FanOut& layer : layers) {
    mean.copies += share * layer.copies;
    mean.fanout_ranks += share * layer.fanout_ranks;
    mean.remote_fanout_ranks += share * layer.remote_fanout_ranks;
    mean.fanout_nodes += share * layer.fanout_nodes;
    mean.remote_fanout_nodes += share * layer.remote_fanout_nodes;
    mean.rank_load_max_over_mean += share * layer.rank_load_max_over_mean;
    accumulate(mean.standard, layer.standard, share);
    accumulate(mean.dedup, layer.dedup, share);
    accumulate(mean.hierarchical, layer.hierarchical, share);
    accumulate(mean.hierarchical_copies, layer.hierarchical_copies, share);
  }
  return mean;
}

TierRows bytes_of(const PolicyTraffic& traffic, Bytes row) {
  const auto bytes = [&](double rows, double copies) {
    return rows * static_cast<double>(row.value + kRowMetadataBytes) +
           copies * static_cast<double>(kCopyMetadataBytes);
  };
  return {bytes(traffic.rows.local, traffic.copies.local),
          bytes(traffic.rows.scale_up, traffic.copies.scale_up),
          bytes(traffic.rows.network, traffic.copies.network)};
}

Analysis analyze(const Routing& evaluated, const Placement& placement, SequenceDeal deal,
                 std::optional<Bytes> row) {
  const RankTokens tokens = deal_tokens(evaluated, placement.num_ranks, std::nullopt, deal);
  Analysis analysis;
  for (std::size_t i = 0; i < evaluated.num_layers(); ++i) {
    analysis.layers.push_back(fan_out(evaluated, i, placement.layers[i], placement.ranks_per_node,
                                      tokens, placement.replica_choice));
  }
  analysis.mean = mean_fan_out(analysis.layers);
  const FanOut& mean = analysis.mean;
  analysis.traffic = {{"standard", mean.standard, mean.standard, {}},
                      {"dedup", mean.dedup, mean.standard, {}},
                      {"hierarchical", mean.hierarchical, mean.hierarchical_copies, {}}};
  if (row) {
    for (PolicyTraffic& traffic : analysis.traffic) traffic.bytes = bytes_of(traffic, *row);
  }
  return analysis;
}

Json counts_json(const FanOut& counts) {
  return {{"copies", counts.copies},
          {"fanout_ranks", counts.fanout_ranks},
          {"remote_fanout_ranks", counts.remote_fanout_ranks},
          {"fanout_nodes", counts.fanout_nodes},
          {"remote_fanout_nodes", counts.remote_fanout_nodes},
          {"rank_load_max_over_mean", counts.rank_load_max_over_mean}};
}

void add_bound(Json& counts, const FanOutDistance& distance) {
  counts["fanout_ranks_bound"] = distance.bound;
}

Json tiers_json(const TierRows& rows) {
  return {{"local", rows.local}, {"scale_up", rows.scale_up}, {"network", rows.network}};
}

void print_json(const Analysis& analysis, const Placement& placement) {
  Json document;
  document["schema_version"] = 1;
  document["layers"] = Json::array();
  for (std::size_t i = 0; i < analysis.layers.size(); ++i) {
    Json layer = {{"layer", placement.layers[i].layer}};
    layer.update(counts_json(analysis.layers[i]));
    if (!analysis.distances.empty()) add_bound(layer, analysis.distances[i]);
    document["layers"].push_back(std::move(layer));
  }
  document["mean"] = counts_json(analysis.mean);
  if (!analysis.distances.empty()) {
    add_bound(document["mean"], mean_distance(analysis.distances));
    document["fanout_percent_from_optimal_at_most"] =
        100.0 * mean_distance(analysis.distances).excess();
  }
  document["strategy"] = placement.strategy;
  document["trained_on"] = placement.trained_on;
  document["num_ranks"] = placement.num_ranks;
  document["ranks_per_node"] = placement.ranks_per_node;
  document["replica_choice"] = to_string(placement.replica_choice);
  for (const PolicyTraffic& traffic : analysis.traffic) {
    Json& policy = document["dispatch_per_token"][traffic.policy];
    policy["rows"] = tiers_json(traffic.rows);
    if (traffic.bytes) policy["bytes"] = tiers_json(*traffic.bytes);
  }
  fmt::print("{}\n", dump_json(document, 2));
}

void print_tables(const Analysis& analysis, const Placement& placement, const Routing& evaluated) {
  const auto cells = [](const std::string& name, const FanOut& counts) {
    return std::vector<std::string>{name,
                                    fmt::format("{:.0f}", counts.copies),
                                    fmt::format("{:.3f}", counts.fanout_ranks),
                                    fmt::format("{:.3f}", counts.remote_fanout_ranks),
                                    fmt::format("{:.3f}", counts.fanout_nodes),
                                    fmt::format("{:.3f}", counts.remote_fanout_nodes),
                                    fmt::format("{:.3f}", counts.rank_load_max_over_mean)};
  };
  Table counts{{"layer", "copies", "fan-out", "remote fan-out", "node fan-out",
                "remote node fan-out", "load max/mean"},
               {}};
  for (std::size_t i = 0; i < analysis.layers.size(); ++i) {
    counts.rows.push_back(cells(std::to_string(placement.layers[i].layer), analysis.layers[i]));
  }
  counts.rows.push_back(cells("mean", analysis.mean));
  fmt::print("{}\n", render(counts));
  fmt::print("Independent uniform routing on {}: fan-out {:.3f}\n",
             counted(placement.num_ranks, "rank"),
             uniform_fan_out(evaluated.num_experts, placement.num_ranks, evaluated.num_topk));
  if (!analysis.distances.empty()) {
    const FanOutDistance mean = mean_distance(analysis.distances);
    fmt::print(
        "No placement of as many slots has a fan-out below {:.3f} on these tokens: this one "
        "is at most {:.1f} percent from optimal.\n",
        mean.bound, 100.0 * mean.excess());
  }
  fmt::print("\n");

  Table traffic{{"dispatch, per token", "local rows", "scale-up rows", "network rows"}, {}};
  const bool with_bytes = analysis.traffic.front().bytes.has_value();
  if (with_bytes) {
    traffic.header.insert(traffic.header.end(), {"scale-up bytes", "network bytes"});
  }
  for (const PolicyTraffic& policy : analysis.traffic) {
    std::vector<std::string> row = {policy.policy, fmt::format("{:.3f}", policy.rows.local),
                                    fmt::format("{:.3f}", policy.rows.scale_up),
                                    fmt::format("{:.3f}", policy.rows.network)};
    if (with_bytes) {
      row.push_back(fmt::format("{:.0f}", policy.bytes->scale_up));
      row.push_back(fmt::format("{:.0f}", policy.bytes->network));
    }
    traffic.rows.push_back(std::move(row));
  }
  fmt::print("{}", render(traffic));
}

// Slots of a layer beyond one per expert; layers have equally many.
std::size_t num_replicas(const Placement& placement) {
  if (placement.layers.empty()) return 0;
  std::size_t slots = 0;
  for (const auto& experts : placement.layers.front().rank_experts) slots += experts.size();
  return slots - std::min<std::size_t>(slots, placement.num_experts);
}

Placement get_placement(const AnalyzeArguments& arguments, const Routing& trace,
                        SequencePart eval) {
  const PlacementOptions& options = arguments.options;
  if (options.strategy.empty() == arguments.placement_file.empty()) {
    throw InputError("--placement and --strategy", options.strategy.empty() ? "neither" : "both",
                     "one of them");
  }
  const auto refuse = [&](const std::string& trained) {
    throw InputError("--eval", arguments.eval,
                     fmt::format("sequences that the placement was not learnt on ({}): evaluating "
                                 "on the training part flatters it; --allow-training-part does it "
                                 "all the same",
                                 trained));
  };
  const std::optional<ReplicaChoice> choice = replica_choice_option(options);
  Placement placement;
  if (!options.strategy.empty()) {
    const SequencePart train = part_option("--train", options.train);
    const bool overlap = train == eval || train == SequencePart::kAll || eval == SequencePart::kAll;
    if (strategy_learns(options.strategy) && overlap && !arguments.allow_training_part) {
      refuse(fmt::format("--train {}", options.train));
    }
    placement = learn_placement(trace, options, replicas_option(options.replicas),
                                choice.value_or(ReplicaChoice::kLocality));
  } else {
    placement = read_placement(arguments.placement_file, options.num_ranks);
    for (const std::string& key : placement.keys_left_aside) {
      spdlog::info("{}: the key {} is left aside", arguments.placement_file, key);
    }
    if (learnt_from(placement, trace, eval) && !arguments.allow_training_part) {
      refuse(placement.trained_on);
    }
    expect_experts(placement, trace.num_experts, arguments.placement_file);
    placement = select_layers(placement, trace.layers);
    // Engines' files say nothing of it.
    if (!choice && placement.trained_on.empty() && num_replicas(placement) > 0) {
      spdlog::info(
          "{}: counted as if its replicas were chosen by {}; --replica-choice takes the engine's "
          "rule",
          arguments.placement_file, to_string(placement.replica_choice));
    }
  }
  if (options.ranks_per_node) placement.ranks_per_node = *options.ranks_per_node;
  if (choice) placement.replica_choice = *choice;
  if (placement.ranks_per_node < placement.num_ranks &&
      placement.num_ranks % placement.ranks_per_node != 0) {
    throw InputError(
        "--ranks-per-node",
        fmt::format("{} for {}", placement.ranks_per_node, counted(placement.num_ranks, "rank")),
        "a number that divides the ranks");
  }
  return placement;
}

void run_analyze(const AnalyzeArguments& arguments) {
  const auto payload = parse_payload(arguments.payload);
  if (!payload) {
    throw InputError("--payload", fmt::format("\"{}\"", arguments.payload), "one of bf16, fp8");
  }
  if (arguments.deal != "round_robin" && arguments.deal != "in_order") {
    throw InputError("--deal", fmt::format("\"{}\"", arguments.deal),
                     "one of round_robin, in_order");
  }
  const SequenceDeal deal =
      arguments.deal == "in_order" ? SequenceDeal::kInOrder : SequenceDeal::kRoundRobin;
  const SequencePart eval = part_option("--eval", arguments.eval);
  const Routing trace = read_routing(arguments.options.trace);
  const Placement placement = get_placement(arguments, trace, eval);
  const Routing evaluated = select(trace, eval);
  const std::optional<Hidden> hidden = find_hidden(arguments, trace);
  Analysis analysis =
      analyze(evaluated, placement, deal,
              hidden ? std::optional(row_payload(*payload, hidden->values)) : std::nullopt);
  if (const auto effort = bound_option(arguments.bound)) {
    std::vector<double> reached;
    for (const FanOut& layer : analysis.layers) reached.push_back(layer.fanout_ranks);
    analysis.distances = fan_out_distance(evaluated, placement, reached, std::nullopt, *effort,
                                          arguments.options.num_jobs);
  }
  if (arguments.json) {
    print_json(analysis, placement);
    return;
  }
  const std::size_t replicas = num_replicas(placement);
  fmt::print(
      "{}: {} sequences ({}) on {}, {} per node\nPlacement {}{}{}\n\n", arguments.options.trace,
      arguments.eval, counted(evaluated.num_tokens(), "token"),
      counted(placement.num_ranks, "rank"), placement.ranks_per_node, placement.strategy,
      placement.trained_on.empty() ? "" : fmt::format(", learnt on {}", placement.trained_on),
      replicas == 0 ? ""
                    : fmt::format("\n{} per layer, chosen by {}", counted(replicas, "replica"),
                                  to_string(placement.replica_choice)));
  print_tables(analysis, placement, evaluated);
  if (hidden) {
    fmt::print("Rows of {} ({}) in {}, with metadata.\n", counted(hidden->values, "value"),
               hidden->source, arguments.payload);
  } else {
    spdlog::info("no bytes: the trace names no known model; give --model or --hidden");
  }
}

}  // namespace

void add_analyze_command(CLI::App& app) {
  auto arguments = std::make_shared<AnalyzeArguments>();
  CLI::App* command =
      app.add_subcommand("analyze", "Counts fan-out, load and bytes of a placement on a trace");
  add_placement_options(*command, arguments->options);
  command->get_option("--ranks")->description("EP ranks; default: the placement file's");
  command->get_option("--strategy")
      ->description(fmt::format("How experts are placed: {}; default: as --placement says",
                                fmt::join(placement_strategies(), ", ")));
  command->get_option("--replica-choice")
      ->description(fmt::format("How the engine chooses among replicas: {}; default: the "
                                "placement file's, else locality",
                                replica_choice_names()));
  command->add_option("--placement", arguments->placement_file,
                      "A placement file, instead of --strategy: ours, or EPLB's, SGLang's, "
                      "TensorRT-LLM's or vLLM-Ascend's; default: none");
  command->add_option("--eval", arguments->eval, "Sequences to evaluate on: even, odd, all")
      ->capture_default_str();
  command->add_flag("--allow-training-part", arguments->allow_training_part,
                    "Evaluate even on sequences that the placement was learnt on");
  add_bound_option(*command, arguments->bound);
  command->add_option("--hidden", arguments->hidden, "Values of a token row; default: the model's")
      ->check(CLI::Range(1u, 1u << 20));
  command->add_option("--payload", arguments->payload, "Type of the dispatched rows: bf16, fp8")
      ->capture_default_str();
  command
      ->add_option("--deal", arguments->deal, "How sequences come to ranks: round_robin, in_order")
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Print the machine form only");
  command->footer(
      "Means per token; the last row is the mean over layers.\n"
      "  copies          k, what standard dispatch sends (those for the own rank included)\n"
      "  fan-out         distinct ranks that host one of the token's experts, own rank included\n"
      "  remote fan-out  distinct ranks other than the token's own\n"
      "  load max/mean   (token, expert) pairs of the fullest rank over the mean\n\n"
      "Example:\n  coterie analyze law.moet --ranks 8 --strategy collaboration");
  command->callback([arguments] { run_analyze(*arguments); });
}

}  // namespace coterie
