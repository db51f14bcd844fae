// NumPy .npz archives with `routed_experts` [tokens, layers, k].
//
// Two layouts: whole traces (topk_weights, seq_len, layers, num_experts beside it), and what users
// of vLLM's enable_return_routed_experts save per request (request_id, prompt_token_ids,
// output_token_ids), which is one sequence and lacks the number of experts. vLLM returns a row for
// every token that went through the model, that is for all but the last output token; the token
// ids are held against the rows where they are there. Members of other names are named in a note.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"
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

// The token ids of one request must be as many as the rows, the last output token aside. Gives back
// a digest of them.
std::optional<std::uint64_t> check_request(const Archive& archive, std::uint64_t num_rows) {
  if (!archive.has("prompt_token_ids.npy") || !archive.has("output_token_ids.npy")) {
    return std::nullopt;
  }
  const auto prompt = read_numbers<std::uint32_t>(archive, "prompt_token_ids.npy");
  const auto output = read_numbers<std::uint32_t>(archive, "output_token_ids.npy");
  const std::uint64_t num_tokens = prompt.size() + output.size();
  if (num_rows != num_tokens && num_rows + 1 != num_tokens) {
    throw InputError(archive.where("routed_experts.npy"), counted(num_rows, "row"),
                     fmt::format("{} or {}, as there are {} prompt and {} output tokens",
                                 num_tokens - 1, num_tokens, prompt.size(), output.size()));
  }
  std::vector<std::uint32_t> tokens = prompt;
  tokens.insert(tokens.end(), output.begin(), output.end());
  const std::span<const std::uint32_t> all(tokens);
  return content_hash({reinterpret_cast<const char*>(all.data()), all.size_bytes()});
}

// Members that this reader makes no use of.
std::vector<std::string> unread_members(const Archive& archive) {
  static const std::set<std::string> kKnown{
      "routed_experts.npy", "topk_weights.npy",     "seq_len.npy",          "layers.npy",
      "num_experts.npy",    "prompt_token_ids.npy", "output_token_ids.npy", "request_id.npy"};
  std::vector<std::string> unread;
  for (const std::string& name : archive.names()) {
    if (!kKnown.contains(name)) unread.push_back(name);
  }
  return unread;
}

}  // namespace

bool is_npz(const FileHead& head) {
  return std::find(head.members.begin(), head.members.end(), "routed_experts.npy") !=
         head.members.end();
}

Imported import_npz(const std::filesystem::path& path, const ImportOptions& options) {
  const Archive archive(path);
  if (!archive.has("routed_experts.npy")) {
    constexpr std::size_t kMostNamed = 8;
    std::vector<std::string> names = archive.names();
    if (names.size() > kMostNamed) {
      const std::size_t num_others = names.size() - kMostNamed;
      names.resize(kMostNamed);
      names.push_back(fmt::format("{} others", num_others));
    }
    throw InputError(
        path.string(),
        fmt::format("an archive with {}",
                    names.empty() ? "no members" : fmt::format("{}", fmt::join(names, ", "))),
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
  const auto tokens_digest = input.experts.shape.empty() || !input.sequence_lengths.empty()
                                 ? std::nullopt
                                 : check_request(archive, input.experts.shape[0]);
  Imported imported = assemble(input, options, where);
  imported.tokens_digest = tokens_digest;
  const auto unread = unread_members(archive);
  if (!unread.empty()) {
    imported.notes.push_back(fmt::format("not read: {}", fmt::join(unread, ", ")));
  }
  return imported;
}

}  // namespace coterie
