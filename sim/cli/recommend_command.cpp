// `coterie recommend`: which parallel sizes, transport and batch suit a step.

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

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
  std::string tpot, ttft;
  double price = 0.0;
  std::vector<std::string> overrides;
  SweepOptions options;
  std::size_t num_best = 5;
  bool json = false;
};

nlohmann::ordered_json evaluate_candidate(const SweepSpec& spec, const SweepOptions& options,
                                          const SweepPoint& point) {
  const Experiment experiment = load_experiment(spec.base, overrides_of(spec, point));
  SimulateOptions simulation;
  simulation.cache = options.folder / "cache";
  simulation.timelines = false;
  return sweep_rows(experiment, results_of(experiment, simulate(experiment, simulation)).runs);
}

std::string settings_text(const Settings& settings) {
  std::string text;
  for (const auto& [key, value] : settings) {
    const std::string name = key.substr(key.rfind('.') + 1);
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, value);
  }
  return text;
}

nlohmann::ordered_json recommendation_json(const Recommendation& one) {
  nlohmann::ordered_json json;
  nlohmann::ordered_json settings;
  for (const auto& [key, value] : one.settings) settings[key] = value;
  json["settings"] = settings;
  json["run"] = one.run;
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
  std::vector<std::string> header{"settings", "run", "tokens/s/GPU", "step"};
  if (serves) header.emplace_back(kind == StepKind::kDecode ? "TPOT" : "TTFT");
  header.emplace_back("memory");
  if (arguments.request.price) header.emplace_back("cost per 1M tokens");
  header.emplace_back("what binds");
  Table table{header, {}, {0, 1, header.size() - 1}};
  for (const Recommendation& one : all) {
    if (table.rows.size() == arguments.num_best || !one.within_limits) break;
    std::vector<std::string> row{settings_text(one.settings), one.run,
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

void run_recommend(RecommendArguments& arguments) {
  RecommendRequest& request = arguments.request;
  request.overrides = parse_overrides(arguments.overrides);
  if (!arguments.tpot.empty()) request.tpot_s = parse_seconds(arguments.tpot, "--tpot").value;
  if (!arguments.ttft.empty()) request.ttft_s = parse_seconds(arguments.ttft, "--ttft").value;
  if (arguments.price > 0.0) request.price = arguments.price;
  const SearchSpace space = search_space(request);
  const Experiment base = load_experiment(request.experiment, request.overrides);
  SweepOptions& options = arguments.options;
  if (options.num_jobs == 0) options.num_jobs = std::max(1U, std::thread::hardware_concurrency());
  make_folder(options.folder);
  make_folder(options.folder / "cache");
  // What --set changed is in the effective experiment, which stands beside the results.
  const std::filesystem::path experiment = options.folder / "experiment.yaml";
  write_file(experiment, base.effective_yaml);
  const std::filesystem::path sweep = options.folder / "sweep.yaml";
  write_file(sweep, sweep_text(space.candidates, std::filesystem::absolute(experiment)));
  const SweepSpec spec = load_sweep(sweep);
  const SweepCounts counts = run_points(spec, options, [&](const SweepPoint& point) {
    return evaluate_candidate(spec, options, point);
  });
  const std::vector<nlohmann::json> entries = collect(spec, options.folder);
  write_sweep_tables(spec, entries, options.folder);
  const std::vector<Recommendation> all = rank_candidates(request, entries, spec);
  nlohmann::ordered_json json;
  json["schema_version"] = 1;
  json["fitting"] = space.num_fitting;
  json["too_large"] = space.num_too_large;
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
      "{} candidates fit, {} do not, {} are too slow even without communication; {} simulated, {} "
      "failed\n\n",
      space.num_fitting, space.num_too_large, space.num_too_slow, counts.total, counts.failed);
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
      "recommend", "Searches parallel sizes, transport and batch of a step within stated limits");
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
