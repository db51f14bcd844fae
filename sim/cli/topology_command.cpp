// coterie topology list | show | import: what clusters there are, what one amounts to, and clusters
// from what machines and other simulators say.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/counted.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/table.hpp"
#include "sim/cli/commands.hpp"
#include "topologies/diagram.hpp"
#include "topologies/fabric_summary.hpp"
#include "topologies/import/importer.hpp"

namespace coterie {
namespace {

using nlohmann::json;

struct ShowOptions {
  std::string topology;
  std::vector<std::string> set;
  std::optional<std::uint32_t> ranks;
  std::string svg;
  bool json = false;
};

std::string fabric_name(const Cluster& cluster) {
  return cluster.fabric ? std::string(fabric_type(cluster.fabric->kind).name) : "none";
}

void list_presets(bool as_json) {
  Table table{{"topology", "GPUs", "nodes", "fabric", "description"}, {}, {0, 3, 4}};
  json items = json::array();
  for (const Preset& preset : topology_presets()) {
    const Cluster cluster = load_cluster(preset.name);
    table.rows.push_back({preset.name, std::to_string(cluster.num_gpus()),
                          std::to_string(cluster.num_nodes), fabric_name(cluster),
                          cluster.description});
    items.push_back({{"name", preset.name},
                     {"num_gpus", cluster.num_gpus()},
                     {"num_nodes", cluster.num_nodes},
                     {"fabric", fabric_name(cluster)},
                     {"description", cluster.description}});
  }
  if (as_json) {
    std::cout << dump_json(json{{"schema_version", 1}, {"topologies", items}}, 2) << "\n";
  } else {
    std::cout << render(table);
  }
}

json cluster_json(const Cluster& cluster, const FabricSummary& summary) {
  json out{{"schema_version", 1},
           {"name", cluster.name},
           {"description", cluster.description},
           {"num_nodes", summary.num_nodes},
           {"gpus_per_node", cluster.gpus_per_node},
           {"ranks_per_gpu", cluster.ranks_per_gpu},
           {"num_gpus", summary.num_gpus},
           {"num_domains", summary.num_domains},
           {"num_nics", summary.num_nics},
           {"gpu", cluster.gpu.name},
           {"fabric", fabric_name(cluster)},
           {"num_switches", summary.num_switches},
           {"reachable", summary.reachable},
           {"diameter_links", summary.diameter}};
  for (const CableGroup& group : summary.cables) {
    out["cables"].push_back({{"name", group.name},
                             {"tier", to_string(group.tier)},
                             {"count", group.num_cables},
                             {"bandwidth_bytes_per_s", group.bandwidth.value},
                             {"latency_s", group.latency.value}});
  }
  out["transports"] = json::array();
  for (const TransportParameters& parameters : cluster.transports) {
    out["transports"].push_back(transport_name(parameters));
  }
  out["warnings"] = transport_warnings(cluster);
  if (const auto& scale_up = cluster.scale_up; scale_up && scale_up->shared_bandwidth) {
    out["scale_up_shared"] = {{"bandwidth_bytes_per_s", scale_up->shared_bandwidth->value},
                              {"group", scale_up->shared_group},
                              {"sockets", scale_up->num_sockets}};
  }
  const auto put = [&out](const char* key, const auto& value) {
    out[key] = nullptr;
    if (value) out[key] = *value;
  };
  const auto raw = [](const std::optional<Bandwidth>& rate) {
    return rate ? std::optional(rate->value) : std::nullopt;
  };
  put("scale_up_bisection_bytes_per_s", raw(summary.scale_up_bisection));
  put("network_bisection_bytes_per_s", raw(summary.network_bisection));
  put("oversubscription", summary.oversubscription);
  put("relative_uncertainty", cluster.relative_uncertainty);
  return out;
}

std::string switches_text(const FabricSummary& summary) {
  std::string text;
  for (const auto& [kind, count] : summary.num_switches) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, kind);
  }
  return text.empty() ? "none" : text;
}

std::string injection_text(const Injection& injection) {
  std::string text = injection.rank_bandwidth
                         ? fmt::format("rank cap {}", format_bandwidth(*injection.rank_bandwidth))
                         : "no rank cap";
  if (injection.rank_total_bandwidth) {
    text += ", both ways " + format_bandwidth(*injection.rank_total_bandwidth);
  }
  text += injection.sends_in_flight == kUnlimitedSends
              ? ", sends in flight not limited"
              : fmt::format(", {} sends in flight", injection.sends_in_flight);
  return text;
}

std::string scale_up_text(const ScaleUp& scale_up) {
  std::string text;
  if (const auto shared = scale_up.shared_bandwidth) {
    text += scale_up.num_sockets > 1 ? fmt::format("{} sockets, each with {}", scale_up.num_sockets,
                                                   format_bandwidth(*shared))
                                     : "one link of " + format_bandwidth(*shared);
    text += scale_up.shared_group > 1 ? fmt::format(", shared by traffic between groups of {}",
                                                    counted(scale_up.shared_group, "GPU"))
                                      : std::string(", shared by all traffic");
  }
  if (const auto joined = scale_up.socket_bandwidth) {
    text += fmt::format("; {} between sockets", format_bandwidth(*joined));
  }
  return text;
}

std::string transports_line(const Cluster& cluster) {
  if (cluster.transports.empty()) return "none described: ideal, the wires alone";
  std::string text;
  for (const TransportParameters& parameters : cluster.transports) {
    text += fmt::format("{}{}{}", text.empty() ? "" : ", ", transport_name(parameters),
                        text.empty() ? " (default)" : "");
  }
  return text;
}

void print(const Cluster& cluster, const FabricSummary& summary) {
  fmt::print("{}: {}\n\n", cluster.name, cluster.description);
  const auto line = [](const char* label, const std::string& text) {
    fmt::print("{:<21} {}\n", label, text);
  };
  line("GPUs",
       fmt::format("{} = {} node{} x {} ({})", summary.num_gpus, summary.num_nodes,
                   summary.num_nodes > 1 ? "s" : "", cluster.gpus_per_node, cluster.gpu.name));
  if (cluster.ranks_per_gpu > 1) {
    line("", fmt::format("{} of them are ranks that share a physical GPU", cluster.ranks_per_gpu));
  }
  if (cluster.scale_up) {
    line("scale-up domains", fmt::format("{} of {}", summary.num_domains,
                                         counted(summary.num_gpus / summary.num_domains, "GPU")));
    line("", injection_text(cluster.scale_up->injection));
    if (cluster.scale_up->shared_bandwidth) line("", scale_up_text(*cluster.scale_up));
  }
  if (cluster.nic) {
    line("NICs", fmt::format("{} ({} per GPU{})", summary.num_nics, cluster.nic->per_gpu,
                             cluster.nic->pxn ? ", cross-rail over scale-up" : ""));
    line("", injection_text(cluster.nic->injection));
    line("fabric", fmt::format("{}: {}", fabric_name(cluster), switches_text(summary)));
  }
  line("transports", transports_line(cluster));
  for (const std::string& warning : transport_warnings(cluster)) line("warning", warning);
  line("reachable", summary.reachable ? "every GPU from every other" : "NOT every GPU pair");
  line("diameter", counted(summary.diameter, "link"));
  if (summary.scale_up_bisection) {
    line("scale-up bisection", format_bandwidth(*summary.scale_up_bisection) + " per domain");
  }
  if (summary.network_bisection) {
    line("network bisection", format_bandwidth(*summary.network_bisection));
    if (summary.oversubscription) {
      line("oversubscription", fmt::format("{:.3g} : 1", *summary.oversubscription));
    }
  }
  if (cluster.relative_uncertainty) {
    line("uncertainty", fmt::format("+-{:.1f} percent", 100.0 * *cluster.relative_uncertainty));
  }
  for (const auto& [key, value] : cluster.provenance) line(key.c_str(), value);
  Table table{{"cables", "tier", "count", "each direction", "latency", "together"}, {}};
  for (const CableGroup& group : summary.cables) {
    table.rows.push_back(
        {group.name, to_string(group.tier), std::to_string(group.num_cables),
         format_bandwidth(group.bandwidth), format_seconds(group.latency),
         format_bandwidth(group.bandwidth * static_cast<double>(group.num_cables))});
  }
  fmt::print("\n{}", render(table));
}

void show(const ShowOptions& options) {
  const Cluster cluster =
      load_cluster(options.topology, parse_overrides(options.set), options.ranks);
  const FabricModel model = build_fabric(cluster);
  const FabricSummary summary = summarize(cluster, model);
  if (!options.svg.empty()) write_file(options.svg, draw_svg(cluster, model, summary));
  if (options.json) {
    std::cout << dump_json(cluster_json(cluster, summary), 2) << "\n";
  } else {
    print(cluster, summary);
  }
}

struct MachineArguments {
  std::string input;
  std::string output;
  std::string name;
  TopologyImportOptions options;
};

void run_machine_import(const MachineArguments& arguments) {
  ImportedTopology imported = import_topology(arguments.input, arguments.options);
  imported.cluster.name = arguments.name.empty()
                              ? std::filesystem::path(arguments.output).stem().string()
                              : arguments.name;
  for (const std::string& sentence : imported.read) spdlog::info("read: {}", sentence);
  for (const std::string& sentence : imported.not_known) spdlog::warn("not in it: {}", sentence);
  write_file(arguments.output, to_yaml(imported.cluster));
  fmt::print("{}: {} GPU{} in {} node{}\n", arguments.output, imported.cluster.num_gpus(),
             imported.cluster.num_gpus() == 1 ? "" : "s", imported.cluster.num_nodes,
             imported.cluster.num_nodes == 1 ? "" : "s");
}

void add_machine_import(CLI::App& topology) {
  CLI::App* command = topology.add_subcommand(
      "import", "Describes a cluster from what a machine or another simulator says of it");
  auto arguments = std::make_shared<MachineArguments>();
  std::string formats;
  for (const TopologyImporter& importer : topology_importers()) {
    formats += fmt::format("\n  {:12} {}", importer.name, importer.description);
  }
  command->add_option("INPUT", arguments->input, "The file; its format is told from it")
      ->required();
  command->add_option(
      "--base", arguments->options.base,
      "A preset or file of the same GPU: what the input cannot know; default: none");
  command
      ->add_option("--nodes", arguments->options.num_nodes,
                   "Nodes of this kind; more than one needs a base with a fabric. default: 1")
      ->check(CLI::Range(1U, 1U << 20));
  command->add_option("--name", arguments->name, "Name in reports; default: the output's stem");
  command->add_option("-o,--output", arguments->output, "The YAML file to write")->required();
  command->footer("Formats:" + formats +
                  "\n\nExample:\n  nvidia-smi topo -m > topo.txt\n"
                  "  coterie topology import topo.txt --base h100_node -o mine.yaml");
  command->callback([arguments] { run_machine_import(*arguments); });
}

}  // namespace

void add_topology_command(CLI::App& app) {
  CLI::App* topology =
      app.add_subcommand("topology", "Lists, shows and imports cluster descriptions");
  topology->require_subcommand(1);
  topology->footer(
      "Example:\n  coterie topology show h100_rail_optimised --ranks 2048 --svg c.svg");

  CLI::App* list = topology->add_subcommand("list", "Lists the presets");
  auto list_json = std::make_shared<bool>(false);
  list->add_flag("--json", *list_json, "Print JSON only");
  list->footer("Example:\n  coterie topology list");
  list->callback([list_json] { list_presets(*list_json); });

  CLI::App* show_app = topology->add_subcommand(
      "show", "Shows counts, bandwidth per tier, diameter and bisection of a cluster");
  auto options = std::make_shared<ShowOptions>();
  show_app->add_option("topology", options->topology, "A preset, a YAML file, or YAML in braces")
      ->required();
  show_app
      ->add_option(
          "--ranks", options->ranks,
          "GPUs to hold, for presets with nodes: auto; default: those of its default_nodes")
      ->check(CLI::Range(1U, 1U << 22));
  add_set_option(*show_app, options->set, "the topology");
  show_app->add_option("--svg", options->svg, "Draw the cluster to this file; default: no drawing");
  show_app->add_flag("--json", options->json, "Print JSON only");
  show_app->footer(
      "Example:\n  coterie topology show h100_rail_optimised --set nodes=2048 --set "
      "fabric.oversubscription=4");
  show_app->callback([options] { show(*options); });
  add_machine_import(*topology);
}

}  // namespace coterie
