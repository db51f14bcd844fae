// NumPy .npz archives with `routed_experts` [tokens, layers, k].
//
// Two layouts: whole traces (topk_weights, seq_len, layers, num_experts beside it), and what users
// of vLLM's enable_return_routed_experts save per request (request_id, prompt_token_ids,
// output_token_ids), which is one sequence and lacks the number of experts.

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "core/error.hpp"
#include "workloads/trace/archive.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"

namespace coterie {
namespace {

// A member of small whole numbers as a list.
template <class T>
std::vector<T> read_numbers(const Archive& archive, const std::string& member) {
  const std::string where = archive.where(member);
  const Buffer bytes = archive.read(member);
  std::vector<T> numbers;
  for (const std::int64_t value : to_integers(parse_npy(bytes.bytes(), where), where)) {
    if (value < 0 || std::cmp_greater(value, std::numeric_limits<T>::max())) {
      throw InputError(where, fmt::format("{}", value), "numbers from 0");
    }
    numbers.push_back(static_cast<T>(value));
  }
  return numbers;
}

}  // namespace

Imported import_npz(const std::filesystem::path& path, const ImportOptions& options) {
  const Archive archive(path);
  if (!archive.has("routed_experts.npy")) {
    throw InputError(
        path.string(),
        fmt::format("an archive with {}",
                    archive.names().empty() ? "no members"
                                            : fmt::format("{}", fmt::join(archive.names(), ", "))),
        "a member routed_experts.npy");
  }
  TokenMajor input;
  const std::string where = archive.where("routed_experts.npy");
  const Buffer experts = archive.read("routed_experts.npy");
  input.experts = parse_npy(experts.bytes(), where);
  Buffer weights;
  if (archive.has("topk_weights.npy")) {
    weights = archive.read("topk_weights.npy");
    input.weights = parse_npy(weights.bytes(), archive.where("topk_weights.npy"));
  }
  if (archive.has("layers.npy")) {
    input.layers = read_numbers<std::uint32_t>(archive, "layers.npy");
  }
  if (archive.has("seq_len.npy")) {
    input.sequence_lengths = read_numbers<std::uint64_t>(archive, "seq_len.npy");
  }
  if (archive.has("num_experts.npy")) {
    const auto number = read_numbers<std::uint32_t>(archive, "num_experts.npy");
    if (number.size() != 1) {
      throw InputError(archive.where("num_experts.npy"), fmt::format("{} numbers", number.size()),
                       "one");
    }
    input.num_experts = number.front();
  }
  return assemble(input, options, where);
}

}  // namespace coterie
