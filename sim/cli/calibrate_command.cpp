// `coterie calibrate fit`, `coterie compare` and `coterie validate`.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/provenance.hpp"
#include "core/statistics.hpp"
#include "core/table.hpp"
#include "sim/calibrate/alltoall_fit.hpp"
#include "sim/calibrate/collective_fit.hpp"
#include "sim/calibrate/compare.hpp"
#include "sim/calibrate/direct_fit.hpp"
#include "sim/calibrate/kernel_fit.hpp"
#include "sim/calibrate/measurements.hpp"
#include "sim/calibrate/mlp_fit.hpp"
#include "sim/calibrate/operation_fit.hpp"
#include "sim/calibrate/probe_fit.hpp"
#include "sim/calibrate/uncertainty_scale.hpp"
#include "sim/calibrate/validate.hpp"
#include "sim/cli/commands.hpp"
#include "sim/step/validate_training.hpp"
#include "topologies/cluster.hpp"

namespace coterie {
namespace {

std::string percent(double share) {
  return fmt::format("{:.1f} %", 100.0 * share);
}
std::string signed_percent(double share) {
  return fmt::format("{:+.1f} %", 100.0 * share);
}

// calibrate fit ----------------------------------------------------------------------------------

struct FitArguments {
  std::string probe;
  std::vector<std::string> alltoall;
  std::string machine;
  std::string mlp;
  std::vector<std::string> rows;
  std::string transport;
  std::vector<std::string> patterns;
  std::optional<std::uint32_t> ranks;
  std::string collectives;
  std::string gemm, attention_prefill, attention_decode, mla_prefill, mla_decode;
  std::string base;
  std::string name;
  std::string source;
  std::string output;
};

// The share of left-out points within which 80 percent of them were predicted.
double uncertainty_of(const std::vector<double>& held_out) {
  std::vector<double> errors;
  for (const double error : held_out) errors.push_back(std::abs(error));
  std::sort(errors.begin(), errors.end());
  const double last = static_cast<double>(errors.size() - 1);
  return std::ceil(errors[static_cast<std::size_t>(std::lround(0.8 * last))] * 100.0) / 100.0;
}

// A second fit of the same part replaces what was said of the first.
void set_provenance(Cluster& cluster, const std::string& key, const std::string& text) {
  std::erase_if(cluster.provenance, [&](const auto& entry) { return entry.first == key; });
  cluster.provenance.emplace_back(key, text);
}

// The same of the parameters of `part` that its measurements leave open; nothing where they leave none.
void set_undetermined(Cluster& cluster, const std::string& part,
                      const std::vector<std::string>& names) {
  const std::string key = part + "_undetermined";
  std::erase_if(cluster.provenance, [&](const auto& entry) { return entry.first == key; });
  if (!names.empty())
    cluster.provenance.emplace_back(key, fmt::format("{}", fmt::join(names, ", ")));
}

std::string joined(const std::set<std::string>& texts) {
  return fmt::format("{}", fmt::join(texts, ", "));
}

void report_alltoall(const std::vector<AllToAllPoint>& points, const AllToAllFit& fit) {
  Table parameters{{"parameter", "value", "std. error"}, {}};
  for (const AllToAllFit::Parameter& parameter : fit.parameters) {
    const bool rate = parameter.name.find("rate") != std::string::npos;
    const bool slope = parameter.name.find("slope") != std::string::npos;
    const bool plain = parameter.name == "sharpness" || parameter.name == "few_channels";
    const std::string value = plain   ? fmt::format("{:.2f}", 1.0 + parameter.value)
                              : rate  ? format_bandwidth({parameter.value})
                              : slope ? format_bandwidth({1.0 / parameter.value})
                                      : format_seconds({parameter.value});
    const bool open = std::find(fit.undetermined.begin(), fit.undetermined.end(), parameter.name) !=
                      fit.undetermined.end();
    parameters.rows.push_back(
        {parameter.name, value, open ? "undetermined" : percent(parameter.relative_error)});
  }
  fmt::print("{}\n", render(parameters));
  Table table{{"ranks", "bytes per rank", "measured", "fitted", "error", "left out"}, {}};
  for (std::size_t i = 0; i < points.size(); ++i) {
    const AllToAllPoint& point = points[i];
    const double fitted = fit.model.time_s(point.num_ranks, point.bytes_per_rank);
    table.rows.push_back({std::to_string(point.num_ranks), format_bytes(point.bytes_per_rank),
                          format_seconds({point.time_s}), format_seconds({fitted}),
                          signed_percent(fitted / point.time_s - 1.0),
                          signed_percent(fit.held_out[i])});
  }
  fmt::print("{}", render(table));
}

void fit_links(const FitArguments& arguments, bool is_skeleton, Cluster& cluster) {
  std::vector<AllToAllPoint> all;
  std::map<std::string, std::string> file_of;  // the first of a machine
  for (const std::string& path : arguments.alltoall) {
    std::vector<std::string> notes;
    for (AllToAllPoint& point : read_alltoall(path, &notes)) {
      file_of.emplace(point.machine, path);
      all.push_back(std::move(point));
    }
    for (const std::string& note : notes) spdlog::info("{}", note);
  }
  const std::string where = arguments.alltoall.front();
  const std::vector<AllToAllPoint> points = select_machine(all, arguments.machine, where);
  for (const AllToAllPoint& point : points) {
    check_gpu_model(point.device, cluster.gpu.name, file_of.at(point.machine));
  }
  const auto num_measured = static_cast<std::size_t>(std::count_if(
      all.begin(), all.end(),
      [&](const AllToAllPoint& point) { return point.machine == points.front().machine; }));
  if (num_measured > points.size()) {
    spdlog::info("all-to-alls: {} for {} of ranks and bytes; the median of its repeats counts",
                 counted(num_measured, "measurement"), counted(points.size(), "pair"));
  }
  if (!cluster.scale_up) throw InputError("topology " + cluster.name + " has no scale_up links");
  const Bandwidth before = cluster.scale_up->bandwidth;
  if (is_skeleton && widen_links(points, cluster)) {
    spdlog::info("links of {} instead of the skeleton's {}: what the all-to-alls reached",
                 format_bandwidth(cluster.scale_up->bandwidth), format_bandwidth(before));
  }
  check_physical(points, cluster.scale_up->bandwidth * 1.02, where);
  AllToAllOptions options = alltoall_options(cluster);
  // Links of a skeleton, and of what a probe was fitted to before, are as fast as they were seen to be.
  if (options.nvlink && !is_skeleton && arguments.probe.empty()) {
    options.link_bandwidth = before.value;
  }
  const AllToAllFit fit = fit_alltoall(points, options);
  report_alltoall(points, fit);
  for (const std::string& name : fit.undetermined) {
    spdlog::warn("the measurements do not determine {}: its value rests on a prior guess", name);
  }
  if (points.size() < fit.parameters.size()) {
    spdlog::warn("{} measurements for {} parameters: measure more sizes, or numbers of ranks",
                 points.size(), fit.parameters.size());
  }
  cluster = calibrated_cluster(cluster, fit.model);
  cluster.relative_uncertainty = uncertainty_of(fit.held_out);
  std::vector<double> measured_s;
  for (const AllToAllPoint& point : points) measured_s.push_back(point.time_s);
  cluster.uncertainty.scale_up = uncertainty_scale(left_out_points(fit.held_out, measured_s));
  std::set<std::string> devices;
  std::set<std::string> versions;
  std::set<std::string> ranks;
  for (const AllToAllPoint& point : points) {
    devices.insert(point.device);
    versions.insert(point.version);
    ranks.insert(std::to_string(point.num_ranks));
  }
  std::vector<double> errors;
  for (const double error : fit.held_out) errors.push_back(std::abs(error));
  std::sort(errors.begin(), errors.end());
  set_provenance(cluster, "links",
                 fmt::format("{} uniform all-to-alls over {} GPUs, {}, NCCL {}", points.size(),
                             joined(ranks), joined(devices), joined(versions)));
  set_provenance(cluster, "links_held_out_error",
                 fmt::format("median {}, worst {} over sizes left out in four folds",
                             percent(errors[errors.size() / 2]), percent(errors.back())));
  set_undetermined(cluster, "links", fit.undetermined);
}

void fit_expert_mlp(const FitArguments& arguments, Cluster& cluster) {
  const std::vector<MlpPoint> points = read_mlp(arguments.mlp);
  constexpr std::size_t kLeastPoints = 15;
  if (points.size() < kLeastPoints) {
    throw InputError(arguments.mlp, counted(points.size(), "point"),
                     fmt::format("at least {}, one for each parameter", kLeastPoints));
  }
  const auto differs = [&](const MlpPoint& point) {
    return kernel_of(point) != kernel_of(points.front());
  };
  if (std::any_of(points.begin(), points.end(), differs)) {
    throw InputError(arguments.mlp, "points of several kernels", "those of one");
  }
  const MlpFit fit = fit_mlp(points);
  for (const std::string& name : fit.undetermined) {
    spdlog::warn("the measurements do not determine the MLP's {}: it keeps its prior value", name);
  }
  if (fit.costs.compute_rate > cluster.gpu.bf16_peak) {
    throw InputError(
        arguments.mlp, fmt::format("a rate of {}", format_compute_rate(fit.costs.compute_rate)),
        fmt::format("at most the GPU's peak, {}", format_compute_rate(cluster.gpu.bf16_peak)));
  }
  std::vector<double> errors;
  for (const MlpPoint& point : points) {
    errors.push_back(std::abs(mlp_time_s(fit, point) / point.time_s - 1.0));
  }
  std::sort(errors.begin(), errors.end());
  fmt::print("\nexpert MLP: launch {}, weights at {}, {} in the highest tiles; median error {}\n",
             format_seconds(fit.costs.launch), format_bandwidth(fit.costs.weight_bandwidth),
             format_compute_rate(fit.costs.compute_rate), percent(errors[errors.size() / 2]));
  cluster.gpu.mlp = fit.costs;
  set_provenance(
      cluster, "expert_mlp",
      fmt::format("{} latencies of grouped expert MLPs in BF16; median error of the "
                  "fit {}, worst {}",
                  points.size(), percent(errors[errors.size() / 2]), percent(errors.back())));
}

// One-sided kernels fill the GPU, whatever their table says of it.
void check_sms(const std::string& path, const RowExchange& exchange, const Cluster& cluster) {
  if (exchange.transport == "nvlink_one_sided" || exchange.sms <= cluster.gpu.num_sms) return;
  throw InputError(
      path, fmt::format("{}", exchange.name),
      fmt::format("at most the {} multiprocessors of a {}", cluster.gpu.num_sms, cluster.gpu.name));
}

// The exchanges of the files that --transport, --machine, --ranks and --pattern leave. Those inside a node
// of more ranks than the cluster has GPUs are of another machine.
std::vector<RowExchange> chosen_exchanges(const FitArguments& arguments, const Cluster& cluster) {
  std::vector<RowExchange> chosen;
  std::set<std::string> transports, machines, patterns;
  std::size_t num_too_large = 0;
  for (const std::string& path : arguments.rows) {
    for (RowExchange& exchange : read_row_exchanges(path)) {
      transports.insert(exchange.transport);
      if (!arguments.transport.empty() && exchange.transport != arguments.transport) continue;
      machines.insert(exchange.machine);
      if (!arguments.machine.empty() && !exchange.machine.empty() &&
          exchange.machine != arguments.machine) {
        continue;
      }
      if (exchange.num_nodes == 1 && exchange.num_ranks > cluster.num_gpus()) {
        ++num_too_large;
        continue;
      }
      if (arguments.ranks && exchange.num_ranks != *arguments.ranks) continue;
      check_sms(path, exchange, cluster);
      patterns.insert(exchange.pattern);
      const auto& wanted = arguments.patterns;
      if (!wanted.empty() &&
          std::find(wanted.begin(), wanted.end(), exchange.pattern) == wanted.end()) {
        continue;
      }
      chosen.push_back(std::move(exchange));
    }
  }
  const std::string where = arguments.rows.front();
  if (arguments.transport.empty() && transports.size() > 1) {
    throw InputError(where, "exchanges of several transports",
                     fmt::format("--transport with one of {}", joined(transports)));
  }
  machines.erase("");
  if (arguments.machine.empty() && machines.size() > 1) {
    throw InputError(where, fmt::format("exchanges of {} machines", machines.size()),
                     fmt::format("--machine with one of {}", joined(machines)));
  }
  if (chosen.empty()) {
    throw InputError(where, "no exchange that --transport, --machine, --ranks and --pattern leave",
                     fmt::format("transports {}; machines {}; patterns {}", joined(transports),
                                 machines.empty() ? "none" : joined(machines), joined(patterns)));
  }
  if (num_too_large > 0) {
    spdlog::info("left out: {} exchanges of more ranks than the {} of {}", num_too_large,
                 counted(cluster.num_gpus(), "GPU"), cluster.name);
  }
  return chosen;
}

// Replaces the cluster's parameters of the transport, or adds them as its last.
void put_transport(Cluster& cluster, const TransportParameters& parameters) {
  for (TransportParameters& there : cluster.transports) {
    if (there.index() != parameters.index()) continue;
    there = parameters;
    return;
  }
  cluster.transports.push_back(parameters);
}

// A probe says what one machine does: neither all-to-alls nor a skeleton of another fit it.
void check_one_machine(const FitArguments& arguments, const GpuProbe& probe,
                       const std::optional<std::string>& skeleton_of, const Cluster& cluster) {
  const auto other = [&](const std::string& where, const std::string& found) {
    throw InputError(where, found,
                     fmt::format("the machine of --probe {}, {}", arguments.probe, probe.machine));
  };
  if (!arguments.machine.empty() && arguments.machine != probe.machine) {
    other("--machine", fmt::format("\"{}\"", arguments.machine));
  }
  if (skeleton_of && *skeleton_of != probe.machine) {
    other("--base " + arguments.base, fmt::format("the skeleton of machine {}", *skeleton_of));
  }
  check_gpu_model(probe.device, cluster.gpu.name, arguments.probe);
  if (probe.num_ranks > cluster.num_gpus()) {
    throw InputError(arguments.probe,
                     fmt::format("a probe of {}", counted(probe.num_ranks, "rank")),
                     fmt::format("at most the {} of --base {}", counted(cluster.num_gpus(), "GPU"),
                                 arguments.base));
  }
}

// Kernels, expert MLP and notify of a whole probe.
void fit_probe(const FitArguments& arguments, const GpuProbe& probe, Cluster& cluster) {
  // On PCIe and over sockets other links bind than those of a rank or a pair.
  if (cluster.scale_up && cluster.scale_up->kind == ScaleUpKind::kNvlink &&
      cluster.ranks_per_gpu == 1) {
    set_pattern_rates(read_pattern_rates(arguments.probe), cluster);
  }
  GpuFit fit = fit_gpu(cluster, probe);
  cluster = std::move(fit.cluster);
  set_gpu_uncertainty(fit, cluster);
  if (const auto direct = read_direct_probe(arguments.probe)) {
    DirectFit of_direct = fit_direct(cluster, *direct);
    put_transport(cluster, of_direct.parameters);
    if (cluster.ranks_per_gpu > 1) set_direct_uncertainty(of_direct, cluster);
    fit.parts.insert(fit.parts.end(), of_direct.parts.begin(), of_direct.parts.end());
  }
  std::erase_if(cluster.provenance, [](const auto& entry) { return entry.first == "expert_mlp"; });
  const std::string source = arguments.source.empty() ? "" : ", " + arguments.source;
  set_provenance(
      cluster, "gpu",
      fmt::format("probe of {}, {}{}", counted(probe.num_ranks, "rank"), probe.device, source));
  Table table{{"part", "points", "left out: median", "worst", "undetermined"}, {}};
  std::vector<std::string> undetermined;
  std::vector<std::string> held_out;
  for (const GpuFit::Part& part : fit.parts) {
    std::vector<double> errors;
    for (const double error : part.held_out) errors.push_back(std::abs(error));
    const double worst = *std::max_element(errors.begin(), errors.end());
    const std::string middle = percent(median(std::move(errors)));
    table.rows.push_back({part.name, std::to_string(part.num_points), middle, percent(worst),
                          fmt::format("{}", fmt::join(part.undetermined, ", "))});
    held_out.push_back(fmt::format("{} {} / {}", part.name, middle, percent(worst)));
    for (const std::string& name : part.undetermined) {
      undetermined.push_back(part.name + "." + name);
      spdlog::warn("the probe does not determine {}.{}: it keeps its prior value", part.name, name);
    }
  }
  fmt::print("\n{}notify: {}\n", render(table), format_seconds(cluster.overheads.notify));
  set_provenance(cluster, "gpu_held_out_error",
                 fmt::format("median / worst over sizes left out in four folds: {}",
                             fmt::join(held_out, "; ")));
  set_undetermined(cluster, "gpu", undetermined);
}

void fit_rows(const FitArguments& arguments, Cluster& cluster) {
  const std::vector<RowExchange> exchanges = chosen_exchanges(arguments, cluster);
  const TransportFit fit = fit_transport(cluster, exchanges);
  const std::string name(transport_name(fit.parameters));
  for (const std::string& parameter : fit.undetermined) {
    spdlog::warn("the measurements do not determine {}.{}: it keeps its prior value", name,
                 parameter);
  }
  put_transport(cluster, fit.parameters);
  std::set<std::string> patterns;
  std::set<std::uint32_t> ranks;
  for (const RowExchange& exchange : exchanges) {
    patterns.insert(exchange.pattern);
    ranks.insert(exchange.num_ranks);
  }
  set_provenance(
      cluster, name,
      fmt::format("{} exchanges of rows ({}) over {} ranks{}", exchanges.size(), joined(patterns),
                  fmt::join(ranks, ", "), arguments.source.empty() ? "" : ", " + arguments.source));
  if (!fit.held_out.empty()) {
    std::vector<double> errors;
    for (const double error : fit.held_out) errors.push_back(std::abs(error));
    const double worst = *std::max_element(errors.begin(), errors.end());
    const std::string text =
        fmt::format("median {}, worst {} over exchanges left out in four folds",
                    percent(median(std::move(errors))), percent(worst));
    if (!cluster.relative_uncertainty) {
      cluster.relative_uncertainty = uncertainty_of(fit.held_out);
    }
    set_provenance(cluster, name + "_held_out_error", text);
    fmt::print("\n{}: {}\n", name, text);
  }
  set_undetermined(cluster, name, fit.undetermined);
}

OperationTableFiles operation_files(const FitArguments& arguments) {
  OperationTableFiles files;
  files.machine = arguments.machine;
  const auto set = [](const std::string& path, std::optional<std::filesystem::path>& file) {
    if (!path.empty()) file = path;
  };
  set(arguments.gemm, files.gemm);
  set(arguments.attention_prefill, files.attention_prefill);
  set(arguments.attention_decode, files.attention_decode);
  set(arguments.mla_prefill, files.mla_prefill);
  set(arguments.mla_decode, files.mla_decode);
  return files;
}

bool has_operations(const OperationTableFiles& files) {
  return files.gemm || files.attention_prefill || files.attention_decode || files.mla_prefill ||
         files.mla_decode;
}

// Costs of the operations of whole steps.
void fit_step_operations(const FitArguments& arguments, Cluster& cluster) {
  Table table{{"kind", "points", "launch", "of peak", "of memory", "sharpness", "left out: median",
               "90 % within", "undetermined"},
              {}};
  const std::string source = arguments.source.empty() ? "" : ", " + arguments.source;
  for (const OperationFit& part : fit_operations(cluster.gpu, operation_files(arguments))) {
    cluster.gpu.operations[part.kind] = part.costs;
    std::vector<double> errors;
    for (const double error : part.held_out) errors.push_back(std::abs(error));
    const std::string middle = percent(median(errors));
    const std::string most = percent(quantile(errors, 0.9));
    table.rows.push_back({part.kind, std::to_string(part.held_out.size()),
                          format_seconds(part.costs.launch), percent(part.costs.compute),
                          percent(part.costs.memory), fmt::format("{:.2f}", part.costs.sharpness),
                          middle, most, fmt::format("{}", fmt::join(part.undetermined, ", "))});
    set_provenance(cluster, part.kind,
                   fmt::format("{} measured times{}; left out in four folds: median error {}, 90 "
                               "percent within {}",
                               part.held_out.size(), source, middle, most));
  }
  fmt::print("\n{}", render(table));
}

// Costs of NCCL's collectives.
void fit_collective_costs(const FitArguments& arguments, Cluster& cluster) {
  const std::vector<CollectivePoint> points =
      read_collective_points(arguments.collectives, arguments.machine);
  const CollectiveFit fit = fit_collectives(cluster, points);
  cluster.collectives = fit.parameters;
  std::map<std::pair<CollectiveKind, std::uint32_t>, std::vector<double>> errors;
  std::vector<double> all;
  for (std::size_t i = 0; i < points.size(); ++i) {
    all.push_back(std::abs(fit.held_out[i]));
    errors[{points[i].kind, points[i].num_gpus}].push_back(all.back());
  }
  Table table{{"collective", "GPUs", "points", "left out: median", "90 % within"}, {}};
  for (const auto& [key, list] : errors) {
    table.rows.push_back({std::string(to_string(key.first)), std::to_string(key.second),
                          std::to_string(list.size()), percent(median(list)),
                          percent(quantile(list, 0.9))});
  }
  fmt::print("\n{}\n{}", render(table), collectives_text(fit.parameters));
  for (const std::string& name : fit.undetermined) {
    spdlog::warn("the measurements do not determine collectives.{}: it keeps its prior value",
                 name);
  }
  set_provenance(cluster, "collectives",
                 fmt::format("{} measured times of one scale-up domain{}; left out in four folds: "
                             "median error {}, 90 percent within {}",
                             points.size(), arguments.source.empty() ? "" : ", " + arguments.source,
                             percent(median(all)), percent(quantile(all, 0.9))));
}

void fit(FitArguments arguments) {
  const bool operations = has_operations(operation_files(arguments));
  if (arguments.alltoall.empty() && arguments.mlp.empty() && arguments.rows.empty() &&
      arguments.probe.empty() && arguments.collectives.empty() && !operations) {
    throw InputError(
        "calibrate fit", "no measurements",
        "--probe, --alltoall, --rows, --mlp, --collectives, --gemm, --attention-prefill, "
        "--attention-decode, --mla-prefill or --mla-decode");
  }
  if (!arguments.probe.empty() && !arguments.mlp.empty()) {
    throw InputError("calibrate fit", "--probe and --mlp", "one measurement of the expert MLP");
  }
  Cluster cluster = load_cluster(arguments.base);
  // Between ranks of one GPU NCCL goes over the host: a probe's exchanges say nothing of the links there.
  if (!arguments.probe.empty() && cluster.ranks_per_gpu == 1) {
    arguments.alltoall.push_back(arguments.probe);
  }
  // What a calibrated topology says of its other fits stays true.
  const bool calibrated = std::any_of(cluster.provenance.begin(), cluster.provenance.end(),
                                      [](const auto& entry) { return entry.first == "base"; });
  // Which probe wrote it, a skeleton says by its machine.
  std::optional<std::string> skeleton_of;
  for (const auto& [key, text] : cluster.provenance) {
    if (key == "machine" && !calibrated) skeleton_of = text;
  }
  std::optional<GpuProbe> probe;
  if (!arguments.probe.empty()) {
    probe = read_gpu_probe(arguments.probe);
    check_one_machine(arguments, *probe, skeleton_of, cluster);
  }
  if (calibrated) {
    std::erase_if(cluster.provenance, [](const auto& entry) { return entry.first == "fitted_by"; });
  } else {
    cluster.provenance.clear();
    cluster.provenance.emplace_back("base", cluster.name);
  }
  if (!arguments.source.empty() && !calibrated) {
    cluster.provenance.emplace_back("source", arguments.source);
  }
  if (!arguments.alltoall.empty()) fit_links(arguments, skeleton_of.has_value(), cluster);
  // After the links, whose fit takes an empty exchange for the notify step.
  if (probe) fit_probe(arguments, *probe, cluster);
  if (!arguments.rows.empty()) fit_rows(arguments, cluster);
  if (!arguments.mlp.empty()) fit_expert_mlp(arguments, cluster);
  if (!arguments.collectives.empty()) fit_collective_costs(arguments, cluster);
  if (operations) fit_step_operations(arguments, cluster);
  cluster.provenance.emplace_back("fitted_by", "coterie " + version());
  if (!arguments.name.empty()) cluster.name = arguments.name;
  if (!cluster.description.empty() && !calibrated) cluster.description += ", calibrated";
  if (arguments.output.empty()) return;
  write_file(arguments.output, to_yaml(cluster));
  spdlog::info("wrote {}", arguments.output);
}

void add_fit_command(CLI::App& parent) {
  auto arguments = std::make_shared<FitArguments>();
  CLI::App* command = parent.add_subcommand(
      "fit", "Fits a topology's links and kernels to measurements and writes the calibrated file");
  command->add_option("--alltoall", arguments->alltoall,
                      "Uniform all-to-alls: CSV, nccl-tests output, or the JSON of coterie-runtime "
                      "probe (repeatable)");
  command->add_option(
      "--probe", arguments->probe,
      "A whole curves.json of coterie-runtime probe: kernels, expert MLP and notify, "
      "and its all-to-alls as if given to --alltoall; default: none");
  command->add_option("--machine", arguments->machine,
                      "Use this machine's points only; default: the one that the file holds");
  command->add_option("--rows", arguments->rows,
                      "Exchanges of rows by a dispatch library's kernels: CSV (repeatable; "
                      "sim/calibrate/row_exchanges.hpp lists the columns)");
  command->add_option("--transport", arguments->transport,
                      "Fit this transport to the exchanges; default: the one that they are of");
  command->add_option("--pattern", arguments->patterns,
                      "Fit to exchanges of this pattern only (repeatable), so that others can test "
                      "the fit");
  command
      ->add_option("--ranks", arguments->ranks,
                   "Fit to exchanges over as many ranks only; default: over any number")
      ->check(CLI::PositiveNumber);
  command->add_option("--mlp", arguments->mlp, "Latencies of the expert MLP: CSV; default: no fit");
  command->add_option("--collectives", arguments->collectives,
                      "Times of all-reduce, reduce-scatter and all-gather in one node: CSV "
                      "(sim/calibrate/collective_fit.hpp lists the columns); default: no fit");
  command->add_option("--gemm", arguments->gemm,
                      "Times of dense matrix products: CSV (needs --machine; "
                      "sim/step/operation_times.hpp lists the columns of this and the next four); "
                      "default: no fit");
  command->add_option("--attention-prefill", arguments->attention_prefill,
                      "Times of causal attention products: CSV; default: no fit");
  command->add_option(
      "--attention-decode", arguments->attention_decode,
      "Times of attention products of one token per sequence: CSV; default: no fit");
  command->add_option("--mla-prefill", arguments->mla_prefill,
                      "Times of whole modules of latent attention, prefill: CSV; default: no fit");
  command->add_option("--mla-decode", arguments->mla_decode,
                      "The same, decode: CSV; default: no fit");
  command->add_option("--base", arguments->base, "The topology to calibrate: a preset or a file")
      ->required();
  command->add_option("--name", arguments->name,
                      "Name of the calibrated topology; default: the base's");
  command->add_option("--source", arguments->source,
                      "Where the measurements come from, as text; default: nothing is said");
  command->add_option("-o,--output", arguments->output,
                      "The YAML file to write; default: none, only the fit is printed");
  command->footer(
      "Example:\n  coterie calibrate fit --alltoall table.csv --machine h200_sxm "
      "--base h200_node -o h200.yaml\n"
      "  coterie calibrate fit --probe curves.json --base topology.yaml -o machine.yaml");
  command->callback([arguments] { fit(*arguments); });
}

// compare ----------------------------------------------------------------------------------------

struct CompareArguments {
  std::string predicted, measured;
  std::optional<double> max_error;
  bool json = false;
};

void run_compare(const CompareArguments& arguments) {
  const Comparison comparison = compare(read_results_or_report(arguments.predicted),
                                        read_results_or_report(arguments.measured));
  if (arguments.json) {
    fmt::print("{}\n", dump_json(to_json(comparison)));
  } else {
    Table table{{"run", "item", "predicted", "measured", "error", "spread", ""}, {}};
    for (const ComparedTime& time : comparison.times) {
      table.rows.push_back({time.run, time.item, format_seconds({time.predicted_s}),
                            format_seconds({time.measured_s}), signed_percent(time.error()),
                            time.spread ? "+-" + percent(*time.spread) : "",
                            time.unclear() ? "unclear" : ""});
    }
    fmt::print("{}\n", render(table));
    fmt::print("totals: median absolute error {}, worst {}\n", percent(comparison.median_error()),
               percent(comparison.worst_error()));
    fmt::print("order: {} of {} pairs right, {} unclear\n", comparison.num_right_pairs,
               comparison.num_ordered_pairs, comparison.num_unclear_pairs);
  }
  for (const std::string& run : comparison.unmatched) {
    spdlog::warn("run {} is in one of the two reports only", run);
  }
  if (arguments.max_error && comparison.worst_error() > *arguments.max_error) {
    throw CheckError(fmt::format("the worst error {} exceeds --max-error {}",
                                 percent(comparison.worst_error()), percent(*arguments.max_error)));
  }
}

// validate ---------------------------------------------------------------------------------------

constexpr const char* kValidationHead =
    R"(# Validation

How far calibrated predictions are from measurements that their fits never saw. An error is
predicted / measured - 1; "median" and "worst" are of its absolute value. A *protocol* says what was
left out of a fit and then predicted. Each has a section below with its groups, what explains the
misses, and the points that are furthest off.

This page and the table of all points, [notebooks/results/validation.csv](notebooks/results/validation.csv),
are written by

    coterie validate -o VALIDATION.md --points notebooks/results/validation.csv

from published tables of measurements (folder `--data`, which is not part of the project) and from our
runs in `runtime/results`. `notebooks/draw_validation.py` draws the figures from the table.

![All-to-alls of left-out sizes](notebooks/figures/validation_alltoall.png)

![Layers over NVLink predicted from the probe of the same machine](notebooks/figures/validation_nvlink.png)

![Layers of the transport direct on two tiers, predicted from the probe of the same ranks](notebooks/figures/validation_direct.png)

![Whole layers on a shared GPU predicted from the probe's curves](notebooks/figures/validation_layers.png)

![Expert MLPs on left-out batch sizes, DeepEP kernels of left-out model shapes](notebooks/figures/validation_kernels.png)

)";

// A folder of the measured data that users may have: $COTERIE_DATA names where they keep it.
std::string data_folder(const std::string& name) {
  const char* data = std::getenv("COTERIE_DATA");
  return data == nullptr || *data == '\0' ? name : (std::filesystem::path(data) / name).string();
}

// Folders that are named but not there are mistakes; a default that is not there is data that the
// user does not have, whose sections are left out with a warning.
void check_given_folders(const CLI::App& command) {
  for (const char* name : {"--data", "--runs", "--nvlink-runs", "--direct-runs", "--traces"}) {
    const CLI::Option* option = command.get_option(name);
    for (const std::string& folder : option->results()) {
      if (!is_folder(folder)) {
        throw InputError(name, fmt::format("\"{}\", which is no folder", folder),
                         "a folder, or no such option");
      }
    }
  }
  const char* data = std::getenv("COTERIE_DATA");
  if (data != nullptr && *data != '\0' && !is_folder(data)) {
    throw InputError("COTERIE_DATA", fmt::format("\"{}\", which is no folder", data),
                     "a folder, or no such variable");
  }
}

struct ValidateArguments {
  std::string data = data_folder("measurements");
  std::string runs = "runtime/results/h200_shared";
  std::string traces = data_folder("traces/deepseek-v2-lite-esft");
  std::vector<std::string> nvlink_runs{
      "runtime/results/h200_nvlink_2", "runtime/results/h200_nvlink_4",
      "runtime/results/h100_nvlink_2", "runtime/results/h100_nvlink_4"};
  std::vector<std::string> direct_runs{"runtime/results/h200_direct_2gpu",
                                       "runtime/results/h100_direct_2gpu"};
  std::vector<std::string> presets;
  std::string output;
  std::string points;
  std::string training;
  std::string experiments = "workloads/examples/training";
  bool check = false;
  bool json = false;
};

nlohmann::json sections_json(const Validation& validation) {
  nlohmann::json sections = nlohmann::json::array();
  for (const ValidationSection& section : validation.sections) {
    nlohmann::json points = nlohmann::json::array();
    for (const ValidationPoint& point : section.points) {
      points.push_back({{"group", point.group},
                        {"name", point.name},
                        {"measured_s", point.measured_s},
                        {"predicted_s", point.predicted_s},
                        {"error", point.error()}});
    }
    const ErrorSummary summary = summarise(section.points);
    sections.push_back({{"title", section.title},
                        {"protocol", section.protocol},
                        {"finding", section.finding},
                        {"median", summary.median},
                        {"worst", summary.worst},
                        {"points", std::move(points)}});
  }
  return {
      {"schema_version", 1}, {"sections", std::move(sections)}, {"skipped", validation.skipped}};
}

void print_validation(const Validation& validation) {
  Table points{{"protocol", "group", "point", "measured", "predicted", "error"}, {}};
  Table summary{{"protocol", "points", "median", "target", "worst", "target"}, {}};
  for (const ValidationSection& section : validation.sections) {
    for (const ValidationPoint& point : section.points) {
      points.rows.push_back({section.title, point.group, point.name,
                             format_seconds({point.measured_s}),
                             format_seconds({point.predicted_s}), signed_percent(point.error())});
    }
    const ErrorSummary errors = summarise(section.points);
    summary.rows.push_back(
        {section.title, std::to_string(errors.num_points), percent(errors.median),
         section.target_median ? percent(*section.target_median) : "none", percent(errors.worst),
         section.target_worst ? percent(*section.target_worst) : "none"});
  }
  fmt::print("{}\n{}", render(points), render(summary));
}

// Published training steps alone.
void run_training_validation(const ValidateArguments& arguments) {
  const TrainingValidation validation =
      validate_training(arguments.training, arguments.experiments);
  Table table;
  table.header = {"step", "published", "predicted", "error", "efficiency", "fitted", "error"};
  std::vector<double> errors, fitted;
  for (const TrainingPoint& point : validation.points) {
    if (point.failure) {
      table.rows.push_back(
          {point.name, format_seconds(Seconds{point.measured_s}), "failed", "-", "-", "-", "-"});
      spdlog::warn("{}: {}", point.name, *point.failure);
      continue;
    }
    errors.push_back(std::abs(point.error()));
    std::vector<std::string> row{point.name, format_seconds(Seconds{point.measured_s}),
                                 format_seconds(Seconds{point.predicted_s}),
                                 signed_percent(point.error())};
    if (point.fitted_s) {
      fitted.push_back(std::abs(point.fitted_error()));
      row.insert(row.end(),
                 {fmt::format("{:.2f}", point.efficiency), format_seconds(Seconds{*point.fitted_s}),
                  signed_percent(point.fitted_error())});
    } else {
      row.insert(row.end(), {"-", "-", "-"});
    }
    table.rows.push_back(std::move(row));
  }
  fmt::print("{}", render(table));
  const auto summary = [](const std::vector<double>& list) {
    if (list.empty()) return std::string("none");
    return fmt::format("median {}, worst {} of {}", percent(median(list)),
                       percent(*std::max_element(list.begin(), list.end())),
                       counted(list.size(), "step"));
  };
  fmt::print(
      "\nwithout fitting: {}\none efficiency per system, fitted to its other steps: {}\n"
      "steps of one model on one system in the published order: {} of {} pairs\n",
      summary(errors), summary(fitted), validation.num_ordered, validation.num_pairs);
}

void run_validate(const ValidateArguments& arguments) {
  if (!arguments.training.empty()) {
    run_training_validation(arguments);
    return;
  }
  Validation validation = validate({arguments.data,
                                    arguments.runs,
                                    arguments.traces,
                                    {arguments.nvlink_runs.begin(), arguments.nvlink_runs.end()},
                                    {arguments.direct_runs.begin(), arguments.direct_runs.end()}});
  std::vector<std::string> presets = arguments.presets;
  if (presets.empty()) {
    for (const Preset& preset : topology_presets()) {
      if (preset.name.ends_with("_calibrated")) presets.push_back(preset.name);
    }
  }
  if (!presets.empty()) validation.sections.push_back(compare_engines(presets));
  for (const std::string& path : validation.skipped) spdlog::warn("skipped: no file {}", path);
  if (arguments.json) {
    fmt::print("{}\n", dump_json(sections_json(validation)));
  } else {
    print_validation(validation);
  }
  if (!arguments.output.empty()) {
    write_file(arguments.output, std::string(kValidationHead) + to_markdown(validation));
  }
  if (!arguments.points.empty()) write_file(arguments.points, to_csv(validation));
  if (!arguments.check) return;
  std::vector<std::string> missed;
  for (const ValidationSection& section : validation.sections) {
    const ErrorSummary errors = summarise(section.points);
    if ((section.target_median && errors.median > *section.target_median) ||
        (section.target_worst && errors.worst > *section.target_worst)) {
      missed.push_back(fmt::format("{} (median {}, worst {})", section.title,
                                   percent(errors.median), percent(errors.worst)));
    }
  }
  if (!missed.empty()) {
    throw CheckError(fmt::format("missed targets: {}", fmt::join(missed, "; ")));
  }
}

}  // namespace

void add_calibrate_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("calibrate", "Fits topologies to measurements");
  command->require_subcommand(1);
  command->footer("Example:\n  coterie calibrate fit --help");
  add_fit_command(*command);
}

void add_compare_command(CLI::App& app) {
  auto arguments = std::make_shared<CompareArguments>();
  CLI::App* command =
      app.add_subcommand("compare", "Compares predicted with measured reports, run by run");
  command->add_option("PREDICTED", arguments->predicted, "A results.json, its folder, or a report")
      ->required();
  command->add_option("MEASURED", arguments->measured, "The same from coterie-runtime")->required();
  command
      ->add_option("--max-error", arguments->max_error,
                   "Exit with 4 if the time of a run is off by more than this share, as 0.1; "
                   "default: any error passes")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--json", arguments->json, "Print JSON only");
  command->footer("Example:\n  coterie compare out/predicted out/measured --max-error 0.1");
  command->callback([arguments] { run_compare(*arguments); });
}

void add_validate_command(CLI::App& app) {
  auto arguments = std::make_shared<ValidateArguments>();
  CLI::App* command = app.add_subcommand(
      "validate", "Errors of the calibrated models on measurements that their fits never saw");
  command
      ->add_option("--data", arguments->data,
                   "Folder of the measured tables; default: `measurements` in $COTERIE_DATA")
      ->capture_default_str();
  command
      ->add_option("--runs", arguments->runs,
                   "Folder of measured curves and reports, from runtime/run_on_gpu_machine.sh")
      ->capture_default_str();
  command
      ->add_option("--nvlink-runs", arguments->nvlink_runs,
                   "Folders of a probe, experiments and reports over NVLink (repeatable; "
                   "sim/calibrate/nvlink_runs.hpp lists their files)")
      ->capture_default_str();
  command
      ->add_option(
          "--direct-runs", arguments->direct_runs,
          "Folders of probes, experiments and reports of the transport direct on ranks that "
          "share GPUs (repeatable; likewise)")
      ->capture_default_str();
  command
      ->add_option("--traces", arguments->traces,
                   "Folder of the traces that were measured; default: likewise in $COTERIE_DATA")
      ->capture_default_str();
  command->add_option("--preset", arguments->presets,
                      "Calibrated topologies on which flow and simgrid are compared (repeatable; "
                      "default: all presets that end in _calibrated)");
  command->add_option("--training", arguments->training,
                      "Published training steps, a CSV file: compare these alone; default: none");
  command
      ->add_option("--experiments", arguments->experiments,
                   "Folder of the experiments that describe them")
      ->capture_default_str();
  command->add_option("-o,--output", arguments->output,
                      "Also write the page as Markdown; default: no page");
  command->add_option("--points", arguments->points,
                      "Also write every point as CSV; default: no points");
  command->add_flag("--check", arguments->check, "Exit with 4 where a target is missed");
  command->add_flag("--json", arguments->json, "Print JSON only");
  command->footer(
      "Example:\n  coterie validate --data measurements -o page.md --points points.csv");
  command->callback([arguments, command] {
    check_given_folders(*command);
    run_validate(*arguments);
  });
}

}  // namespace coterie
