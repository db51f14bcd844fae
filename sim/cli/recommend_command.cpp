// `coterie recommend`: which parallel sizes, transport, batch, placement and replicas suit a step.

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/table.hpp"
#include "sim/cli/commands.hpp"
#include "sim/experiment/simulate.hpp"
#include "sim/sweep/recommend.hpp"
#include "sim/sweep/rows.hpp"
#include "sim/sweep/runner.hpp"

namespace coterie {
namespace {

struct RecommendArguments {
  RecommendRequest request;
  std::string tpot, ttft, memory;
  double price = 0.0;
  std::vector<std::string> overrides;
  SweepOptions options;
  std::size_t num_best = 5;
  bool json = false;
};

nlohmann::ordered_json evaluate_candidate(const SweepSpec& spec, const std::filesystem::path& cache,
                                          const SweepPoint& point) {
  const Experiment experiment = load_experiment(spec.base, overrides_of(spec, point));
  SimulateOptions simulation;
  simulation.cache = cache;
  simulation.timelines = false;
  return sweep_rows(experiment, simulate(experiment, simulation));
}

nlohmann::ordered_json recommendation_json(const Recommendation& one) {
  nlohmann::ordered_json json;
  nlohmann::ordered_json settings;
  for (const auto& [key, value] : one.settings) settings[key] = value;
  json["settings"] = settings;
  json["run"] = one.run;
  json["placement"] = one.placement;
  json["replicas"] = one.num_replicas;
  json["dispatch"] = one.policy;
  json["time_s"] = one.time_s;
  json["tokens_per_s_per_gpu"] = one.tokens_per_s_per_gpu;
  json["num_gpus"] = one.num_gpus;
  json["latency_s"] = one.latency_s ? nlohmann::ordered_json(*one.latency_s) : nullptr;
  json["memory_share"] = one.memory_share;
  json["cost_per_million_tokens"] = one.cost ? nlohmann::ordered_json(*one.cost) : nullptr;
  json["binds"] = one.binds;
  json["within_limits"] = one.within_limits;
  json["on_front"] = one.on_front;
  return json;
}

void print_best(const RecommendArguments& arguments, const std::vector<Recommendation>& all,
                StepKind kind) {
  const bool serves = kind != StepKind::kTrain;
  std::vector<std::string> header{"",    "settings", "run", "placement +replicas", "tokens/s/GPU",
                                  "step"};
  if (serves) header.emplace_back(kind == StepKind::kDecode ? "TPOT" : "TTFT");
  header.emplace_back("memory");
  if (arguments.request.price) header.emplace_back("cost per 1M tokens");
  header.emplace_back("what binds");
  Table table{header, {}, {1, 2, 3, header.size() - 1}};
  for (const Recommendation& one : all) {
    if (table.rows.size() == arguments.num_best || !one.within_limits) break;
    std::vector<std::string> row{std::to_string(table.rows.size() + 1),
                                 settings_text(one.settings),
                                 one.run,
                                 placement_text(one),
                                 fmt::format("{:.0f}", one.tokens_per_s_per_gpu),
                                 format_seconds({one.time_s})};
    if (serves) row.push_back(one.latency_s ? format_seconds({*one.latency_s}) : "");
    row.push_back(one.memory_share > 0.0 ? fmt::format("{:.0f} %", 100.0 * one.memory_share) : "");
    if (arguments.request.price) row.push_back(fmt::format("{:.3f}", one.cost.value_or(0.0)));
    row.push_back(one.binds);
    table.rows.push_back(std::move(row));
  }
  fmt::print("{}", render(table));
}

struct Searched {
  std::vector<Recommendation> ranked;
  SweepCounts counts;
};

// Simulates the candidates as a sweep, whose file is written. Its results lie in the folder of the
// options, or in one below it whose name is `below` and the sweep's id: candidates that follow from
// others are another sweep when those change.
Searched search(const RecommendRequest& request, const SearchSpace& space,
                const std::filesystem::path& experiment, const std::filesystem::path& file,
                SweepOptions options, const std::optional<std::string>& below) {
  const std::filesystem::path cache = options.folder / "cache";
  make_folder(cache);
  write_file(file, sweep_text(space.candidates, std::filesystem::absolute(experiment)));
  const SweepSpec spec = load_sweep(file);
  if (below) options.folder /= *below + spec.id.substr(0, 8);
  make_folder(options.folder);
  Searched searched;
  searched.counts = run_points(spec, options, [&](const SweepPoint& point) {
    return evaluate_candidate(spec, cache, point);
  });
  const std::vector<nlohmann::json> entries = collect(spec, options.folder);
  write_sweep_tables(spec, entries, options.folder);
  searched.ranked = rank_candidates(request, entries, spec);
  return searched;
}

void run_recommend(RecommendArguments& arguments) {
  RecommendRequest& request = arguments.request;
  request.overrides = parse_overrides(arguments.overrides);
  if (!arguments.tpot.empty()) request.tpot_s = parse_seconds(arguments.tpot, "--tpot").value;
  if (!arguments.ttft.empty()) request.ttft_s = parse_seconds(arguments.ttft, "--ttft").value;
  if (arguments.price > 0.0) request.price = arguments.price;
  if (!arguments.memory.empty()) {
    request.memory_bytes = static_cast<double>(parse_bytes(arguments.memory, "--memory").value);
  }
  check(request.runs);
  const SearchSpace space = search_space(request);
  const Experiment base = load_experiment(request.experiment, request.overrides);
  SweepOptions& options = arguments.options;
  if (options.num_jobs == 0) options.num_jobs = std::max(1U, std::thread::hardware_concurrency());
  make_folder(options.folder);
  // What --set changed is in the effective experiment, which stands beside the results.
  const std::filesystem::path experiment = options.folder / "experiment.yaml";
  write_file(experiment, base.effective_yaml);
  const Searched sizes =
      search(request, space, experiment, options.folder / "sweep.yaml", options, std::nullopt);
  const std::size_t left = request.max_points - space.candidates.size();
  const SearchSpace variants = placement_space(request, sizes.ranked, left);
  std::vector<Recommendation> all = sizes.ranked;
  SweepCounts counts = sizes.counts;
  if (!variants.candidates.empty()) {
    const Searched placed = search(request, variants, experiment,
                                   options.folder / "placements.yaml", options, "placements-");
    all = merge_ranked(std::move(all), placed.ranked, base.step->kind);
    counts.total += placed.counts.total;
    counts.failed += placed.counts.failed;
  }
  nlohmann::ordered_json json;
  json["schema_version"] = 1;
  json["fitting"] = space.num_fitting + variants.num_fitting;
  json["too_large"] = space.num_too_large + variants.num_too_large;
  json["too_slow"] = space.num_too_slow;
  json["simulated"] = counts.total;
  json["failed"] = counts.failed;
  json["candidates"] = nlohmann::ordered_json::array();
  for (const Recommendation& one : all) json["candidates"].push_back(recommendation_json(one));
  write_file(options.folder / "recommend.json", json.dump(1) + "\n");
  write_file(options.folder / "pareto.svg", pareto_svg(all, base.step->kind));
  if (arguments.json) {
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print(
      "{} fit, {} do not, {} are too slow even without communication; {} simulated, {} "
      "failed\n\n",
      counted(space.num_fitting + variants.num_fitting, "candidate"),
      space.num_too_large + variants.num_too_large, space.num_too_slow, counts.total,
      counts.failed);
  if (all.empty() || !all.front().within_limits) {
    throw CheckError("no simulated candidate keeps the limits; recommend.json has them all");
  }
  print_best(arguments, all, base.step->kind);
  fmt::print("\nall candidates in {}; the front in {}\n",
             (options.folder / "recommend.json").string(),
             (options.folder / "pareto.svg").string());
}

}  // namespace

void add_recommend_command(CLI::App& app) {
  auto arguments = std::make_shared<RecommendArguments>();
  arguments->options.num_jobs = 0;
  CLI::App* command = app.add_subcommand(
      "recommend",
      "Searches parallel sizes, transport, batch, placement and replicas of a step within stated "
      "limits");
  command->add_option("EXPERIMENT", arguments->request.experiment, "A YAML file with a step block")
      ->required();
  command
      ->add_option("-o,--output", arguments->options.folder,
                   "Folder for recommend.json, pareto.svg and the sweep behind them")
      ->required();
  add_set_option(*command, arguments->overrides, "the experiment");
  command
      ->add_option("--gpus", arguments->request.gpus,
                   "Numbers of GPUs to try (default: the experiment's ranks)")
      ->delimiter(',')
      ->check(CLI::Range(1U, 1U << 20));
  command->add_option("--tpot", arguments->tpot,
                      "Longest time per output token, \"50 ms\"; default: no limit");
  command->add_option("--ttft", arguments->ttft,
                      "Longest time to the first token, \"2 s\"; default: no limit");
  command->add_option("--memory", arguments->memory,
                      "Most memory of a GPU, \"70 GiB\"; default: what the GPU has");
  command
      ->add_option("--placements", arguments->request.runs.placements,
                   "Strategies or placement files to try (default: those of the runs and, unless "
                   "routing is balanced, contiguous, load_balanced and collaboration_two_level)")
      ->delimiter(',');
  command
      ->add_option("--replicas", arguments->request.runs.replicas,
                   "Numbers of expert replicas to try (default: those of the runs, the fewest that "
                   "divide over the EP ranks and, unless routing is balanced, one more per rank)")
      ->delimiter(',')
      ->check(CLI::Range(0U, 1U << 16));
  command
      ->add_option("--price", arguments->price,
                   "Price of a GPU hour, for costs per million tokens; default: no costs")
      ->check(CLI::PositiveNumber);
  command->add_option("--max-points", arguments->request.max_points, "Candidates to simulate")
      ->check(CLI::Range(std::size_t{1}, std::size_t{100000}))
      ->capture_default_str();
  command->add_option("--best", arguments->num_best, "How many to print")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1000}))
      ->capture_default_str();
  command
      ->add_option("--jobs", arguments->options.num_jobs, "Candidates at once (default: all cores)")
      ->check(CLI::Range(1U, 4096U));
  command->add_flag("--retry-failed", arguments->options.retry_failed,
                    "Run candidates again that failed before");
  command->add_flag("--json", arguments->json, "Print the result as JSON and nothing else");
  command->footer(
      "Example:\n  coterie recommend decode.yaml -o out --gpus 32,64,72 --tpot \"50 ms\" --price "
      "2.5");
  command->callback([arguments] { run_recommend(*arguments); });
}

}  // namespace coterie
