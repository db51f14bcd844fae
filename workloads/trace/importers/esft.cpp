// ESFT's published expert scores (deepseek-ai/ESFT, results/expert_scores/TASK/): one text file per
// layer, expert_weights_LAYER.txt, one line per sequence:
//   the tokens' ids, k each, separated by tabs; an empty cell; their router weights, likewise
// scripts/get_expert_scores.py of that repository reads them so. k is not in the file. Files of
// several layers are merged by layer.

#include <fmt/format.h>

#include <charconv>
#include <string_view>

#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"

namespace coterie {
namespace {

constexpr std::string_view kPrefix = "expert_weights_";

// LAYER of expert_weights_LAYER.txt.
std::optional<std::uint32_t> layer_of_name(const std::filesystem::path& path) {
  const std::string stem = path.stem().string();
  if (!stem.starts_with(kPrefix)) return std::nullopt;
  std::uint32_t layer = 0;
  const char* end = stem.data() + stem.size();
  const auto [last, status] = std::from_chars(stem.data() + kPrefix.size(), end, layer);
  return status == std::errc{} && last == end ? std::optional(layer) : std::nullopt;
}

template <class T>
std::vector<T> parse_cells(std::string_view text, const std::string& where,
                           std::string_view expected) {
  std::vector<T> values;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\t', begin), text.size());
    const std::string_view cell = text.substr(begin, end - begin);
    T value{};
    const auto [last, status] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    if (status != std::errc{} || last != cell.data() + cell.size()) {
      throw InputError(where, fmt::format("\"{}\"", cell), expected);
    }
    values.push_back(value);
    begin = end + 1;
  }
  return values;
}

}  // namespace

bool is_esft(const FileHead& head) {
  const std::string_view line = std::string_view(head.text).substr(0, head.text.find('\n'));
  return layer_of_name(head.path) && line.find_first_not_of("0123456789.\t\re-") == line.npos &&
         line.find('\t') != line.npos;
}

Imported import_esft(const std::filesystem::path& path, const ImportOptions& options) {
  const std::string name = path.string();
  const auto layer = layer_of_name(path);
  if (!layer) {
    throw InputError(name, "a name without the layer",
                     "expert_weights_LAYER.txt, as ESFT publishes them");
  }
  if (!options.num_topk && !options.model) {
    throw InputError(name, "no number of experts per token in the input",
                     "--num-topk or --model to give it");
  }
  const std::size_t k = options.num_topk ? *options.num_topk : options.model->num_topk;
  LineFile in(path);
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  TokenMajor input;
  std::string line;
  while (in.next(line)) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    const std::string where = fmt::format("{}: line {}", name, in.number());
    const std::size_t gap = line.find("\t\t");
    if (gap == std::string::npos) {
      throw InputError(where, "no empty cell", "ids, an empty cell and router weights");
    }
    const auto line_ids =
        parse_cells<std::int32_t>(std::string_view(line).substr(0, gap), where, "an expert id");
    const auto line_weights =
        parse_cells<float>(std::string_view(line).substr(gap + 2), where, "a router weight");
    if (k == 0 || line_ids.empty() || line_ids.size() % k != 0) {
      throw InputError(where, fmt::format("{} ids", line_ids.size()),
                       fmt::format("a multiple of {}, as many as a token has", k));
    }
    if (line_weights.size() != line_ids.size()) {
      throw InputError(where, fmt::format("{} router weights", line_weights.size()),
                       fmt::format("{}, one per id", line_ids.size()));
    }
    ids.insert(ids.end(), line_ids.begin(), line_ids.end());
    weights.insert(weights.end(), line_weights.begin(), line_weights.end());
    input.sequence_lengths.push_back(line_ids.size() / k);
  }
  if (ids.empty()) throw InputError(name, "no lines", "one line per sequence");
  const std::vector<std::uint64_t> shape{ids.size() / k, 1, k};
  input.experts = {NumberType::kI32, shape, std::as_bytes(std::span(ids))};
  input.weights = ArrayView{NumberType::kF32, shape, std::as_bytes(std::span(weights))};
  input.layers = {*layer};
  return assemble(input, options, name);
}

}  // namespace coterie
