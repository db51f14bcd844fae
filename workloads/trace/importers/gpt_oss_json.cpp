// The examples of AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (data/**/*_examples.json, written
// by that repository's expert_recorder.py and cleaner.py): an object, or a list of them, with
//   "router_data": [{"token_N": {"layer_L": {"selected_experts": [k], "selected_probs": [k],
//                                            "full_scores": [experts], if not removed}}}]
// One object is one sequence: the tokens that were generated, numbered from the prompt's length on.

#include <fmt/format.h>

#include <charconv>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/rows.hpp"

namespace coterie {
namespace {

// N of "token_N" or "layer_N".
std::uint64_t numbered(const std::string& key, std::string_view prefix, const std::string& where) {
  std::uint64_t number = 0;
  const char* end = key.data() + key.size();
  if (key.starts_with(prefix)) {
    const auto [last, status] = std::from_chars(key.data() + prefix.size(), end, number);
    if (status == std::errc{} && last == end) return number;
  }
  throw InputError(where, fmt::format("key \"{}\"", key), fmt::format("{}NUMBER", prefix));
}

class GptOssReader {
 public:
  void read_example(const nlohmann::json& example, std::uint64_t sequence,
                    const std::string& where) {
    const nlohmann::json& tokens = json_member(example, "router_data", where);
    if (!tokens.is_array()) throw InputError(where + ": router_data", "no list", "one of tokens");
    std::optional<std::uint64_t> before;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::string place = fmt::format("{}: router_data[{}]", where, i);
      if (!tokens[i].is_object() || tokens[i].size() != 1) {
        throw InputError(place, "no object of one token", "{\"token_N\": {...}}");
      }
      const std::string& key = tokens[i].begin().key();
      const nlohmann::json& layers = tokens[i].begin().value();
      const std::uint64_t token = numbered(key, "token_", place);
      if (before && token != *before + 1) {
        throw InputError(place, key, fmt::format("token_{}, as they are numbered on", *before + 1));
      }
      before = token;
      if (!layers.is_object()) throw InputError(place, "no object", "one of layers");
      for (const auto& [layer_key, choice] : layers.items()) {
        add(choice, sequence, token, numbered(layer_key, "layer_", place),
            fmt::format("{}, {}", place, layer_key));
      }
    }
  }
  Imported finish(const ImportOptions& options, const std::string& name) {
    Imported imported =
        table_.finish(resolve_num_experts(num_experts_, options, name), options, name);
    imported.notes.emplace_back("holds the generated tokens only, not those of the prompt");
    return imported;
  }

 private:
  void add(const nlohmann::json& choice, std::uint64_t sequence, std::uint64_t token,
           std::uint64_t layer, const std::string& where) {
    if (layer > 100000) throw InputError(where, fmt::format("layer {}", layer), "a layer number");
    const auto experts = json_ids(json_member(choice, "selected_experts", where), where);
    const auto weights = json_numbers(json_member(choice, "selected_probs", where), where);
    if (const auto scores = choice.find("full_scores"); scores != choice.end()) {
      const auto size = static_cast<std::uint32_t>(scores->size());
      if (num_experts_ && *num_experts_ != size) {
        throw InputError(where + ": full_scores", counted(size, "expert"),
                         fmt::format("{} as before", *num_experts_));
      }
      num_experts_ = size;
    }
    table_.add(sequence, token, static_cast<std::uint32_t>(layer), experts, weights, where);
  }

  RowTable table_;
  std::optional<std::uint32_t> num_experts_;
};

}  // namespace

bool is_gpt_oss_json(const FileHead& head) {
  const std::size_t first = head.text.find_first_not_of(" \t\r\n");
  return first != std::string::npos && (head.text[first] == '{' || head.text[first] == '[') &&
         (head.text.find("\"router_data\"") != std::string::npos ||
          (head.text.find("\"full_text\"") != std::string::npos &&
           head.text.find("\"finished_successfully\"") != std::string::npos));
}

Imported import_gpt_oss_json(const std::filesystem::path& path, const ImportOptions& options) {
  const std::string name = path.string();
  const nlohmann::json document = parse_json(read_file(path), name);
  GptOssReader reader;
  if (document.is_array()) {
    for (std::size_t i = 0; i < document.size(); ++i) {
      reader.read_example(document[i], i, fmt::format("{}: entry {}", name, i));
    }
  } else {
    reader.read_example(document, 0, name);
  }
  return reader.finish(options, name);
}

}  // namespace coterie
