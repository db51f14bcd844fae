// `coterie place`: learns a placement and writes it.

#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "core/error.hpp"
#include "sim/cli/commands.hpp"
#include "sim/cli/placement_options.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

struct PlaceArguments {
  PlacementOptions options;
  std::filesystem::path output;
  std::string format = "coterie";
};

void run_place(const PlaceArguments& arguments) {
  const auto format = parse_placement_format(arguments.format);
  if (!format) {
    throw InputError("--format", fmt::format("'{}'", arguments.format),
                     "one of coterie, eplb, sglang");
  }
  const Placement placement =
      learn_placement(read_moet(arguments.options.trace), arguments.options);
  write_placement(arguments.output, placement, *format);
  fmt::print("{}: {} layers of {} experts on {} ranks ({} per node), {}, {}\n",
             arguments.output.string(), placement.layers.size(), placement.num_experts,
             placement.num_ranks, placement.ranks_per_node, placement.strategy,
             placement.trained_on.empty() ? "nothing learnt"
                                          : fmt::format("learnt on {}", placement.trained_on));
}

}  // namespace

void add_place_command(CLI::App& app) {
  auto arguments = std::make_shared<PlaceArguments>();
  CLI::App* command = app.add_subcommand("place", "Learns which rank hosts which expert");
  add_placement_options(*command, arguments->options);
  command->get_option("--ranks")->required();
  command->get_option("--strategy")->required();
  command->add_option("-o,--output", arguments->output, "The placement to write")->required();
  command
      ->add_option("--format", arguments->format,
                   "coterie; or physical_to_logical_map as eplb (and vLLM) or sglang read it")
      ->capture_default_str();
  command->footer(
      "Example:\n  coterie place law.moet --ranks 8 --strategy collaboration -o placement.json");
  command->callback([arguments] { run_place(*arguments); });
}

}  // namespace coterie
