#pragma once
// Arrays in NumPy's .npy format, read without Python: plain numbers only, little-endian, C order.
// Pickled objects are refused.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace coterie {

enum class NumberType : std::uint8_t {
  kI8,
  kI16,
  kI32,
  kI64,
  kU8,
  kU16,
  kU32,
  kU64,
  kF16,
  kBf16,
  kF32,
  kF64,
  kBool
};
std::string to_string(NumberType type);
std::size_t size_of(NumberType type);
bool is_integer(NumberType type);

// A view of an array inside somebody else's bytes.
struct ArrayView {
  NumberType type = NumberType::kU8;
  std::vector<std::uint64_t> shape;
  std::span<const std::byte> data;  // exactly size() elements, C order

  [[nodiscard]] std::uint64_t size() const;
};
std::string shape_text(std::span<const std::uint64_t> shape);

// Parses an .npy file's bytes; `where` names it in errors. Throws InputError.
ArrayView parse_npy(std::span<const std::byte> bytes, const std::string& where);

// Element i of possibly unaligned data.
template <class T>
T load(const std::byte* data, std::size_t i) {
  T value;
  std::memcpy(&value, data + i * sizeof(T), sizeof(T));
  return value;
}

// Calls f with a value of the C++ type of an integer array's elements.
template <class F>
decltype(auto) with_integer_type(NumberType type, F&& f) {
  switch (type) {
    case NumberType::kI8:
      return f(std::int8_t{});
    case NumberType::kI16:
      return f(std::int16_t{});
    case NumberType::kI32:
      return f(std::int32_t{});
    case NumberType::kI64:
      return f(std::int64_t{});
    case NumberType::kBool:
    case NumberType::kU8:
      return f(std::uint8_t{});
    case NumberType::kU16:
      return f(std::uint16_t{});
    case NumberType::kU32:
      return f(std::uint32_t{});
    case NumberType::kU64:
      return f(std::uint64_t{});
    default:
      throw std::logic_error("not an integer type");
  }
}

// All elements as integers (throws InputError naming `where` for other numbers and for values that
// do not fit), or as floats.
std::vector<std::int64_t> to_integers(const ArrayView& array, const std::string& where);
std::vector<float> to_floats(const ArrayView& array);

}  // namespace coterie
