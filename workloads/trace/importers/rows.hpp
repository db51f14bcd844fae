#pragma once
// Rows of text formats, one per (sequence, token, layer), collected in any order and made a
// Routing. Also strict access to JSON values.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "workloads/trace/importer.hpp"

namespace coterie {

class RowTable {
 public:
  // Adds the experts of a token in a layer; `weights` is empty where not recorded. Throws
  // InputError at `where` if the number of experts or the presence of weights differs from the
  // rows before, or an id is below -1 or above kMaxExperts.
  void add(std::uint64_t sequence, std::uint64_t token, std::uint32_t layer,
           std::span<const std::int64_t> experts, std::span<const float> weights,
           const std::string& where);
  [[nodiscard]] std::size_t num_rows() const { return rows_.size(); }

  // Rows in order of (sequence, token); every token must have a row in every layer. Layers without
  // routing and padding are dropped and counted.
  [[nodiscard]] Imported finish(std::uint32_t num_experts, const ImportOptions& options,
                                const std::string& where);

 private:
  struct Row {
    std::uint64_t sequence;
    std::uint64_t token;
    std::uint32_t layer;
    std::uint32_t order;  // position in experts_, in rows
  };
  std::vector<Row> rows_;
  std::size_t num_topk_ = 0;
  std::vector<ExpertIdx> experts_;
  std::vector<float> weights_;
};

// A member of an object, which must be there.
const nlohmann::json& json_member(const nlohmann::json& object, const char* key,
                                  const std::string& where);
std::int64_t json_integer(const nlohmann::json& value, std::int64_t min, std::int64_t max,
                          const std::string& where);
float json_number(const nlohmann::json& value, const std::string& where);
std::vector<std::int64_t> json_ids(const nlohmann::json& value, const std::string& where);
std::vector<float> json_numbers(const nlohmann::json& value, const std::string& where);

}  // namespace coterie
