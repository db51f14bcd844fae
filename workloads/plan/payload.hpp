#pragma once
// What a row costs on the wire.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/units.hpp"

namespace coterie {

enum class PayloadType : std::uint8_t {
  kBf16,  // 2 bytes per value
  kFp8,   // 1 byte per value and one float scale per 128 values
};
std::string to_string(PayloadType type);
std::optional<PayloadType> parse_payload(std::string_view name);
// Bytes of one row of `hidden` values. FP8 at hidden 7168: 7392 B.
Bytes row_payload(PayloadType type, std::uint32_t hidden);

// What a row costs besides its payload, in the dispatch direction: the token's index, and for every
// expert it serves there its id and router weight. Result rows return in the order the dispatch
// rows came and carry none.
inline constexpr std::int64_t kRowMetadataBytes = 4;
inline constexpr std::int64_t kCopyMetadataBytes = 8;

struct PayloadSizes {
  Bytes dispatch_row;
  Bytes combine_row;

  // Rows that serve `num_copies` (token, expert) pairs, and the results that answer rows.
  [[nodiscard]] Bytes dispatch(std::uint64_t num_rows, std::uint64_t num_copies) const {
    return Bytes{static_cast<std::int64_t>(num_rows) * (dispatch_row.value + kRowMetadataBytes) +
                 static_cast<std::int64_t>(num_copies) * kCopyMetadataBytes};
  }
  [[nodiscard]] Bytes combine(std::uint64_t num_rows) const {
    return Bytes{static_cast<std::int64_t>(num_rows) * combine_row.value};
  }
};

}  // namespace coterie
