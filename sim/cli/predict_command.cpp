// `coterie predict`: the time of one plan or traffic matrix on a cluster.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/statistics.hpp"
#include "core/table.hpp"
#include "sim/cli/commands.hpp"
#include "sim/engines/engine.hpp"
#include "sim/experiment/uncertainty.hpp"
#include "sim/program/layer_program.hpp"
#include "sim/transports/parts.hpp"
#include "topologies/network.hpp"
#include "workloads/plan/matrix.hpp"
#include "workloads/plan/plan_file.hpp"

namespace coterie {
namespace {

struct PredictArguments {
  std::string input;
  std::string topology;
  std::optional<std::uint32_t> ranks;
  std::string engine = "flow";
  std::optional<double> precision;
  unsigned threads = 1;
  std::vector<std::string> overrides;
  std::string transport;
  std::optional<std::int64_t> row_bytes;
  std::optional<std::uint32_t> tokens_per_rank;
  std::string direction;
  bool json = false;
};

// Plan files start with a binary mark that holds a zero byte, the two matrix formats are text.
bool is_binary(const std::string& path) {
  std::ifstream file = open_input(path);
  std::array<char, 8> head{};
  file.read(head.data(), head.size());
  const auto num_read = static_cast<std::size_t>(file.gcount());
  return std::find(head.begin(), head.begin() + static_cast<std::ptrdiff_t>(num_read), '\0') !=
         head.begin() + static_cast<std::ptrdiff_t>(num_read);
}

using Traffic = std::variant<TrafficMatrix, DispatchPlan>;

Traffic read_input(const std::string& path) {
  if (!is_binary(path)) return read_traffic(path);
  DispatchPlan plan = read_plan(path);
  if (plan.layers.empty()) throw InputError(path, "a plan without layers", "at least one");
  return plan;
}

bool crosses_network(const Cluster& cluster, const Program& program) {
  for (std::size_t op = 0; op < program.num_ops(); ++op) {
    if (tier_of(cluster, program.src[op], program.dst[op]) == Tier::kNetwork) return true;
  }
  return false;
}

std::uint32_t num_ranks(const Traffic& traffic) {
  if (const auto* plan = std::get_if<DispatchPlan>(&traffic)) {
    return plan->layers.front().num_ranks;
  }
  return std::get<TrafficMatrix>(traffic).num_ranks;
}

// That a matrix's entries are whole rows, whose size is given where the transport counts them; a
// plan knows its rows and directions itself.
void check_rows(const PredictArguments& arguments, const Traffic& traffic,
                const TransportParameters& parameters) {
  const auto* matrix = std::get_if<TrafficMatrix>(&traffic);
  if (matrix == nullptr) {
    if (arguments.row_bytes) throw InputError("--row-bytes", "it with a plan file", "a matrix");
    if (!arguments.direction.empty()) {
      throw InputError("--direction", "it with a plan file, which has both", "a matrix");
    }
    if (arguments.tokens_per_rank) {
      throw InputError("--tokens-per-rank", "it with a plan file, which knows them", "a matrix");
    }
    return;
  }
  if (!arguments.row_bytes) {
    if (!counts_rows(parameters)) return;
    throw InputError(
        "--row-bytes", "none",
        fmt::format("the bytes of a row, which transport {} counts", transport_name(parameters)));
  }
  for (const TrafficEntry& entry : matrix->entries) {
    if (entry.bytes % *arguments.row_bytes == 0) continue;
    throw InputError(arguments.input,
                     fmt::format("{} B from rank {} to rank {}", entry.bytes, entry.src, entry.dst),
                     fmt::format("whole rows of --row-bytes {} B", *arguments.row_bytes));
  }
}

LayerProgram build_program(const PredictArguments& arguments, const Traffic& traffic,
                           const TransportChoice& transport, const Cluster& cluster) {
  if (const auto* plan = std::get_if<DispatchPlan>(&traffic)) {
    return build_communication(*plan, cluster, transport);
  }
  TrafficSetup setup;
  setup.direction = arguments.direction == "combine" ? Direction::kCombine : Direction::kDispatch;
  if (arguments.row_bytes) setup.row_bytes = static_cast<double>(*arguments.row_bytes);
  setup.tokens_per_rank = arguments.tokens_per_rank;
  setup.transport = transport;
  return build_traffic(std::get<TrafficMatrix>(traffic), setup, cluster);
}

void predict(const PredictArguments& arguments) {
  const std::vector<std::string> engines = engine_names();
  if (std::find(engines.begin(), engines.end(), arguments.engine) == engines.end()) {
    throw InputError("--engine", fmt::format("\"{}\"", arguments.engine),
                     fmt::format("one of {}", fmt::join(engines, ", ")));
  }
  const Traffic traffic = read_input(arguments.input);
  std::vector<Override> overrides = parse_overrides(arguments.overrides);
  const TransportChoice transport = take_transport_choice(arguments.transport, overrides);
  const std::uint32_t num_gpus = arguments.ranks.value_or(num_ranks(traffic));
  const Network network(load_cluster(arguments.topology, overrides, num_gpus));
  if (network.num_gpus() < num_ranks(traffic)) {
    throw InputError(arguments.input, counted(num_ranks(traffic), "rank"),
                     fmt::format("at most {}, the GPUs of topology {}", network.num_gpus(),
                                 network.cluster().name));
  }
  check_rows(arguments, traffic, chosen_transport(network.cluster(), transport));
  const LayerProgram layer = build_program(arguments, traffic, transport, network.cluster());
  const ResolvedProgram resolved = resolve(layer.program, network);

  EngineOptions options;
  options.num_threads = arguments.threads;
  if (arguments.precision) options.relative_precision = *arguments.precision;
  const Execution execution = run_engine(arguments.engine, resolved, options);
  const double bound_s = resolved.bound.makespan_s;
  const std::optional<double> uncertainty = traffic_uncertainty(
      network.cluster(), execution.makespan_s, crosses_network(network.cluster(), layer.program));
  const std::vector<double> finish_s = rank_finish_s(layer.program, execution, num_ranks(traffic));

  if (arguments.json) {
    nlohmann::ordered_json document{{"schema_version", 1},
                                    {"engine", arguments.engine},
                                    {"makespan_s", execution.makespan_s},
                                    {"bound_s", bound_s},
                                    {"rank_finish_s", finish_s}};
    if (uncertainty) {
      document["low_s"] = execution.makespan_s * (1.0 - *uncertainty);
      document["high_s"] = execution.makespan_s * (1.0 + *uncertainty);
    }
    fmt::print("{}\n", dump_json(document));
    return;
  }
  std::vector<double> sorted = finish_s;
  std::sort(sorted.begin(), sorted.end());
  const auto slowest = std::max_element(finish_s.begin(), finish_s.end()) - finish_s.begin();
  Table table{{"quantity", "value"}, {}};
  table.rows.push_back({"engine", arguments.engine});
  table.rows.push_back({"ranks", std::to_string(num_ranks(traffic))});
  table.rows.push_back({"makespan", format_seconds({execution.makespan_s})});
  if (uncertainty) {
    table.rows.push_back({"interval", fmt::format("+-{:.0f} %", 100.0 * *uncertainty)});
  }
  table.rows.push_back({"lower bound", format_seconds({bound_s})});
  if (bound_s > 0.0) {
    table.rows.push_back(
        {"makespan / bound", fmt::format("{:.4f}", execution.makespan_s / bound_s)});
  }
  if (!sorted.empty()) {
    table.rows.push_back({"slowest rank", std::to_string(slowest)});
    table.rows.push_back({"first rank done", format_seconds({sorted.front()})});
    table.rows.push_back({"median rank done", format_seconds({median(sorted)})});
  }
  fmt::print("{}", render(table));
}

}  // namespace

void add_predict_command(CLI::App& app) {
  auto arguments = std::make_shared<PredictArguments>();
  CLI::App* command =
      app.add_subcommand("predict", "Predicts the time of one plan or traffic matrix on a cluster");
  command
      ->add_option("INPUT", arguments->input,
                   "A plan file (communication of all its layers), or a traffic matrix in the "
                   "matrix or htsim format; rank r is GPU r")
      ->required();
  command->add_option("--topology", arguments->topology, "A preset's name or a YAML file")
      ->required();
  command
      ->add_option("--ranks", arguments->ranks,
                   "GPUs of the cluster, for presets of any size (default: the input's ranks)")
      ->check(CLI::PositiveNumber);
  command->add_option("--engine", arguments->engine, "flow, simgrid or bound")
      ->capture_default_str();
  command
      ->add_option("--precision", arguments->precision,
                   "Precision of the engine relative to the bound; 0 is exact (default: the "
                   "engine's own, see sim/engines/README.md)")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--threads", arguments->threads, "Threads of the flow engine")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--transport", arguments->transport,
                      fmt::format("How rows move: one of {} (default: the topology's first, else "
                                  "ideal); --set transport.KEY=VALUE sets its parameters",
                                  fmt::join(transport_names(), ", ")));
  command
      ->add_option(
          "--row-bytes", arguments->row_bytes,
          "Bytes of a row of the matrix, needed by transports that count rows; default: none")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--tokens-per-rank", arguments->tokens_per_rank,
                   "Tokens whose rows the matrix holds, for kernels that scan or add up tokens "
                   "(default: the rows of a rank's largest entry)")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--direction", arguments->direction,
                   "Whose kernels move the matrix: dispatch or combine (default: dispatch)")
      ->check(CLI::IsMember({"dispatch", "combine"}));
  add_set_option(*command, arguments->overrides,
                 "the topology and, below transport., of the transport");
  command->add_flag("--json", arguments->json, "Print JSON only");
  command->footer(
      "Example:\n  coterie predict traffic.matrix --topology star --engine flow --json");
  command->callback([arguments] { predict(*arguments); });
}

}  // namespace coterie
