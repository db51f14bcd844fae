#include "workloads/trace/importer.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"
#include "workloads/trace/importers/formats.hpp"

namespace coterie {

const std::vector<Importer>& importers() {
  static const std::vector<Importer> kImporters{
      {"npz", "NumPy archive: routed_experts [tokens, layers, k] and companions; vLLM users' files",
       import_npz},
      {"npy", "NumPy array [tokens, layers, k], as saved from vLLM (needs --num-experts)",
       import_npy},
      {"vllm-jsonl", "vLLM routing loggers: a meta line, then a route line per token and layer",
       import_vllm_jsonl},
      {"sglang", "SGLang's expert-distribution recorder (.pt), modes stat and per_token",
       import_sglang},
      {"megatron-jsonl", "Megatron-LM's --moe-routing-trace-path (needs --num-experts)",
       import_megatron_jsonl},
      {"json", "one prefill and its decode steps as JSON (needs --num-experts)", import_json},
      {"csv", "llama.cpp style: layer,\"space separated ids\" (needs --num-experts)", import_csv},
      {"hf-json", "Hugging Face router logits as JSON; the choice is redone (see --selection)",
       import_hf_json},
  };
  return kImporters;
}

const Importer& find_importer(const std::string& name) {
  std::vector<std::string> known;
  for (const Importer& importer : importers()) {
    if (importer.name == name) return importer;
    known.push_back(importer.name);
  }
  throw InputError("--format", fmt::format("\"{}\"", name),
                   fmt::format("one of {}", fmt::join(known, ", ")));
}

namespace {

void check_sound(const Trace& trace, const std::string& path) {
  const auto problems = std::visit([](const auto& t) { return check(t); }, trace);
  if (!problems.empty()) {
    throw InputError(
        fmt::format("{}: {}{}", path, problems.front(),
                    problems.size() > 1 ? fmt::format(" (and {} more)", problems.size() - 1) : ""));
  }
  if (const auto* counts = std::get_if<ExpertCounts>(&trace)) {
    if (std::all_of(counts->counts.begin(), counts->counts.end(),
                    [](std::uint64_t count) { return count == 0; })) {
      throw InputError(path, "only zeros as expert counts",
                       "a recording in which at least one token was routed");
    }
  }
}

void append(ExpertCounts& all, const ExpertCounts& more, const std::string& path) {
  if (more.num_experts != all.num_experts || more.layers != all.layers) {
    throw InputError(path,
                     fmt::format("{} layers of {} experts", more.layers.size(), more.num_experts),
                     fmt::format("{} layers of {} experts as in the inputs before it",
                                 all.layers.size(), all.num_experts));
  }
  for (std::size_t i = 0; i < all.counts.size(); ++i) all.counts[i] += more.counts[i];
}

// The routings one after the other; all of the same shape.
Routing concatenate(const std::vector<Routing>& parts,
                    std::span<const std::filesystem::path> inputs) {
  Routing all;
  const Routing& first = parts.front();
  all.model = first.model;
  all.num_experts = first.num_experts;
  all.num_topk = first.num_topk;
  all.layers = first.layers;
  all.sequence_begin.push_back(0);
  std::size_t num_ids = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Routing& part = parts[i];
    if (part.num_experts != all.num_experts || part.num_topk != all.num_topk ||
        part.layers != all.layers || part.weights.empty() != first.weights.empty()) {
      const auto shape = [](const Routing& r) {
        return fmt::format("{} layers, top-{} of {}, {} weights", r.num_layers(), r.num_topk,
                           r.num_experts, r.weights.empty() ? "no" : "with");
      };
      throw InputError(inputs[i].string(), shape(part),
                       fmt::format("{} as in {}", shape(first), inputs[0].string()));
    }
    const std::uint64_t offset = all.sequence_begin.back();
    for (std::size_t s = 1; s < part.sequence_begin.size(); ++s) {
      all.sequence_begin.push_back(offset + part.sequence_begin[s]);
    }
    num_ids += part.experts.size();
    all.origin += (i == 0 ? "" : ", ") + part.origin;
  }
  all.experts.reserve(num_ids);
  if (!first.weights.empty()) all.weights.reserve(num_ids);
  for (std::size_t layer_idx = 0; layer_idx < all.num_layers(); ++layer_idx) {
    for (const Routing& part : parts) {
      const auto ids = part.layer_experts(layer_idx);
      all.experts.insert(all.experts.end(), ids.begin(), ids.end());
      const auto weights = part.layer_weights(layer_idx);
      all.weights.insert(all.weights.end(), weights.begin(), weights.end());
    }
  }
  return all;
}

}  // namespace

Imported import_traces(std::span<const std::filesystem::path> inputs, const std::string& format,
                       const ImportOptions& options) {
  const Importer& importer = find_importer(format);
  if (inputs.empty()) throw InputError("trace import: found no input files, expected at least one");
  Imported all;
  std::vector<Routing> routings;
  std::optional<ExpertCounts> counts;
  for (const std::filesystem::path& input : inputs) {
    Imported one = importer.import_file(input, options);
    check_sound(one.trace, input.string());
    all.num_dropped_rows += one.num_dropped_rows;
    for (std::string& note : one.notes) {
      all.notes.push_back(fmt::format("{}: {}", input.string(), note));
    }
    if (auto* routing = std::get_if<Routing>(&one.trace)) {
      routing->origin = input.filename().string();
      routings.push_back(std::move(*routing));
    } else {
      auto& more = std::get<ExpertCounts>(one.trace);
      more.origin = input.filename().string();
      if (counts) {
        append(*counts, more, input.string());
        counts->origin += ", " + more.origin;
      } else {
        counts = std::move(more);
      }
    }
    if (counts && !routings.empty()) {
      throw InputError(input.string(),
                       "expert counts among recordings of tokens, or the other way round",
                       "inputs of one kind");
    }
  }
  if (counts) {
    all.trace = std::move(*counts);
  } else {
    all.trace = routings.size() == 1 ? std::move(routings.front()) : concatenate(routings, inputs);
  }
  if (options.model) {
    std::visit([&](auto& trace) { trace.model = options.model->name; }, all.trace);
  }
  return all;
}

}  // namespace coterie
