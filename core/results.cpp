#include "core/results.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/error.hpp"
#include "core/file.hpp"

namespace coterie {
namespace {

constexpr std::array<const char*, 3> kTiers{"local", "scale_up", "network"};

// Quoted only where a comma, quote or line break asks for it (RFC 4180).
std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  out += '"';
  return out;
}

}  // namespace

nlohmann::json to_json(const Results& results) {
  nlohmann::json out{
      {"schema_version", 1}, {"experiment", results.experiment}, {"runs", nlohmann::json::array()}};
  for (const RunReport& run : results.runs) out["runs"].push_back(to_json(run));
  return out;
}

Results results_from_json(const nlohmann::json& document, const std::string& where) {
  try {
    if (const int version = document.at("schema_version").get<int>(); version != 1) {
      throw InputError(where, fmt::format("schema_version {}", version), "schema_version 1");
    }
    Results results;
    document.at("experiment").get_to(results.experiment);
    const auto& runs = document.at("runs");
    for (std::size_t i = 0; i < runs.size(); ++i) {
      results.runs.push_back(report_from_json(runs[i], fmt::format("{}: run {}", where, i)));
    }
    return results;
  } catch (const nlohmann::json::exception& error) {
    throw InputError(where, error.what(), "results of schema_version 1");
  }
}

std::string to_csv(const Results& results) {
  std::string out =
      "experiment,kind,engine,run,policy,placement,exact,topology,model,trace,num_ranks,"
      "tokens_per_rank,dispatch_payload,combine_payload,layer,time_s,bound_s,copies,fanout_ranks,"
      "remote_fanout_ranks,fanout_nodes,remote_fanout_nodes,rank_load_max_over_mean";
  for (int p = 0; p < kNumPhases; ++p)
    out += fmt::format(",{}_s", to_string(static_cast<Phase>(p)));
  for (const char* tier : kTiers) out += fmt::format(",{}_bytes", tier);
  out += '\n';
  for (const RunReport& run : results.runs) {
    for (const LayerReport& layer : run.layers) {
      out +=
          fmt::format("{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
                      csv_cell(results.experiment), run.kind, run.engine, csv_cell(run.name),
                      run.policy, csv_cell(run.placement), run.exact, csv_cell(run.topology),
                      csv_cell(run.model), csv_cell(run.trace), run.num_ranks, run.tokens_per_rank,
                      run.dispatch_payload, run.combine_payload, layer.layer, layer.time_s,
                      layer.bound_s, layer.copies, layer.fanout_ranks, layer.remote_fanout_ranks,
                      layer.fanout_nodes, layer.remote_fanout_nodes, layer.rank_load_max_over_mean);
      for (int p = 0; p < kNumPhases; ++p) {
        const auto times =
            std::find_if(layer.phases.begin(), layer.phases.end(),
                         [p](const PhaseTimes& t) { return t.phase == static_cast<Phase>(p); });
        out += times == layer.phases.end() ? "," : fmt::format(",{}", times->slowest_s());
      }
      for (const char* tier : kTiers) {
        std::int64_t bytes = 0;
        for (const TransferGroup& group : layer.groups) {
          if (group.tier == tier) bytes += group.bytes;
        }
        out += fmt::format(",{}", bytes);
      }
      out += '\n';
    }
  }
  return out;
}

void write_results(const std::filesystem::path& folder, const Results& results) {
  write_file(folder / "results.json", to_json(results).dump(1) + "\n");
  write_file(folder / "results.csv", to_csv(results));
}

Results read_results(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  const auto document = nlohmann::json::parse(text, nullptr, false);
  if (document.is_discarded()) throw InputError(path.string(), "text that is no JSON", "results");
  return results_from_json(document, path.string());
}

}  // namespace coterie
