// `coterie trace info`.

#include "sim/cli/trace_info.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/counted.hpp"
#include "core/json.hpp"
#include "core/table.hpp"
#include "workloads/trace/describe.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {

std::string trace_summary(const Trace& trace) {
  if (const auto* routing = std::get_if<Routing>(&trace)) {
    return fmt::format("{}, {} in {}, top-{} of {}{}", counted(routing->num_layers(), "layer"),
                       counted(routing->num_tokens(), "token"),
                       counted(routing->num_sequences(), "sequence"), routing->num_topk,
                       counted(routing->num_experts, "expert"),
                       routing->weights.empty() ? "" : ", with router weights");
  }
  const auto& counts = std::get<ExpertCounts>(trace);
  return fmt::format("{}, {}, counts only", counted(counts.layers.size(), "layer"),
                     counted(counts.num_experts, "expert"));
}

namespace {

nlohmann::json to_json(const LoadSkew& load) {
  return {{"total", load.total},
          {"max_over_mean", load.max_over_mean},
          {"gini", load.gini},
          {"entropy", load.entropy},
          {"num_unused", load.num_unused}};
}

nlohmann::json to_json(const LayerDescription& layer) {
  nlohmann::json pairs = nlohmann::json::array();
  for (const CollaboratingPair& pair : layer.top_pairs) {
    pairs.push_back({{"experts", {pair.a, pair.b}}, {"tokens", pair.count}, {"lift", pair.lift}});
  }
  nlohmann::json fanout = nlohmann::json::array();
  for (const FanOutSample& sample : layer.fanout) {
    fanout.push_back({{"ranks", sample.num_ranks},
                      {"hypergeometric", sample.hypergeometric},
                      {"contiguous", sample.contiguous}});
  }
  return {{"layer", layer.layer},
          {"load", to_json(layer.load)},
          {"collaboration",
           {{"pairs_seen", layer.num_pairs_seen},
            {"top_one_percent_share", layer.top_share},
            {"top_pairs", pairs},
            {"total_variation", layer.pair_variation},
            {"total_variation_noise", layer.pair_variation_noise},
            {"information_bits", layer.pair_information_bits},
            {"information_noise_bits", layer.pair_information_noise_bits}}},
          {"fanout_ranks", fanout}};
}

void print_layers(const std::vector<LayerDescription>& layers) {
  Table table{{"layer", "max/mean", "gini", "entropy", "unused", "top 1% pairs", "TV", "noise",
               "bits", "noise"},
              {}};
  for (const LayerDescription& layer : layers) {
    table.rows.push_back(
        {std::to_string(layer.layer), fmt::format("{:.2f}", layer.load.max_over_mean),
         fmt::format("{:.3f}", layer.load.gini), fmt::format("{:.3f}", layer.load.entropy),
         std::to_string(layer.load.num_unused), fmt::format("{:.1f}%", 100.0 * layer.top_share),
         fmt::format("{:.3f}", layer.pair_variation),
         fmt::format("{:.3f}", layer.pair_variation_noise),
         fmt::format("{:.3f}", layer.pair_information_bits),
         fmt::format("{:.3f}", layer.pair_information_noise_bits)});
  }
  fmt::print(
      "\nLoad of the experts, and how far pairs are from independent choices with the same loads\n"
      "(TV: total variation, bits: divergence; noise: what sampling alone gives)\n\n{}",
      render(table));
}

void print_fanout(const std::vector<LayerDescription>& layers) {
  if (layers.empty() || layers.front().fanout.empty()) return;
  Table table{{"ranks", "uniform routing", "contiguous", "difference"}, {}};
  for (std::size_t i = 0; i < layers.front().fanout.size(); ++i) {
    double contiguous = 0.0;
    for (const LayerDescription& layer : layers) contiguous += layer.fanout[i].contiguous;
    contiguous /= static_cast<double>(layers.size());
    const double uniform = layers.front().fanout[i].hypergeometric;
    table.rows.push_back({std::to_string(layers.front().fanout[i].num_ranks),
                          fmt::format("{:.3f}", uniform), fmt::format("{:.3f}", contiguous),
                          fmt::format("{:+.1f}%", 100.0 * (contiguous / uniform - 1.0))});
  }
  fmt::print("\nDistinct ranks per token (own rank included when hit), mean over layers\n\n{}",
             render(table));
}

void print_pairs(const std::vector<LayerDescription>& layers) {
  fmt::print("\nMost collaborated pairs (lift: over independent choices)\n");
  for (const LayerDescription& layer : layers) {
    fmt::print("  layer {:3}:", layer.layer);
    for (const CollaboratingPair& pair : layer.top_pairs) {
      fmt::print("  {}+{} {} ({:.1f}x)", pair.a, pair.b, pair.count, pair.lift);
    }
    fmt::print("\n");
  }
}

struct InfoArguments {
  std::filesystem::path trace;
  std::vector<std::uint32_t> ranks{4, 8, 16};
  std::size_t num_pairs = 3;
  bool json = false;
};

void describe_routing(const InfoArguments& arguments, const Routing& routing) {
  const auto layers = describe(routing, arguments.ranks, arguments.num_pairs);
  if (!arguments.json) {
    print_layers(layers);
    print_fanout(layers);
    print_pairs(layers);
    return;
  }
  nlohmann::json document{{"schema_version", 1},
                          {"kind", "tokens"},
                          {"model", routing.model},
                          {"origin", routing.origin},
                          {"num_experts", routing.num_experts},
                          {"num_topk", routing.num_topk},
                          {"num_tokens", routing.num_tokens()},
                          {"num_sequences", routing.num_sequences()},
                          {"has_weights", !routing.weights.empty()},
                          {"layers", nlohmann::json::array()}};
  for (const LayerDescription& layer : layers) document["layers"].push_back(to_json(layer));
  fmt::print("{}\n", dump_json(document, 2));
}

void describe_counts(const InfoArguments& arguments, const ExpertCounts& counts) {
  Table table{{"layer", "choices", "max/mean", "gini", "entropy", "unused"}, {}};
  nlohmann::json document{{"schema_version", 1},
                          {"kind", "counts"},
                          {"model", counts.model},
                          {"origin", counts.origin},
                          {"num_experts", counts.num_experts},
                          {"layers", nlohmann::json::array()}};
  for (std::size_t i = 0; i < counts.layers.size(); ++i) {
    const LoadSkew load =
        load_skew(std::span(counts.counts).subspan(i * counts.num_experts, counts.num_experts));
    document["layers"].push_back({{"layer", counts.layers[i]}, {"load", to_json(load)}});
    table.rows.push_back({std::to_string(counts.layers[i]), std::to_string(load.total),
                          fmt::format("{:.2f}", load.max_over_mean),
                          fmt::format("{:.3f}", load.gini), fmt::format("{:.3f}", load.entropy),
                          std::to_string(load.num_unused)});
  }
  if (arguments.json) {
    fmt::print("{}\n", dump_json(document, 2));
  } else {
    fmt::print("\nLoad of the experts (this trace has no tokens, so no collaboration)\n\n{}",
               render(table));
  }
}

void run_info(const InfoArguments& arguments) {
  const Trace trace = read_moet(arguments.trace);
  if (!arguments.json) {
    fmt::print("{}: {}\n", arguments.trace.string(), trace_summary(trace));
    std::visit([](const auto& t) { fmt::print("origin: {}\n", t.origin); }, trace);
  }
  if (const auto* routing = std::get_if<Routing>(&trace)) {
    describe_routing(arguments, *routing);
  } else {
    describe_counts(arguments, std::get<ExpertCounts>(trace));
  }
}

}  // namespace

void add_trace_info(CLI::App& trace) {
  auto arguments = std::make_shared<InfoArguments>();
  CLI::App* command = trace.add_subcommand(
      "info", "Shape, load skew, collaboration, distance from independent routing");
  command->add_option("TRACE", arguments->trace, "A .moet trace")->required();
  command->add_option("--ranks", arguments->ranks, "EP sizes of the fan-out, comma-separated")
      ->capture_default_str()
      ->delimiter(',')
      ->check(CLI::Range(1U, 65535U));
  command->add_option("--pairs", arguments->num_pairs, "Most collaborated pairs per layer")
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Print JSON only");
  command->footer("Example:\n  coterie trace info workloads/examples/collaborating.moet");
  command->callback([arguments] { run_info(*arguments); });
}

}  // namespace coterie
