#pragma once
// Entries of a probe's lists (curves.json of `coterie-runtime probe`), their keys asked for with what they
// must be. Everything throws InputError with the file, the list and the entry.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/json.hpp"

namespace coterie {

class ProbeEntry {
 public:
  ProbeEntry(const nlohmann::json& value, std::string where)
      : value_(value), where_(std::move(where)) {
    if (!value.is_object()) throw InputError(where_, json_excerpt(value), "an entry of the probe");
  }
  [[nodiscard]] std::string text(const char* key) const {
    const auto found = value_.find(key);
    if (found == value_.end() || !found->is_string()) {
      throw InputError(where_, fmt::format("no text \"{}\"", key), "one");
    }
    return found->get<std::string>();
  }
  [[nodiscard]] double positive(const char* key) const {
    const auto found = value_.find(key);
    if (found == value_.end() || !found->is_number()) {
      throw InputError(where_, fmt::format("no number \"{}\"", key), "one above zero");
    }
    const double value = found->get<double>();
    if (!(value > 0.0) || !std::isfinite(value)) {
      throw InputError(fmt::format("{}: {}", where_, key), json_excerpt(*found),
                       "a number above zero");
    }
    return value;
  }
  [[nodiscard]] std::vector<std::uint64_t> counts(const char* key) const {
    const auto found = value_.find(key);
    if (found == value_.end() || !found->is_array() || found->empty()) {
      throw InputError(where_, fmt::format("no list \"{}\"", key), "the rows of every expert");
    }
    std::vector<std::uint64_t> out;
    for (const auto& count : *found) {
      if (!count.is_number_unsigned()) {
        throw InputError(fmt::format("{}: {}", where_, key), json_excerpt(count), "whole numbers");
      }
      out.push_back(count.get<std::uint64_t>());
    }
    return out;
  }
  [[nodiscard]] bool is_fp8() const {
    const std::string type = text("type");
    if (type != "bf16" && type != "fp8") {
      throw InputError(where_, fmt::format("type \"{}\"", type), "bf16 or fp8");
    }
    return type == "fp8";
  }
  // A count of each rank.
  [[nodiscard]] std::vector<std::uint32_t> per_rank(const char* key, std::size_t num_ranks) const {
    const auto found = value_.find(key);
    if (found == value_.end() || !found->is_array() || found->size() != num_ranks) {
      throw InputError(where_, fmt::format("no list \"{}\" of {} numbers", key, num_ranks),
                       "one of each rank");
    }
    return row_of(*found, fmt::format("{}: {}", where_, key));
  }
  // The ranks of a matrix; zero where the key holds none.
  [[nodiscard]] std::size_t ranks_of(const char* key) const {
    const auto found = value_.find(key);
    return found == value_.end() || !found->is_array() ? 0 : found->size();
  }
  // Counts by sender and receiver, [num_ranks][num_ranks].
  [[nodiscard]] std::vector<std::vector<std::uint32_t>> matrix(const char* key,
                                                               std::size_t num_ranks) const {
    const auto found = value_.find(key);
    const std::string where = fmt::format("{}: {}", where_, key);
    if (found == value_.end() || !found->is_array() || found->size() != num_ranks) {
      throw InputError(where, "no matrix of as many rows as ranks", fmt::format("{}", num_ranks));
    }
    std::vector<std::vector<std::uint32_t>> out;
    for (const auto& row : *found) {
      if (!row.is_array() || row.size() != num_ranks) {
        throw InputError(where, json_excerpt(row), fmt::format("a row of {} numbers", num_ranks));
      }
      out.push_back(row_of(row, where));
    }
    return out;
  }
  [[nodiscard]] bool has(const char* key) const { return value_.contains(key); }
  // A key that is there only where it is true.
  [[nodiscard]] bool flag(const char* key) const {
    const auto found = value_.find(key);
    if (found == value_.end()) return false;
    if (!found->is_boolean()) {
      throw InputError(fmt::format("{}: {}", where_, key), json_excerpt(*found), "true or false");
    }
    return found->get<bool>();
  }
  [[nodiscard]] double time_s() const { return positive("median_us") * 1e-6; }
  // Of a rank like any other: the mean of the ranks' own medians. Probes without them know the slowest.
  [[nodiscard]] double rank_time_s() const {
    const double slowest_s = time_s();  // a time that is none is refused, used or not
    const auto starts = value_.find("ranks_us");
    if (starts == value_.end()) return slowest_s;
    const std::string where = where_ + ": ranks_us";
    if (!starts->is_array() || starts->empty()) {
      throw InputError(where, json_excerpt(*starts), "a list for each start");
    }
    double sum = 0.0;
    std::size_t count = 0;
    for (const auto& ranks : *starts) {
      for (const auto& rank : ranks) {
        const double us = rank.is_number() ? rank.get<double>() : 0.0;
        if (!(us > 0.0)) throw InputError(where, json_excerpt(rank), "times above zero");
        sum += us;
        ++count;
      }
    }
    if (count == 0) throw InputError(where, "no times", "one of each rank");
    return sum / static_cast<double>(count) * 1e-6;
  }
  // The least of all samples.
  [[nodiscard]] double fastest_s() const {
    const auto starts = value_.find("samples_us");
    double fastest_us = 0.0;
    if (starts != value_.end() && starts->is_array()) {
      for (const auto& samples : *starts) {
        for (const auto& sample : samples) {
          const double us = sample.is_number() ? sample.get<double>() : 0.0;
          if (!(us > 0.0)) {
            throw InputError(where_ + ": samples_us", json_excerpt(sample), "numbers above zero");
          }
          fastest_us = fastest_us == 0.0 ? us : std::min(fastest_us, us);
        }
      }
    }
    if (fastest_us == 0.0) throw InputError(where_, "no list \"samples_us\"", "every sample");
    return fastest_us * 1e-6;
  }
  [[nodiscard]] const std::string& where() const { return where_; }

 private:
  static std::vector<std::uint32_t> row_of(const nlohmann::json& row, const std::string& where) {
    std::vector<std::uint32_t> out;
    for (const auto& count : row) {
      if (!count.is_number_unsigned() || count.get<std::uint64_t>() > 0xffffffff) {
        throw InputError(where, json_excerpt(count), "whole numbers");
      }
      out.push_back(count.get<std::uint32_t>());
    }
    return out;
  }

  const nlohmann::json& value_;
  std::string where_;
};

template <class Add>
void read_probe_part(const nlohmann::json& document, const std::string& name, const char* part,
                     const Add& add) {
  const auto found = document.find(part);
  if (found == document.end() || !found->is_array() || found->empty()) {
    throw InputError(name, fmt::format("no measurements of the part \"{}\"", part),
                     "a whole probe: `coterie-runtime probe` completes the folder it began");
  }
  std::size_t idx = 0;
  for (const auto& value : *found) {
    add(ProbeEntry(value, fmt::format("{}: {}[{}]", name, part, idx++)));
  }
}

}  // namespace coterie
