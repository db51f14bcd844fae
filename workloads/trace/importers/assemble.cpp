#include "workloads/trace/importers/assemble.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "core/counted.hpp"
#include "core/error.hpp"

namespace coterie {
namespace {

constexpr ExpertIdx kPadding = 0xffff;

// Tokens per block of the transposition: a block of the input stays in the cache while it is
// dealt to the layers, and each layer's part of it is one contiguous write.
constexpr std::uint64_t kBlock = 64;

// Copies [tokens][layers][k] to [layers][tokens][k]; returns whether every id was below num_experts
// or -1.
template <class T>
bool transpose_ids(const std::byte* in, std::uint64_t num_tokens, std::size_t num_layers,
                   std::size_t num_topk, std::uint32_t num_experts, ExpertIdx* out) {
  bool sound = true;
  for (std::uint64_t first = 0; first < num_tokens; first += kBlock) {
    const std::uint64_t last = std::min(first + kBlock, num_tokens);
    for (std::size_t layer = 0; layer < num_layers; ++layer) {
      ExpertIdx* to = out + (layer * num_tokens + first) * num_topk;
      for (std::uint64_t token = first; token < last; ++token, to += num_topk) {
        const std::size_t row = (token * num_layers + layer) * num_topk;
        for (std::size_t i = 0; i < num_topk; ++i) {
          const T id = load<T>(in, row + i);
          const bool padding = std::is_signed_v<T> && id == static_cast<T>(-1);
          sound &= padding || (std::cmp_greater_equal(id, 0) && std::cmp_less(id, num_experts));
          to[i] = static_cast<ExpertIdx>(id);
        }
      }
    }
  }
  return sound;
}

void transpose_weights(const std::byte* in, std::uint64_t num_tokens, std::size_t num_layers,
                       std::size_t num_topk, float* out) {
  for (std::uint64_t first = 0; first < num_tokens; first += kBlock) {
    const std::uint64_t last = std::min(first + kBlock, num_tokens);
    for (std::size_t layer = 0; layer < num_layers; ++layer) {
      float* to = out + (layer * num_tokens + first) * num_topk;
      for (std::uint64_t token = first; token < last; ++token, to += num_topk) {
        std::memcpy(to, in + (token * num_layers + layer) * num_topk * sizeof(float),
                    num_topk * sizeof(float));
      }
    }
  }
}

[[noreturn]] void report_bad_id(const TokenMajor& input, std::uint32_t num_experts,
                                const std::string& where) {
  const auto ids = to_integers(input.experts, where);
  const auto bad = std::find_if(ids.begin(), ids.end(), [&](std::int64_t id) {
    return id < -1 || id >= static_cast<std::int64_t>(num_experts);
  });
  const auto at = static_cast<std::uint64_t>(bad - ids.begin());
  const std::uint64_t k = input.experts.shape[2];
  const std::uint64_t layers = input.experts.shape[1];
  throw InputError(fmt::format("{}: routed_experts[{}, {}, {}]", where, at / (layers * k),
                               at / k % layers, at % k),
                   fmt::format("expert {}", *bad), fmt::format("an id below {}", num_experts));
}

bool is_unrouted(const ExpertIdx* row, std::uint32_t num_topk) {
  for (std::uint32_t i = 1; i < num_topk; ++i) {
    if (row[i] != row[0]) return false;
  }
  return num_topk > 1 || row[0] == kPadding;
}

// With k = 1 an unrouted row of zeros cannot be told from a choice of expert 0, so only a whole
// layer of zeros counts, only beside layers that are not, and only where the MoE layers are not
// known.
bool is_dense(const Routing& routing, std::size_t layer_idx, bool layers_known) {
  const auto ids = routing.layer_experts(layer_idx);
  if (routing.num_topk == 1) {
    if (std::all_of(ids.begin(), ids.end(), [](auto id) { return id == kPadding; })) return true;
    return !layers_known && ids.size() > 1 &&
           std::all_of(ids.begin(), ids.end(), [](auto id) { return id == 0; });
  }
  for (std::size_t at = 0; at < ids.size(); at += routing.num_topk) {
    if (!is_unrouted(ids.data() + at, routing.num_topk)) return false;
  }
  return true;
}

// Keeps the listed layers, in place.
void keep_layers(Routing& routing, const std::vector<std::size_t>& kept) {
  const auto stride = static_cast<std::ptrdiff_t>(routing.num_tokens() * routing.num_topk);
  std::vector<std::uint32_t> layers;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    const auto from = static_cast<std::ptrdiff_t>(kept[i]) * stride;
    const auto to = static_cast<std::ptrdiff_t>(i) * stride;
    layers.push_back(routing.layers[kept[i]]);
    if (from == to) continue;
    std::copy_n(routing.experts.begin() + from, stride, routing.experts.begin() + to);
    if (!routing.weights.empty()) {
      std::copy_n(routing.weights.begin() + from, stride, routing.weights.begin() + to);
    }
  }
  const std::size_t size = kept.size() * static_cast<std::size_t>(stride);
  routing.experts.resize(size);
  if (!routing.weights.empty()) routing.weights.resize(size);
  routing.layers = std::move(layers);
}

// Keeps the tokens that are not marked, in place; sequences that lose all their tokens vanish.
void drop_tokens(Routing& routing, const std::vector<char>& dropped) {
  const std::uint64_t num_tokens = routing.num_tokens();
  std::size_t to = 0;
  for (std::size_t layer_idx = 0; layer_idx < routing.num_layers(); ++layer_idx) {
    for (std::uint64_t token = 0; token < num_tokens; ++token) {
      if (dropped[token] != 0) continue;
      const std::size_t from = (layer_idx * num_tokens + token) * routing.num_topk;
      for (std::uint32_t i = 0; i < routing.num_topk; ++i) {
        routing.experts[to + i] = routing.experts[from + i];
        if (!routing.weights.empty()) routing.weights[to + i] = routing.weights[from + i];
      }
      to += routing.num_topk;
    }
  }
  routing.experts.resize(to);
  if (!routing.weights.empty()) routing.weights.resize(to);
  std::vector<std::uint64_t> begin{0};
  for (std::size_t i = 0; i + 1 < routing.sequence_begin.size(); ++i) {
    std::uint64_t length = 0;
    for (std::uint64_t t = routing.sequence_begin[i]; t < routing.sequence_begin[i + 1]; ++t) {
      length += dropped[t] == 0 ? 1 : 0;
    }
    if (length > 0) begin.push_back(begin.back() + length);
  }
  routing.sequence_begin = std::move(begin);
}

// Recorders with a fixed k axis fill what the model does not use with -1: the last columns, in
// every row. They are cut off. A -1 that is left stands for a choice that was masked out or never
// recorded.
void cut_padded_columns(Routing& routing, const std::string& where) {
  if (std::find(routing.experts.begin(), routing.experts.end(), kPadding) ==
      routing.experts.end()) {
    return;
  }
  const std::uint32_t k = routing.num_topk;
  std::uint32_t used = 0;
  for (std::size_t i = 0; i < routing.experts.size(); ++i) {
    if (routing.experts[i] != kPadding)
      used = std::max(used, static_cast<std::uint32_t>(i % k) + 1);
  }
  const std::size_t num_rows = routing.experts.size() / k;
  for (std::size_t row = 0; row < num_rows; ++row) {
    for (std::uint32_t i = 0; i < used; ++i) {
      const ExpertIdx id = routing.experts[row * k + i];
      if (id == kPadding) {
        const bool all = is_unrouted(routing.experts.data() + row * k, k);
        throw InputError(
            fmt::format("{}: layer {}, token {}", where, routing.layers[row / routing.num_tokens()],
                        row % routing.num_tokens()),
            all ? "only -1 (no routing), while the token has routing in other layers"
                : fmt::format("-1 in place {} of its experts (a choice that was masked out)", i),
            counted(used, "expert"));
      }
      routing.experts[row * used + i] = id;
      if (!routing.weights.empty()) {
        routing.weights[row * used + i] = routing.weights[row * k + i];
      }
    }
  }
  routing.experts.resize(num_rows * used);
  if (!routing.weights.empty()) routing.weights.resize(num_rows * used);
  routing.num_topk = used;
}

// Engines that fuse the shared experts into the grouped kernel append them to every token's choice,
// with ids behind the routed experts': the last columns, ids from num_experts on, in every row with
// routing. Returns how many such columns there are; 0 where the ids are anything else, or k without
// them is not what the options say.
std::uint64_t fused_columns(std::span<const std::int64_t> ids, std::uint64_t k,
                            std::uint32_t num_experts, const ImportOptions& options) {
  const auto beyond = [&](std::int64_t id) { return id >= static_cast<std::int64_t>(num_experts); };
  std::optional<std::uint64_t> routed;
  for (std::size_t row = 0; row < ids.size(); row += k) {
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(row);
    const auto last = first + static_cast<std::ptrdiff_t>(k);
    if (std::all_of(first, last, [&](std::int64_t id) { return id == *first; })) continue;
    const auto fused = std::find_if(first, last, beyond);
    const auto width = static_cast<std::uint64_t>(fused - first);
    if (!std::all_of(fused, last, beyond) || (routed && *routed != width)) return 0;
    if (std::any_of(first, fused, [](std::int64_t id) { return id < -1; })) return 0;
    routed = width;
  }
  if (!routed || *routed == 0) return 0;
  if (options.num_topk && *options.num_topk != *routed) return 0;
  if (options.model && options.model->num_topk != *routed) return 0;
  return k - *routed;
}

// The input without the last `num_fused` columns.
Imported assemble_without_fused(const TokenMajor& input, std::span<const std::int64_t> ids,
                                std::uint64_t num_fused, std::uint32_t num_experts,
                                const ImportOptions& options, const std::string& where) {
  const std::uint64_t k = input.experts.shape[2];
  const std::uint64_t kept = k - num_fused;
  std::vector<std::int64_t> routed;
  std::vector<float> weights;
  const std::vector<float> all_weights =
      input.weights ? to_floats(*input.weights) : std::vector<float>{};
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (i % k >= kept) continue;
    routed.push_back(ids[i]);
    if (!all_weights.empty()) weights.push_back(all_weights[i]);
  }
  TokenMajor reduced = input;
  reduced.experts.type = NumberType::kI64;
  reduced.experts.data = std::as_bytes(std::span(routed));
  reduced.experts.shape[2] = kept;
  if (input.weights) {
    reduced.weights->type = NumberType::kF32;
    reduced.weights->data = std::as_bytes(std::span(weights));
    reduced.weights->shape[2] = kept;
  }
  Imported imported = assemble(reduced, options, where);
  imported.notes.push_back(
      fmt::format("left out the last {} of {} choices of every token, ids from {} on: shared "
                  "experts fused with the routed ones",
                  num_fused, k, num_experts));
  return imported;
}

}  // namespace

std::uint32_t resolve_num_experts(const std::optional<std::uint32_t>& recorded,
                                  const ImportOptions& options, const std::string& where) {
  std::optional<std::uint32_t> wanted = options.num_experts;
  if (!wanted && options.model) wanted = options.model->num_experts;
  if (recorded && wanted && *recorded != *wanted) {
    throw InputError(where, fmt::format("{} recorded", counted(*recorded, "expert")),
                     fmt::format("{} as asked for", *wanted));
  }
  if (!recorded && !wanted) {
    throw InputError(where, "no number of experts in the input",
                     "--num-experts or --model to give it");
  }
  const std::uint32_t number = recorded ? *recorded : *wanted;
  if (number == 0 || number > kMaxExperts) {
    throw InputError(where, counted(number, "expert"), fmt::format("1 to {}", kMaxExperts));
  }
  return number;
}

namespace {
std::vector<std::uint32_t> number_layers(std::size_t count) {
  std::vector<std::uint32_t> layers(count);
  std::iota(layers.begin(), layers.end(), 0U);
  return layers;
}
}  // namespace

std::vector<std::uint32_t> resolve_layers(std::size_t count, const ImportOptions& options,
                                          const std::string& where) {
  if (!options.layers.empty() && options.layers.size() == count) return options.layers;
  if (!options.layers.empty() && options.layers.size() < count) return number_layers(count);
  if (!options.layers.empty()) {
    throw InputError(where, counted(count, "layer"),
                     fmt::format("at least the {} that --layers names", options.layers.size()));
  }
  if (options.model) {
    const ModelShape& model = *options.model;
    if (model.moe_layers.size() == count) return model.moe_layers;
    if (model.num_layers != count) {
      throw InputError(where, counted(count, "layer"),
                       fmt::format("the {} MoE layers or all {} of {}", model.moe_layers.size(),
                                   counted(model.num_layers, "layer"), model.name));
    }
  }
  return number_layers(count);
}

void drop_unrouted(Imported& imported, const ImportOptions& options, const std::string& where) {
  auto& routing = std::get<Routing>(imported.trace);
  std::vector<std::uint32_t> wanted = options.layers;
  if (wanted.empty() && options.model) wanted = options.model->moe_layers;
  std::vector<std::size_t> kept;
  std::vector<std::uint32_t> dense;
  for (std::size_t layer_idx = 0; layer_idx < routing.num_layers(); ++layer_idx) {
    const std::uint32_t layer = routing.layers[layer_idx];
    const bool moe =
        wanted.empty() || std::find(wanted.begin(), wanted.end(), layer) != wanted.end();
    const bool keep = moe && !is_dense(routing, layer_idx, !wanted.empty());
    if (keep) {
      kept.push_back(layer_idx);
    } else {
      dense.push_back(layer);
    }
  }
  if (kept.empty()) {
    throw InputError(where, "equal ids in every row of every layer (zeros or padding)",
                     "a recording in which at least one token was routed");
  }
  if (!dense.empty()) {
    imported.num_dropped_rows += dense.size() * routing.num_tokens();
    imported.notes.push_back(fmt::format("left out {} layer{} without routing: {}", dense.size(),
                                         dense.size() == 1 ? "" : "s", fmt::join(dense, ", ")));
    keep_layers(routing, kept);
  }

  // Padding is unrouted in every layer; a row that is so in one layer only stays and is refused as
  // a duplicate later.
  const std::uint64_t num_tokens = routing.num_tokens();
  const std::uint32_t k = routing.num_topk;
  std::vector<char> dropped;
  std::uint64_t num_dropped = 0;
  for (std::uint64_t token = 0; token < num_tokens; ++token) {
    if (!is_unrouted(routing.experts.data() + token * k, k)) continue;
    bool everywhere = true;
    for (std::size_t layer_idx = 1; layer_idx < routing.num_layers() && everywhere; ++layer_idx) {
      everywhere = is_unrouted(routing.experts.data() + (layer_idx * num_tokens + token) * k, k);
    }
    if (!everywhere) continue;
    if (dropped.empty()) dropped.assign(num_tokens, 0);
    dropped[token] = 1;
    ++num_dropped;
  }
  if (num_dropped > 0) {
    imported.num_dropped_rows += num_dropped * routing.num_layers();
    imported.notes.push_back(fmt::format("left out {} token{} without routing (padding)",
                                         num_dropped, num_dropped == 1 ? "" : "s"));
    drop_tokens(routing, dropped);
  }
  cut_padded_columns(routing, where);
}

Imported assemble(const TokenMajor& input, const ImportOptions& options, const std::string& where) {
  const ArrayView& ids = input.experts;
  if (!is_integer(ids.type) || ids.type == NumberType::kBool) {
    throw InputError(where, fmt::format("expert ids of type {}", to_string(ids.type)), "integers");
  }
  if (ids.shape.size() != 3) {
    throw InputError(where, fmt::format("expert ids of shape {}", shape_text(ids.shape)),
                     "[tokens, layers, k]");
  }
  const std::uint64_t num_tokens = ids.shape[0];
  const auto num_layers = static_cast<std::size_t>(ids.shape[1]);
  if (num_tokens == 0 || num_layers == 0) {
    throw InputError(where, fmt::format("expert ids of shape {}", shape_text(ids.shape)),
                     "at least one token and one layer");
  }
  if (ids.shape[2] == 0 || ids.shape[2] > kMaxTopk) {
    throw InputError(where, fmt::format("{} per token", counted(ids.shape[2], "expert")),
                     fmt::format("1 to {}", kMaxTopk));
  }
  if (options.model && input.layers.empty()) {
    const std::uint64_t moe = options.model->moe_layers.size();
    const std::uint64_t all = options.model->num_layers;
    if (num_layers != moe && num_layers != all && (num_tokens == moe || num_tokens == all)) {
      throw InputError(where,
                       fmt::format("expert ids of shape {}, whose first axis has as many entries "
                                   "as {} has layers",
                                   shape_text(ids.shape), options.model->name),
                       "[tokens, layers, k] (in NumPy: ids.transpose(1, 0, 2))");
    }
  }
  Imported imported;
  Routing routing;
  routing.num_topk = static_cast<std::uint32_t>(ids.shape[2]);
  routing.num_experts = resolve_num_experts(input.num_experts, options, where);
  routing.layers = input.layers.empty() ? resolve_layers(num_layers, options, where) : input.layers;
  if (routing.layers.size() != num_layers) {
    throw InputError(where, fmt::format("{} layer numbers", routing.layers.size()),
                     fmt::format("{}, as routed_experts has layers", num_layers));
  }
  routing.sequence_begin.push_back(0);
  for (const std::uint64_t length : input.sequence_lengths) {
    if (length > num_tokens - routing.sequence_begin.back()) {
      throw InputError(where, "sequences of more tokens in all than were recorded",
                       counted(num_tokens, "token"));
    }
    if (length > 0) routing.sequence_begin.push_back(routing.sequence_begin.back() + length);
  }
  if (input.sequence_lengths.empty()) routing.sequence_begin.push_back(num_tokens);
  if (routing.sequence_begin.back() != num_tokens) {
    throw InputError(
        where,
        fmt::format("sequences of {} in all", counted(routing.sequence_begin.back(), "token")),
        fmt::format("{}, as routed_experts has tokens", num_tokens));
  }

  routing.experts.resize(ids.size());
  const bool sound = with_integer_type(ids.type, [&](auto tag) {
    return transpose_ids<decltype(tag)>(ids.data.data(), num_tokens, num_layers, routing.num_topk,
                                        routing.num_experts, routing.experts.data());
  });
  if (!sound) {
    const auto values = to_integers(ids, where);
    const std::uint64_t num_fused =
        fused_columns(values, ids.shape[2], routing.num_experts, options);
    if (num_fused == 0) report_bad_id(input, routing.num_experts, where);
    return assemble_without_fused(input, values, num_fused, routing.num_experts, options, where);
  }
  if (input.weights) {
    const ArrayView& weights = *input.weights;
    if (is_integer(weights.type) || weights.shape != ids.shape) {
      throw InputError(where,
                       fmt::format("router weights of type {} and shape {}",
                                   to_string(weights.type), shape_text(weights.shape)),
                       fmt::format("floats of shape {} as the ids", shape_text(ids.shape)));
    }
    routing.weights.resize(ids.size());
    // float32, the usual case, is dealt out without a copy in between.
    std::vector<float> values;
    if (weights.type != NumberType::kF32) values = to_floats(weights);
    const std::byte* from = weights.type == NumberType::kF32
                                ? weights.data.data()
                                : std::as_bytes(std::span(values)).data();
    transpose_weights(from, num_tokens, num_layers, routing.num_topk, routing.weights.data());
  }
  imported.trace = std::move(routing);
  drop_unrouted(imported, options, where);
  return imported;
}

}  // namespace coterie
