// `coterie place`: learns a placement and writes it, with what is left to gain and what replicas
// cost.

#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/statistics.hpp"
#include "core/table.hpp"
#include "sim/cli/commands.hpp"
#include "sim/cli/placement_options.hpp"
#include "workloads/placement/distance.hpp"
#include "workloads/plan/fan_out.hpp"
#include "workloads/plan/plan.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

struct PlaceArguments {
  PlacementOptions options;
  std::filesystem::path output;
  std::string format = "coterie";
  std::string weights = "bf16";
  std::string bound = "quick";
};

// Means over layers on the tokens that a placement was learnt on.
struct Outcome {
  std::vector<double> fan_out;  // [layers]
  double mean_fan_out = 0.0;
  double mean_load = 0.0;  // of the fullest rank over the mean
};

Outcome count_on(const Routing& training, const Placement& placement) {
  const RankTokens tokens =
      deal_tokens(training, placement.num_ranks, std::nullopt, SequenceDeal::kRoundRobin);
  Outcome outcome;
  const auto num_layers = static_cast<double>(training.num_layers());
  for (std::size_t i = 0; i < training.num_layers(); ++i) {
    const FanOut counts = fan_out(training, i, placement.layers[i], placement.ranks_per_node,
                                  tokens, placement.replica_choice);
    outcome.fan_out.push_back(counts.fanout_ranks);
    outcome.mean_fan_out += counts.fanout_ranks / num_layers;
    outcome.mean_load += counts.rank_load_max_over_mean / num_layers;
  }
  return outcome;
}

// Bytes of one routed expert's three matrices.
double expert_bytes(const ModelShape& model, const std::string& weights) {
  return 3.0 * model.hidden * model.expert_intermediate * (weights == "bf16" ? 2.0 : 1.0);
}

// Slots of replicas on the fullest rank, over all layers.
double replica_bytes_per_rank(const ModelShape& model, const std::string& weights,
                              std::uint32_t num_replicas, std::uint32_t num_ranks) {
  const double slots = (num_replicas + num_ranks - 1) / num_ranks;
  return slots * static_cast<double>(model.moe_layers.size()) * expert_bytes(model, weights);
}

std::string gigabyte_text(double bytes) {
  return fmt::format("{:.2f} GB", bytes * 1e-9);
}

// Means over the layers, seconds, on the training part.
double predicted_s(const Routing& training, const Placement& placement,
                   const PlacementOptions& options) {
  std::vector<double> layers(training.num_layers());
  for_each_layer(options.num_jobs, layers.size(), [&](std::size_t i) {
    layers[i] =
        options.times->predict_s(training, i, placement.layers[i], placement.replica_choice);
  });
  return mean(layers);
}

// Tries whole slots per rank and takes the fewest replicas that come within a percent of the best.
// What replicas are worth is judged by the predicted time over that without, where there is a cluster
// to predict it on; else by the mean of two ratios to having none: of fan-out, which dispatch pays
// for, and of the fullest rank's load, which the expert MLP pays for.
Placement recommend_replicas(const Trace& trace, const PlaceArguments& arguments,
                             ReplicaChoice choice, const std::optional<ModelShape>& model) {
  constexpr std::uint32_t kMostSlots = 4;  // of replicas per rank
  constexpr double kWorthIt = 1.01;
  const auto* routing = std::get_if<Routing>(&trace);
  if (routing == nullptr || !strategy_learns(arguments.options.strategy)) {
    throw InputError("--replicas", "auto", "a number, but for strategies that learn from tokens");
  }
  if (!arguments.options.num_ranks)
    throw InputError("--ranks", "nothing", "the number of EP ranks");
  const std::uint32_t num_ranks = *arguments.options.num_ranks;
  const Routing training = select(*routing, part_option("--train", arguments.options.train));
  Table table{{"replicas", "slots per rank", "fan-out", "load max/mean", "worth"}, {}};
  const bool timed = arguments.options.times != nullptr;
  if (timed) table.header.emplace_back("predicted us");
  if (model) table.header.emplace_back("more weights per rank");
  std::vector<Placement> placements;
  std::vector<double> scores;
  Outcome none;
  double none_s = 0.0;
  for (std::uint32_t slots = 0; slots <= kMostSlots; ++slots) {
    const std::uint32_t replicas = slots * num_ranks;
    if (replicas > routing->num_experts * (num_ranks - 1)) break;
    placements.push_back(learn_placement(trace, arguments.options, replicas, choice));
    const Outcome outcome = count_on(training, placements.back());
    if (slots == 0) none = outcome;
    const double time_s = timed ? predicted_s(training, placements.back(), arguments.options) : 0.0;
    if (slots == 0) none_s = time_s;
    scores.push_back(timed ? time_s / none_s
                           : 0.5 * (outcome.mean_fan_out / none.mean_fan_out +
                                    outcome.mean_load / none.mean_load));
    table.rows.push_back(
        {std::to_string(replicas),
         fmt::format("{:.1f}", static_cast<double>(routing->num_experts + replicas) / num_ranks),
         fmt::format("{:.3f}", outcome.mean_fan_out), fmt::format("{:.3f}", outcome.mean_load),
         fmt::format("{:.3f}", scores.back())});
    if (timed) table.rows.back().push_back(fmt::format("{:.1f}", time_s * 1e6));
    if (model) {
      table.rows.back().push_back(
          gigabyte_text(replica_bytes_per_rank(*model, arguments.weights, replicas, num_ranks)));
    }
  }
  const double best = *std::min_element(scores.begin(), scores.end());
  std::size_t chosen = 0;
  while (scores[chosen] > kWorthIt * best) ++chosen;
  fmt::print(
      "Replicas on the training part ({} choice); worth: {} over {} without\n\n{}\n{} replicas are "
      "recommended, the fewest that come within 1 percent of the best of these{}.\n\n",
      to_string(choice), timed ? "predicted time" : "the mean of fan-out and load",
      timed ? "that" : "those", render(table), chosen * num_ranks,
      chosen > 0 && chosen + 1 == scores.size() ? "; more may lower it further" : "");
  return placements[chosen];
}

void print_bound(const Routing& training, const Placement& placement,
                 const PlacementOptions& options, BoundEffort effort) {
  const Outcome outcome = count_on(training, placement);
  const FanOutDistance mean = mean_distance(fan_out_distance(
      training, placement, outcome.fan_out, options.max_imbalance, effort, options.num_jobs));
  fmt::print(
      "On the training part: fan-out {:.3f}, load max/mean {:.3f}\nNo placement of as many "
      "slots{} has a fan-out below {:.3f} there: this one is at most {:.1f} percent from "
      "optimal.\n",
      mean.reached, outcome.mean_load,
      options.max_imbalance ? fmt::format(" under the cap of {}", *options.max_imbalance) : "",
      mean.bound, 100.0 * mean.excess());
}

double time_bound_s(const Routing& training, const Placement& placement,
                    const PlacementOptions& options, BoundEffort effort) {
  std::vector<double> layers(training.num_layers());
  for_each_layer(options.num_jobs, layers.size(), [&](std::size_t i) {
    std::size_t slots = 0;
    std::size_t most = 0;
    for (const auto& experts : placement.layers[i].rank_experts) {
      slots += experts.size();
      most = std::max(most, experts.size());
    }
    layers[i] =
        options.times->bound_s(training, i, static_cast<std::uint32_t>(most),
                               static_cast<std::uint32_t>(slots - training.num_experts), effort);
  });
  return mean(layers);
}

// The predicted time of the placement, that of contiguous, and what none can be below.
void print_times(const Routing& training, const Placement& placement,
                 const PlacementOptions& options, std::optional<BoundEffort> effort) {
  PlacementRequest request;
  request.strategy = "contiguous";
  request.num_ranks = placement.num_ranks;
  request.ranks_per_node = placement.ranks_per_node;
  const double reached_s = predicted_s(training, placement, options);
  const double contiguous_s = predicted_s(training, make_placement(training, request), options);
  fmt::print(
      "Predicted there ({} dispatch on {}): {:.1f} us per layer, contiguous {:.1f} us ({:.2f} "
      "times "
      "as long)\n",
      options.dispatch, options.topology, reached_s * 1e6, contiguous_s * 1e6,
      contiguous_s / reached_s);
  if (!effort) return;
  const double bound_s = time_bound_s(training, placement, options, *effort);
  fmt::print(
      "No placement of as many slots is predicted below {:.1f} us: this one is at most {:.1f} "
      "percent from optimal.\n",
      bound_s * 1e6, 100.0 * (reached_s / bound_s - 1.0));
}

void write_flags(const std::filesystem::path& output, const std::string& flags) {
  std::filesystem::path path = output;
  path += ".flags";
  write_file(path, flags);
  fmt::print("{}:\n{}", path.string(), flags);
}

void run_place(PlaceArguments& arguments) {
  PlacementOptions& options = arguments.options;
  const auto format = parse_placement_format(arguments.format);
  if (!format) {
    throw InputError("--format", fmt::format("\"{}\"", arguments.format),
                     fmt::format("one of {}", placement_format_names()));
  }
  if (arguments.weights != "bf16" && arguments.weights != "fp8") {
    throw InputError("--weights", fmt::format("\"{}\"", arguments.weights), "one of bf16, fp8");
  }
  const ReplicaChoice choice =
      replica_choice_option(options).value_or(default_replica_choice(*format));
  const Trace trace = read_moet(options.trace);
  const std::optional<ModelShape> model = find_model(options, trace);
  bound_option(arguments.bound);
  std::optional<Routing> training;
  if (const auto* routing = std::get_if<Routing>(&trace)) {
    training = select(*routing, part_option("--train", options.train));
    options.times = layer_times_option(options, trace, *training);
  }
  const Placement placement =
      options.replicas == "auto"
          ? recommend_replicas(trace, arguments, choice, model)
          : learn_placement(trace, options, replicas_option(options.replicas), choice);
  std::optional<ModelLayers> layers;
  if (model) layers = ModelLayers{model->num_layers, model->moe_layers};
  write_placement(arguments.output, placement, *format, layers);
  fmt::print("{}: {} of {} on {} ({} per node), {}, {}\n", arguments.output.string(),
             counted(placement.layers.size(), "layer"), counted(placement.num_experts, "expert"),
             counted(placement.num_ranks, "rank"), placement.ranks_per_node, placement.strategy,
             placement.trained_on.empty() ? "nothing learnt"
                                          : fmt::format("learnt on {}", placement.trained_on));
  std::size_t slots = 0;
  for (const auto& experts : placement.layers.at(0).rank_experts) slots += experts.size();
  const auto num_replicas = static_cast<std::uint32_t>(slots - placement.num_experts);
  if (num_replicas > 0) {
    fmt::print("{} per layer, for engines that choose by {}{}\n", counted(num_replicas, "replica"),
               to_string(choice),
               model
                   ? fmt::format("; {} more of {} weights on the fullest rank ({})",
                                 gigabyte_text(replica_bytes_per_rank(
                                     *model, arguments.weights, num_replicas, placement.num_ranks)),
                                 arguments.weights, model->name)
                   : "");
  }
  const std::optional<BoundEffort> effort = bound_option(arguments.bound);
  if (training && training->num_tokens() > 0) {
    if (effort) print_bound(*training, placement, options, *effort);
    if (options.times != nullptr) print_times(*training, placement, options, effort);
  }
  if (const std::string flags = launch_flags(placement, *format, arguments.output);
      !flags.empty()) {
    write_flags(arguments.output, flags);
  }
}

}  // namespace

void add_place_command(CLI::App& app) {
  auto arguments = std::make_shared<PlaceArguments>();
  CLI::App* command = app.add_subcommand("place", "Learns which rank hosts which expert");
  add_placement_options(*command, arguments->options);
  add_time_options(*command, arguments->options);
  command->get_option("--ranks")->required();
  command->get_option("--strategy")->required();
  command->get_option("--replicas")
      ->description(
          "Extra expert slots per layer (strategies that learn); auto tries several and "
          "recommends; default: 0");
  command->get_option("--replica-choice")
      ->description(
          fmt::format("How the engine chooses among replicas: {}; default: as the format's "
                      "engine, locality for coterie",
                      replica_choice_names()));
  command->add_option("-o,--output", arguments->output, "The placement to write")->required();
  command
      ->add_option("--format", arguments->format,
                   "coterie; eplb (physical_to_logical_map as EPLB returns it); or what an engine "
                   "loads, with its launch flags beside it in FILE.flags: sglang, trtllm, "
                   "vllm-ascend. vLLM itself reads no placement")
      ->capture_default_str();
  command
      ->add_option("--weights", arguments->weights,
                   "Type of the experts' weights, for the memory of replicas: bf16, fp8")
      ->capture_default_str();
  add_bound_option(*command, arguments->bound);
  command->footer(
      "Examples:\n  coterie place law.moet --ranks 8 --strategy collaboration_refined "
      "--max-imbalance 1.1 -o placement.json\n  coterie place law.moet --ranks 8 --strategy "
      "collaboration_refined --replicas auto --format sglang -o location.json");
  command->callback([arguments] { run_place(*arguments); });
}

}  // namespace coterie
