#include "workloads/trace/importer.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/archive.hpp"
#include "workloads/trace/combine.hpp"
#include "workloads/trace/importers/formats.hpp"

namespace coterie {

const std::vector<Importer>& importers() {
  static const std::vector<Importer> kImporters{
      {"npz", "NumPy archive: routed_experts [tokens, layers, k] and companions; vLLM users' files",
       import_npz, is_npz},
      {"npy", "NumPy array [tokens, layers, k], as saved from vLLM (needs --num-experts)",
       import_npy, is_npy},
      {"vllm-jsonl", "vLLM routing loggers: a meta line, then a route line per token and layer",
       import_vllm_jsonl, is_vllm_jsonl},
      {"sglang", "SGLang's expert-distribution recorder (.pt): stat, per_pass and per_token",
       import_sglang, is_sglang},
      {"megatron-jsonl", "Megatron-LM's --moe-routing-trace-path (needs --num-experts)",
       import_megatron_jsonl, is_megatron_jsonl},
      {"json", "one prefill and its decode steps as JSON (needs --num-experts)", import_json,
       is_json_dump},
      {"csv", "a table of choices or counts by layer; its header says which (needs --num-experts)",
       import_csv, is_csv},
      {"hf-json", "Hugging Face router logits as JSON; the choice is redone (see --selection)",
       import_hf_json, is_hf_json},
      {"esft", "ESFT's expert_weights_LAYER.txt, one file per layer (needs --model)", import_esft,
       is_esft},
      {"gpt-oss-json", "router_data of GPT-OSS-MoE-ExpertFingerprinting (needs --num-experts)",
       import_gpt_oss_json, is_gpt_oss_json},
      {"trtllm", "TensorRT-LLM's expert statistic: rank<r>.safetensors, counts", import_trtllm,
       is_trtllm},
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

// What the options say about the shape must be what the data has.
void check_against_options(const Trace& trace, const ImportOptions& options,
                           const std::string& where) {
  const std::uint32_t num_topk = std::visit([](const auto& t) { return t.num_topk; }, trace);
  if (num_topk == 0) return;  // counts that do not say
  if (options.num_topk && *options.num_topk != num_topk) {
    throw InputError(where, fmt::format("top-{}", num_topk),
                     fmt::format("top-{} as --num-topk says", *options.num_topk));
  }
  if (options.model && options.model->num_topk != num_topk) {
    throw InputError(where, fmt::format("top-{}", num_topk),
                     fmt::format("top-{} as {} has", options.model->num_topk, options.model->name));
  }
}

// Every MoE layer that was asked for must have routing in one of the inputs.
void check_layers(const Trace& trace, const ImportOptions& options, const std::string& where) {
  std::vector<std::uint32_t> wanted = options.layers;
  if (wanted.empty() && options.model) wanted = options.model->moe_layers;
  const auto& layers = std::visit(
      [](const auto& t) -> const auto& { return t.layers; }, trace);
  for (const std::uint32_t layer : wanted) {
    if (std::find(layers.begin(), layers.end(), layer) == layers.end()) {
      throw InputError(where, fmt::format("no layer {}", layer), "every MoE layer asked for");
    }
  }
  for (const std::uint32_t layer : layers) {  // importers of tokens leave such layers out
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), layer) == wanted.end()) {
      throw InputError(where, fmt::format("choices in layer {}", layer),
                       "none outside the MoE layers asked for");
    }
  }
}

// Every engine can fuse shared experts with the routed ones; then every token "chooses" them. With
// their ids inside the number of experts nothing else gives them away.
void note_shared_expert(const Routing& routing, std::vector<std::string>& notes) {
  constexpr std::uint64_t kFewestTokens = 16;  // below, a popular expert may do so by chance
  if (routing.num_topk < 2 || routing.num_tokens() < kFewestTokens) return;
  std::optional<std::vector<ExpertIdx>> common;  // to all rows
  for (std::size_t at = 0; at < routing.experts.size(); at += routing.num_topk) {
    const auto row = std::span(routing.experts).subspan(at, routing.num_topk);
    if (!common) common.emplace(row.begin(), row.end());
    std::erase_if(*common,
                  [&](ExpertIdx id) { return std::find(row.begin(), row.end(), id) == row.end(); });
    if (common->empty()) return;
  }
  notes.push_back(fmt::format(
      "expert {} is chosen by every token in every layer, as a shared expert fused with the routed "
      "ones is: if so, leave it out by giving the number of routed experts (--num-experts or "
      "--model)",
      fmt::join(*common, ", ")));
}

FileHead read_head(const std::filesystem::path& path) {
  constexpr std::size_t kHeadBytes = 65536;
  FileHead head{path, std::string(kHeadBytes, '\0'), {}};
  std::ifstream in = open_input(path);
  in.read(head.text.data(), static_cast<std::streamsize>(kHeadBytes));
  head.text.resize(static_cast<std::size_t>(in.gcount()));
  if (head.text.starts_with("PK\x03\x04")) head.members = Archive(path).names();
  return head;
}

}  // namespace

const Importer& infer_importer(std::span<const std::filesystem::path> inputs) {
  const Importer* inferred = nullptr;
  for (const std::filesystem::path& input : inputs) {
    const FileHead head = read_head(input);
    std::vector<const Importer*> fitting;
    std::vector<std::string> names;
    for (const Importer& importer : importers()) {
      names.push_back(importer.name);
      if (importer.recognises(head)) fitting.push_back(&importer);
    }
    if (fitting.size() != 1) {
      throw InputError(input.string(), "a format that is not certain",
                       fmt::format("--format with one of {}", fmt::join(names, ", ")));
    }
    if (inferred != nullptr && inferred != fitting.front()) {
      throw InputError(input.string(), fmt::format("a file of format {}", fitting.front()->name),
                       fmt::format("{} as in {}", inferred->name, inputs.front().string()));
    }
    inferred = fitting.front();
  }
  return *inferred;
}

Imported import_traces(std::span<const std::filesystem::path> inputs, const std::string& format,
                       const ImportOptions& options) {
  if (inputs.empty()) throw InputError("trace import: found no input files, expected at least one");
  const Importer& importer = format.empty() ? infer_importer(inputs) : find_importer(format);
  std::vector<ImportedFile> files;
  for (const std::filesystem::path& input : inputs) {
    ImportedFile file{input.string(), importer.import_file(input, options)};
    check_sound(file.imported.trace, file.name);
    check_against_options(file.imported.trace, options, file.name);
    std::visit([&](auto& trace) { trace.origin = input.filename().string(); }, file.imported.trace);
    files.push_back(std::move(file));
  }
  const std::string where =
      files.size() == 1 ? files.front().name : fmt::format("the {} inputs", files.size());
  Imported all = combine(std::move(files));
  check_layers(all.trace, options, where);
  if (const auto* routing = std::get_if<Routing>(&all.trace)) {
    note_shared_expert(*routing, all.notes);
  }
  if (options.model) {
    std::visit([&](auto& trace) { trace.model = options.model->name; }, all.trace);
  }
  return all;
}

}  // namespace coterie
