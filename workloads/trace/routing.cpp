#include "workloads/trace/routing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "core/counted.hpp"

namespace coterie {
namespace {

// A report of a broken trace is read by a person: the first few places say enough.
constexpr std::size_t kMaxViolations = 20;

class Violations {
 public:
  void add(std::string text) {
    if (texts_.size() < kMaxViolations) texts_.push_back(std::move(text));
    ++count_;
  }
  [[nodiscard]] std::vector<std::string> finish() && {
    if (count_ > texts_.size()) {
      texts_.push_back(fmt::format("and {} more violations", count_ - texts_.size()));
    }
    return std::move(texts_);
  }

 private:
  std::vector<std::string> texts_;
  std::size_t count_ = 0;
};

// Whether the ids of a token are in range and distinct. The common case of at most 64 experts takes
// one bit set per id.
bool is_sound(const ExpertIdx* ids, std::uint32_t num_topk, std::uint32_t num_experts) {
  if (num_experts <= 64) {
    std::uint64_t seen = 0;
    std::uint64_t twice = 0;
    std::uint32_t largest = 0;
    for (std::uint32_t i = 0; i < num_topk; ++i) {
      const std::uint64_t bit = std::uint64_t{1} << (ids[i] & 63U);
      largest = std::max<std::uint32_t>(largest, ids[i]);
      twice |= seen & bit;
      seen |= bit;
    }
    return largest < num_experts && twice == 0;
  }
  std::uint32_t largest = 0;
  unsigned equal = 0;
  for (std::uint32_t i = 0; i < num_topk; ++i) {
    largest = std::max<std::uint32_t>(largest, ids[i]);
    for (std::uint32_t j = 0; j < i; ++j) equal |= static_cast<unsigned>(ids[i] == ids[j]);
  }
  return largest < num_experts && equal == 0;
}

void check_ids(const Routing& routing, Violations& violations) {
  for (std::size_t layer_idx = 0; layer_idx < routing.num_layers(); ++layer_idx) {
    const ExpertIdx* ids = routing.layer_experts(layer_idx).data();
    for (std::uint64_t token = 0; token < routing.num_tokens(); ++token, ids += routing.num_topk) {
      if (is_sound(ids, routing.num_topk, routing.num_experts)) continue;
      const std::string place = fmt::format("layer {}, token {}", routing.layers[layer_idx], token);
      for (std::uint32_t i = 0; i < routing.num_topk; ++i) {
        if (ids[i] >= routing.num_experts) {
          violations.add(fmt::format("{}: found expert {}, expected an id below {}", place, ids[i],
                                     routing.num_experts));
        } else if (std::find(ids, ids + i, ids[i]) != ids + i) {
          violations.add(
              fmt::format("{}: found expert {} twice, expected distinct experts", place, ids[i]));
        }
      }
    }
  }
}

}  // namespace

std::vector<std::string> check(const Routing& routing) {
  Violations violations;
  const auto& begin = routing.sequence_begin;
  if (routing.num_experts == 0 || routing.num_experts > kMaxExperts) {
    violations.add(fmt::format("found {}, expected 1 to {}", counted(routing.num_experts, "expert"),
                               kMaxExperts));
  }
  if (routing.num_topk == 0 || routing.num_topk > kMaxTopk) {
    violations.add(fmt::format("found top-{}, expected 1 to {}", routing.num_topk, kMaxTopk));
  } else if (routing.num_topk > routing.num_experts) {
    violations.add(fmt::format("found top-{} of {}, expected at most as many as experts",
                               routing.num_topk, counted(routing.num_experts, "expert")));
  }
  if (routing.layers.empty()) violations.add("found no layers, expected at least one");
  for (std::size_t i = 1; i < routing.layers.size(); ++i) {
    if (routing.layers[i] <= routing.layers[i - 1]) {
      violations.add(fmt::format("found layer {} after layer {}, expected ascending layer numbers",
                                 routing.layers[i], routing.layers[i - 1]));
    }
  }
  if (begin.size() < 2) violations.add("found no sequences, expected at least one");
  if (!begin.empty() && begin.front() != 0) {
    violations.add(fmt::format("the first sequence begins at token {}, expected 0", begin.front()));
  }
  for (std::size_t i = 1; i < begin.size(); ++i) {
    if (begin[i] <= begin[i - 1]) {
      violations.add(fmt::format("sequence {} covers tokens {} to {}, expected at least one token",
                                 i - 1, begin[i - 1], begin[i]));
    }
  }
  const std::size_t expected =
      routing.num_layers() * static_cast<std::size_t>(routing.num_tokens()) * routing.num_topk;
  const bool whole = routing.experts.size() == expected;
  if (!whole) {
    violations.add(fmt::format("found {} expert ids, expected {} (layers x tokens x top-k)",
                               routing.experts.size(), expected));
  }
  if (!routing.weights.empty() && routing.weights.size() != expected) {
    violations.add(fmt::format("found {} router weights, expected {} (layers x tokens x top-k)",
                               routing.weights.size(), expected));
  }
  if (whole && routing.num_topk > 0) check_ids(routing, violations);
  // All exponent bits set: infinite or not a number. Without branches, so that it is vectorised.
  std::uint32_t not_finite = 0;
  for (const float weight : routing.weights) {
    const std::uint32_t exponent = std::bit_cast<std::uint32_t>(weight) & 0x7f800000U;
    not_finite |= static_cast<std::uint32_t>(exponent == 0x7f800000U);
  }
  if (not_finite != 0) {
    const auto bad = std::find_if(routing.weights.begin(), routing.weights.end(),
                                  [](float weight) { return !std::isfinite(weight); });
    violations.add(fmt::format("router weight {} is {}, expected a finite number",
                               bad - routing.weights.begin(), *bad));
  }
  return std::move(violations).finish();
}

std::vector<std::string> check(const ExpertCounts& counts) {
  Violations violations;
  if (counts.num_experts == 0 || counts.num_experts > kMaxExperts) {
    violations.add(fmt::format("found {}, expected 1 to {}", counted(counts.num_experts, "expert"),
                               kMaxExperts));
  }
  if (counts.layers.empty()) violations.add("found no layers, expected at least one");
  for (std::size_t i = 1; i < counts.layers.size(); ++i) {
    if (counts.layers[i] <= counts.layers[i - 1]) {
      violations.add(fmt::format("found layer {} after layer {}, expected ascending layer numbers",
                                 counts.layers[i], counts.layers[i - 1]));
    }
  }
  if (counts.counts.size() != counts.layers.size() * counts.num_experts) {
    violations.add(fmt::format("found {} counts, expected {} (layers x experts)",
                               counts.counts.size(), counts.layers.size() * counts.num_experts));
  }
  return std::move(violations).finish();
}

std::optional<SequencePart> parse_sequence_part(std::string_view name) {
  if (name == "all") return SequencePart::kAll;
  if (name == "even") return SequencePart::kEven;
  if (name == "odd") return SequencePart::kOdd;
  return std::nullopt;
}

namespace {

// Copies the kept token ranges of every layer, in order.
template <class T>
std::vector<T> gather(const std::vector<T>& source, const Routing& routing,
                      std::span<const TokenRange> ranges, std::uint64_t num_kept) {
  std::vector<T> kept;
  if (source.empty()) return kept;
  kept.reserve(routing.num_layers() * num_kept * routing.num_topk);
  for (std::size_t layer_idx = 0; layer_idx < routing.num_layers(); ++layer_idx) {
    const auto layer = source.begin() + static_cast<std::ptrdiff_t>(
                                            layer_idx * routing.num_tokens() * routing.num_topk);
    for (const auto& [first, last] : ranges) {
      kept.insert(kept.end(), layer + static_cast<std::ptrdiff_t>(first * routing.num_topk),
                  layer + static_cast<std::ptrdiff_t>(last * routing.num_topk));
    }
  }
  return kept;
}

}  // namespace

Routing routing_head(const Routing& routing) {
  Routing head;
  head.model = routing.model;
  head.origin = routing.origin;
  head.num_experts = routing.num_experts;
  head.num_topk = routing.num_topk;
  return head;
}

Routing select_tokens(const Routing& routing, std::span<const TokenRange> ranges) {
  Routing selected = routing_head(routing);
  selected.layers = routing.layers;
  selected.sequence_begin.push_back(0);
  for (const auto& [first, last] : ranges) {
    if (first > last || last > routing.num_tokens()) throw std::logic_error("no such tokens");
    selected.sequence_begin.push_back(selected.sequence_begin.back() + last - first);
  }
  selected.experts = gather(routing.experts, routing, ranges, selected.num_tokens());
  selected.weights = gather(routing.weights, routing, ranges, selected.num_tokens());
  return selected;
}

namespace {

// Those sequences, in order.
Routing select_sequences(const Routing& routing, std::span<const std::size_t> sequences) {
  std::vector<TokenRange> ranges;
  for (const std::size_t i : sequences) {
    ranges.emplace_back(routing.sequence_begin[i], routing.sequence_begin[i + 1]);
  }
  return select_tokens(routing, ranges);
}

}  // namespace

Routing select(const Routing& routing, SequencePart part) {
  if (part == SequencePart::kAll) return routing;
  std::vector<std::size_t> sequences;
  for (std::size_t i = part == SequencePart::kEven ? 0 : 1; i < routing.num_sequences(); i += 2) {
    sequences.push_back(i);
  }
  return select_sequences(routing, sequences);
}

Routing select_window(const Routing& routing, std::size_t first, std::size_t last) {
  if (first > last || last > routing.num_sequences()) throw std::logic_error("no such sequences");
  std::vector<std::size_t> sequences(last - first);
  std::iota(sequences.begin(), sequences.end(), first);
  return select_sequences(routing, sequences);
}

Routing select_layers(const Routing& routing, std::span<const std::size_t> layer_idxs) {
  Routing selected = routing_head(routing);
  selected.sequence_begin = routing.sequence_begin;
  for (const std::size_t layer_idx : layer_idxs) {
    if (layer_idx >= routing.num_layers()) throw std::logic_error("no such layer");
    selected.layers.push_back(routing.layers[layer_idx]);
    const auto ids = routing.layer_experts(layer_idx);
    selected.experts.insert(selected.experts.end(), ids.begin(), ids.end());
    const auto weights = routing.layer_weights(layer_idx);
    selected.weights.insert(selected.weights.end(), weights.begin(), weights.end());
  }
  return selected;
}

}  // namespace coterie
