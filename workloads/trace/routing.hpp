#pragma once
// A recorded (or generated) routing trace in memory: which experts every token chose in every MoE
// layer. Flat and contiguous, because everything downstream is limited by reading it once.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace coterie {

using ExpertIdx = std::uint16_t;  // logical expert of a layer
inline constexpr std::uint32_t kMaxExperts = 65535;
inline constexpr std::uint32_t kMaxTopk = 32;  // a plan keeps a token's experts in a 32-bit mask

struct Routing {
  std::string model;   // name, where the source tells
  std::string origin;  // the file or generator it came from
  std::uint32_t num_experts = 0;
  std::uint32_t num_topk = 0;
  std::vector<std::uint32_t> layers;          // [num_layers] layer numbers in the model
  std::vector<std::uint64_t> sequence_begin;  // [num_sequences + 1] first token of each sequence
  std::vector<ExpertIdx> experts;             // [num_layers][num_tokens][num_topk], router order
  std::vector<float> weights;                 // the same shape, or empty where not recorded

  [[nodiscard]] std::size_t num_layers() const { return layers.size(); }
  [[nodiscard]] std::uint64_t num_tokens() const {
    return sequence_begin.empty() ? 0 : sequence_begin.back();
  }
  [[nodiscard]] std::size_t num_sequences() const {
    return sequence_begin.empty() ? 0 : sequence_begin.size() - 1;
  }
  // [num_tokens][num_topk] of one layer.
  [[nodiscard]] std::span<const ExpertIdx> layer_experts(std::size_t layer_idx) const {
    const std::size_t stride = num_tokens() * num_topk;
    return std::span(experts).subspan(layer_idx * stride, stride);
  }
  [[nodiscard]] std::span<const float> layer_weights(std::size_t layer_idx) const {
    if (weights.empty()) return {};
    const std::size_t stride = num_tokens() * num_topk;
    return std::span(weights).subspan(layer_idx * stride, stride);
  }
};

// Some recorders keep only how often each expert was chosen. Such a trace serves load-based
// placement and skew statistics; everything that needs co-activation refuses it with a clear
// sentence.
struct ExpertCounts {
  std::string model;
  std::string origin;
  std::uint32_t num_experts = 0;
  std::uint32_t num_topk = 0;  // 0 where not recorded
  std::vector<std::uint32_t> layers;
  std::vector<std::uint64_t> counts;  // [num_layers][num_experts]
};

// Every violation of the invariants above (ids in range, sequences ascending, shapes equal, k
// distinct experts per token, weights finite), the first 20 and the number of the others; empty
// when the trace is sound.
std::vector<std::string> check(const Routing& routing);
std::vector<std::string> check(const ExpertCounts& counts);

// The trace without tokens, sequences and layers: what its parts have in common.
Routing routing_head(const Routing& routing);

using TokenRange = std::pair<std::uint64_t, std::uint64_t>;  // [first, second) of a trace's tokens

// The tokens of those ranges, each of which is one sequence of the result, in order. Misuse throws
// std::logic_error.
Routing select_tokens(const Routing& routing, std::span<const TokenRange> ranges);

// Which sequences of a trace are meant.
enum class SequencePart : std::uint8_t { kAll, kEven, kOdd };
std::optional<SequencePart> parse_sequence_part(std::string_view name);  // all, even, odd
// The tokens of those sequences (by position in the trace), in order.
Routing select(const Routing& routing, SequencePart part);
// The sequences [first, last). Misuse throws std::logic_error.
Routing select_window(const Routing& routing, std::size_t first, std::size_t last);
Routing select_layers(const Routing& routing, std::span<const std::size_t> layer_idxs);

}  // namespace coterie
