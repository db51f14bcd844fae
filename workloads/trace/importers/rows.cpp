#include "workloads/trace/importers/rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "workloads/trace/importers/assemble.hpp"

namespace coterie {

void RowTable::add(std::uint64_t sequence, std::uint64_t token, std::uint32_t layer,
                   std::span<const std::int64_t> experts, std::span<const float> weights,
                   const std::string& where) {
  if (experts.empty() || experts.size() > kMaxTopk) {
    throw InputError(where, counted(experts.size(), "expert"), fmt::format("1 to {}", kMaxTopk));
  }
  if (rows_.empty()) num_topk_ = experts.size();
  if (experts.size() != num_topk_) {
    throw InputError(where, counted(experts.size(), "expert"),
                     fmt::format("{} as in the rows before", num_topk_));
  }
  const bool weighted = rows_.empty() ? !weights.empty() : !weights_.empty();
  if (weights.size() != (weighted ? num_topk_ : 0)) {
    throw InputError(where, fmt::format("{} router weights", weights.size()),
                     weighted ? fmt::format("{}, one per expert", num_topk_)
                              : std::string("none, as in the rows before"));
  }
  if (rows_.size() >= std::numeric_limits<std::uint32_t>::max()) {
    throw InputError(where, "more than 2^32 rows", "fewer in one file");
  }
  for (const std::int64_t id : experts) {
    if (id < -1 || id >= static_cast<std::int64_t>(kMaxExperts)) {
      throw InputError(where, fmt::format("expert {}", id),
                       fmt::format("an id from 0 to {}", kMaxExperts - 1));
    }
    experts_.push_back(static_cast<ExpertIdx>(id));
  }
  weights_.insert(weights_.end(), weights.begin(), weights.end());
  rows_.push_back({sequence, token, layer, static_cast<std::uint32_t>(rows_.size())});
}

Imported RowTable::finish(std::uint32_t num_experts, const ImportOptions& options,
                          const std::string& where) {
  if (rows_.empty()) throw InputError(where, "no rows of routing", "at least one");
  std::sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) {
    return std::tie(a.sequence, a.token, a.layer, a.order) <
           std::tie(b.sequence, b.token, b.layer, b.order);
  });
  Routing routing;
  routing.num_experts = num_experts;
  routing.num_topk = static_cast<std::uint32_t>(num_topk_);
  for (const Row& row : rows_) routing.layers.push_back(row.layer);
  std::sort(routing.layers.begin(), routing.layers.end());
  routing.layers.erase(std::unique(routing.layers.begin(), routing.layers.end()),
                       routing.layers.end());

  // Sorted, the rows of a token must be exactly the layers, one after the other.
  const std::size_t num_layers = routing.layers.size();
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    const Row& first = rows_[i - i % num_layers];
    if (row.sequence == first.sequence && row.token == first.token &&
        row.layer == routing.layers[i % num_layers]) {
      continue;
    }
    const bool twice = i > 0 && rows_[i - 1].sequence == row.sequence &&
                       rows_[i - 1].token == row.token && rows_[i - 1].layer == row.layer;
    throw InputError(
        fmt::format("{}: sequence {}, token {}", where, twice ? row.sequence : first.sequence,
                    twice ? row.token : first.token),
        twice ? fmt::format("layer {} twice", row.layer)
              : fmt::format("no row of layer {}", routing.layers[i % num_layers]),
        fmt::format("one row in each of the {}", counted(num_layers, "layer")));
  }
  if (rows_.size() % num_layers != 0) {
    throw InputError(
        fmt::format("{}: sequence {}, token {}", where, rows_.back().sequence, rows_.back().token),
        counted(rows_.size() % num_layers, "row"),
        fmt::format("one row in each of the {}", counted(num_layers, "layer")));
  }

  const std::uint64_t num_tokens = rows_.size() / num_layers;
  for (std::uint64_t token = 0; token < num_tokens; ++token) {
    if (token == 0 ||
        rows_[token * num_layers].sequence != rows_[(token - 1) * num_layers].sequence) {
      routing.sequence_begin.push_back(token);
    }
  }
  routing.sequence_begin.push_back(num_tokens);
  routing.experts.resize(experts_.size());
  routing.weights.resize(weights_.size());
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const std::size_t from = rows_[i].order * num_topk_;
    const std::size_t to = ((i % num_layers) * num_tokens + i / num_layers) * num_topk_;
    for (std::size_t j = 0; j < num_topk_; ++j) {
      routing.experts[to + j] = experts_[from + j];
      if (!weights_.empty()) routing.weights[to + j] = weights_[from + j];
    }
  }
  Imported imported;
  imported.trace = std::move(routing);
  drop_unrouted(imported, options, where);
  return imported;
}

const nlohmann::json& json_member(const nlohmann::json& object, const char* key,
                                  const std::string& where) {
  if (!object.is_object()) throw InputError(where, json_excerpt(object), "an object");
  const auto found = object.find(key);
  if (found == object.end()) {
    throw InputError(where, fmt::format("no \"{}\"", key), "it to be there");
  }
  return *found;
}

std::int64_t json_integer(const nlohmann::json& value, std::int64_t min, std::int64_t max,
                          const std::string& where) {
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(max)
                        : value.is_number_integer() && value.get<std::int64_t>() <= max;
  if (!fits || value.get<std::int64_t>() < min) {
    throw InputError(where, json_excerpt(value),
                     fmt::format("a whole number from {} to {}", min, max));
  }
  return value.get<std::int64_t>();
}

float json_number(const nlohmann::json& value, const std::string& where) {
  if (!value.is_number()) throw InputError(where, json_excerpt(value), "a number");
  const double number = value.get<double>();
  if (std::abs(number) > std::numeric_limits<float>::max()) {
    throw InputError(where, json_excerpt(value), "a number within single precision");
  }
  return static_cast<float>(number);
}

std::vector<std::int64_t> json_ids(const nlohmann::json& value, const std::string& where) {
  if (!value.is_array()) throw InputError(where, json_excerpt(value), "a list of expert ids");
  std::vector<std::int64_t> ids;
  for (const nlohmann::json& id : value)
    ids.push_back(json_integer(id, -1, kMaxExperts - 1, where));
  return ids;
}

std::vector<float> json_numbers(const nlohmann::json& value, const std::string& where) {
  if (!value.is_array()) throw InputError(where, json_excerpt(value), "a list of numbers");
  std::vector<float> numbers;
  for (const nlohmann::json& number : value) numbers.push_back(json_number(number, where));
  return numbers;
}

}  // namespace coterie
