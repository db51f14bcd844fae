#include "workloads/plan/payload.hpp"

namespace coterie {

std::string to_string(PayloadType type) {
  return type == PayloadType::kBf16 ? "bf16" : "fp8";
}

std::optional<PayloadType> parse_payload(std::string_view name) {
  if (name == "bf16") return PayloadType::kBf16;
  if (name == "fp8") return PayloadType::kFp8;
  return std::nullopt;
}

Bytes row_payload(PayloadType type, std::uint32_t hidden) {
  if (type == PayloadType::kBf16) return Bytes{std::int64_t{2} * hidden};
  // A last group of fewer than 128 values has a scale too.
  const std::int64_t num_scales = (std::int64_t{hidden} + 127) / 128;
  return Bytes{std::int64_t{hidden} + num_scales * 4};
}

}  // namespace coterie
