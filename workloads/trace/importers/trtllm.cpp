// TensorRT-LLM's expert statistic (tensorrt_llm/_torch/expert_statistic.py; switched on by
// EXPERT_STATISTIC_ITER_RANGE): rank<r>.safetensors with one int64 [num_experts] of counts under
// "ITERATION_LAYER", and meta_info.json beside it with num_experts and num_experts_per_token,
// written by rank 0. The iterations are added up.
//
// A safetensors file is a little-endian 8-byte length, as many bytes of JSON {NAME: {dtype, shape,
// data_offsets}}, and the data that the offsets count from.

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <map>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/rows.hpp"

namespace coterie {
namespace {

// LAYER of "ITERATION_LAYER"; nothing for other names.
std::optional<std::uint32_t> layer_of_key(const std::string& key) {
  const std::size_t gap = key.find('_');
  if (gap == 0 || gap == std::string::npos) return std::nullopt;
  std::uint64_t iteration = 0;
  std::uint32_t layer = 0;
  const char* middle = key.data() + gap;
  const char* end = key.data() + key.size();
  const auto first = std::from_chars(key.data(), middle, iteration);
  const auto second = std::from_chars(middle + 1, end, layer);
  if (first.ec != std::errc{} || first.ptr != middle || second.ec != std::errc{} ||
      second.ptr != end) {
    return std::nullopt;
  }
  return layer;
}

// The header's length, 0 where the file is too short for it.
std::uint64_t header_size(std::string_view file) {
  std::uint64_t size = 0;
  if (file.size() < sizeof(size)) return 0;
  std::memcpy(&size, file.data(), sizeof(size));
  return size;
}

struct Meta {
  std::optional<std::uint32_t> num_experts, num_topk;
};

Meta read_meta(const std::filesystem::path& path) {
  Meta meta;
  if (!path_exists(path)) return meta;
  const nlohmann::json document = parse_json(read_file(path), path.string());
  const auto member = [&](const char* key, std::int64_t max) {
    return static_cast<std::uint32_t>(json_integer(json_member(document, key, path.string()), 1,
                                                   max, fmt::format("{}: {}", path.string(), key)));
  };
  meta.num_experts = member("num_experts", kMaxExperts);
  meta.num_topk = member("num_experts_per_token", kMaxTopk);
  return meta;
}

// The counts of one tensor, added to `sums`.
void add_tensor(const nlohmann::json& tensor, std::string_view data, const std::string& where,
                std::vector<std::uint64_t>& sums) {
  if (json_member(tensor, "dtype", where) != "I64") {
    throw InputError(where, "dtype " + json_excerpt(tensor["dtype"]),
                     "\"I64\", as torch.bincount gives");
  }
  const nlohmann::json& shape = json_member(tensor, "shape", where);
  const nlohmann::json& offsets = json_member(tensor, "data_offsets", where);
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  if (!shape.is_array() || shape.size() != 1 || !offsets.is_array() || offsets.size() != 2) {
    throw InputError(where, "shape " + json_excerpt(shape), "one dimension, the experts");
  }
  const std::int64_t num_experts = json_integer(shape[0], 1, kMaxExperts, where + ": shape");
  const std::int64_t begin = json_integer(offsets[0], 0, kMost, where + ": data_offsets");
  const std::int64_t end = json_integer(offsets[1], 0, kMost, where + ": data_offsets");
  if (end - begin != num_experts * 8 || std::cmp_greater(end, data.size())) {
    throw InputError(where, fmt::format("bytes {} to {} of {}", begin, end, data.size()),
                     fmt::format("{} inside the file", counted(num_experts * 8, "byte")));
  }
  if (sums.empty()) sums.resize(static_cast<std::size_t>(num_experts), 0);
  if (sums.size() != static_cast<std::size_t>(num_experts)) {
    throw InputError(where, counted(num_experts, "expert"),
                     fmt::format("{} as before", sums.size()));
  }
  for (std::size_t e = 0; e < sums.size(); ++e) {
    std::int64_t count = 0;
    std::memcpy(&count, data.data() + begin + static_cast<std::int64_t>(e) * 8, sizeof(count));
    if (count < 0) throw InputError(where, fmt::format("count {}", count), "none below 0");
    sums[e] += static_cast<std::uint64_t>(count);
  }
}

}  // namespace

bool is_trtllm(const FileHead& head) {
  const std::string_view text = head.text;
  return head.path.extension() == ".safetensors" && header_size(text) > 2 && text[8] == '{';
}

Imported import_trtllm(const std::filesystem::path& path, const ImportOptions& options) {
  const std::string name = path.string();
  const std::string file = read_file(path);
  const std::uint64_t size = header_size(file);
  if (size == 0 || size > file.size() - 8) {
    throw InputError(
        name, fmt::format("a header of {} in a file of {}", counted(size, "byte"), file.size()),
        "a whole safetensors file");
  }
  const nlohmann::json header = parse_json(std::string_view(file).substr(8, size), name);
  if (!header.is_object()) throw InputError(name, "no object", "a header of tensors");
  const std::string_view data = std::string_view(file).substr(8 + size);
  std::map<std::uint32_t, std::vector<std::uint64_t>> sums;
  for (const auto& [key, tensor] : header.items()) {
    if (key == "__metadata__") continue;
    const auto layer = layer_of_key(key);
    if (!layer) {
      throw InputError(name, fmt::format("a tensor \"{}\"", key),
                       "ITERATION_LAYER, as TensorRT-LLM's expert statistic names its counts");
    }
    add_tensor(tensor, data, fmt::format("{}: {}", name, key), sums[*layer]);
  }
  if (sums.empty()) throw InputError(name, "no counts", "at least one iteration of one layer");
  const Meta meta = read_meta(path.parent_path() / "meta_info.json");
  const auto num_experts = static_cast<std::uint32_t>(sums.begin()->second.size());
  ExpertCounts counts;
  counts.num_experts = resolve_num_experts(num_experts, options, name);
  if (meta.num_experts && *meta.num_experts != num_experts) {
    throw InputError(name, counted(num_experts, "expert"),
                     fmt::format("{} as meta_info.json says", *meta.num_experts));
  }
  if (options.model) counts.num_topk = options.model->num_topk;
  if (options.num_topk) counts.num_topk = *options.num_topk;
  if (meta.num_topk) counts.num_topk = *meta.num_topk;
  for (const auto& [layer, row] : sums) {
    if (row.size() != num_experts) {
      throw InputError(fmt::format("{}: layer {}", name, layer), counted(row.size(), "expert"),
                       fmt::format("{} as in the other layers", num_experts));
    }
    counts.layers.push_back(layer);
    counts.counts.insert(counts.counts.end(), row.begin(), row.end());
  }
  Imported imported;
  imported.trace = std::move(counts);
  return imported;
}

}  // namespace coterie
