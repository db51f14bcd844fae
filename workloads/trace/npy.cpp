#include "workloads/trace/npy.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <limits>
#include <string_view>
#include <utility>

#include "core/counted.hpp"
#include "core/error.hpp"

namespace coterie {
namespace {

static_assert(std::endian::native == std::endian::little, "traces are little-endian in memory too");

struct TypeName {
  NumberType type;
  std::string_view code;  // NumPy's descr without the byte order
  std::string_view name;
  std::size_t size;
};
constexpr TypeName kTypes[] = {
    {NumberType::kI8, "i1", "int8", 1},     {NumberType::kI16, "i2", "int16", 2},
    {NumberType::kI32, "i4", "int32", 4},   {NumberType::kI64, "i8", "int64", 8},
    {NumberType::kU8, "u1", "uint8", 1},    {NumberType::kU16, "u2", "uint16", 2},
    {NumberType::kU32, "u4", "uint32", 4},  {NumberType::kU64, "u8", "uint64", 8},
    {NumberType::kF16, "f2", "float16", 2}, {NumberType::kF32, "f4", "float32", 4},
    {NumberType::kF64, "f8", "float64", 8}, {NumberType::kBool, "b1", "bool", 1},
    {NumberType::kBf16, "", "bfloat16", 2},
};

const TypeName& entry(NumberType type) {
  return *std::find_if(std::begin(kTypes), std::end(kTypes),
                       [&](const TypeName& t) { return t.type == type; });
}

// The header is a Python dict literal with exactly three keys. This reads that and nothing more.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  void expect(char wanted) {
    skip_space();
    if (pos_ >= text_.size() || text_[pos_] != wanted) fail(fmt::format("\"{}\"", wanted));
    ++pos_;
  }
  bool accept(char wanted) {
    skip_space();
    if (pos_ >= text_.size() || text_[pos_] != wanted) return false;
    ++pos_;
    return true;
  }
  std::string quoted() {
    skip_space();
    const char quote = pos_ < text_.size() ? text_[pos_] : '\0';
    if (quote != '\'' && quote != '"') fail("a quoted text");
    const std::size_t end = text_.find(quote, pos_ + 1);
    if (end == std::string_view::npos) fail("a closing quote");
    std::string value(text_.substr(pos_ + 1, end - pos_ - 1));
    pos_ = end + 1;
    return value;
  }
  bool boolean() {
    skip_space();
    for (const auto& [word, value] : {std::pair{"True", true}, std::pair{"False", false}}) {
      if (text_.substr(pos_).starts_with(word)) {
        pos_ += std::string_view(word).size();
        return value;
      }
    }
    fail("True or False");
  }
  std::uint64_t number() {
    skip_space();
    std::uint64_t value = 0;
    const char* begin = text_.data() + pos_;
    const auto [end, status] = std::from_chars(begin, text_.data() + text_.size(), value);
    if (status != std::errc{}) fail("a number");
    pos_ += static_cast<std::size_t>(end - begin);
    return value;
  }
  [[noreturn]] void fail(std::string_view expected) const {
    throw InputError(fmt::format("{}: byte {} of the .npy header", where_, pos_),
                     pos_ < text_.size() ? fmt::format("\"{}\"", text_[pos_]) : "its end",
                     expected);
  }

 private:
  void skip_space() {
    while (pos_ < text_.size() && (text_[pos_] == ' ' || text_[pos_] == '\n')) ++pos_;
  }
  std::string_view text_;
  const std::string& where_;
  std::size_t pos_ = 0;
};

NumberType parse_type(const std::string& descr, const std::string& where) {
  if (descr.find('O') != std::string::npos) {
    throw InputError(where, "an array of pickled Python objects, which are never unpickled here",
                     "an array of numbers (save it without dtype=object)");
  }
  if (descr.size() == 3 && descr[0] != '>') {
    for (const TypeName& type : kTypes) {
      if (descr.substr(1) == type.code) return type.type;
    }
  }
  throw InputError(where, fmt::format("dtype \"{}\"", descr),
                   "little-endian integers or floats, such as \"<i4\"");
}

float from_half(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fU;
  const std::uint32_t mantissa = half & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

}  // namespace

std::string to_string(NumberType type) {
  return std::string(entry(type).name);
}
std::size_t size_of(NumberType type) {
  return entry(type).size;
}
bool is_integer(NumberType type) {
  return type != NumberType::kF16 && type != NumberType::kBf16 && type != NumberType::kF32 &&
         type != NumberType::kF64;
}

std::uint64_t ArrayView::size() const {
  return data.size() / size_of(type);
}

std::string shape_text(std::span<const std::uint64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

ArrayView parse_npy(std::span<const std::byte> bytes, const std::string& where) {
  constexpr std::string_view kMagic = "\x93NUMPY";
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!text.starts_with(kMagic)) {
    throw InputError(where, "no .npy magic in the first 6 bytes", "a NumPy array");
  }
  if (bytes.size() < 12) {
    throw InputError(where, counted(bytes.size(), "byte"), "a whole .npy header");
  }
  const auto major = std::to_integer<unsigned>(bytes[6]);
  if (major < 1 || major > 3) {
    throw InputError(where, fmt::format(".npy version {}", major), "version 1, 2 or 3");
  }
  const std::size_t begin = major == 1 ? 10 : 12;
  const std::size_t length = major == 1 ? load<std::uint16_t>(bytes.data() + 8, 0)
                                        : load<std::uint32_t>(bytes.data() + 8, 0);
  if (length > bytes.size() - begin) {
    throw InputError(
        where, fmt::format("a header of {} in a file of {}", counted(length, "byte"), bytes.size()),
        "a whole .npy header");
  }

  ArrayView array;
  bool has_type = false;
  bool has_shape = false;
  bool has_order = false;
  HeaderParser header(text.substr(begin, length), where);
  header.expect('{');
  while (!header.accept('}')) {
    const std::string key = header.quoted();
    header.expect(':');
    if (key == "descr" && !has_type) {
      // Structured types stand in brackets; they are not quoted and refused here.
      array.type = parse_type(header.quoted(), where);
      has_type = true;
    } else if (key == "fortran_order" && !has_order) {
      if (header.boolean()) {
        throw InputError(where, "an array in Fortran order", "C order (numpy.ascontiguousarray)");
      }
      has_order = true;
    } else if (key == "shape" && !has_shape) {
      header.expect('(');
      while (!header.accept(')')) {
        array.shape.push_back(header.number());
        if (!header.accept(',')) {
          header.expect(')');
          break;
        }
      }
      has_shape = true;
    } else {
      header.fail("the keys descr, fortran_order and shape, once each");
    }
    if (!header.accept(',')) {
      header.expect('}');
      break;
    }
  }
  if (!has_type || !has_shape || !has_order) header.fail("descr, fortran_order and shape");

  array.data = bytes.subspan(begin + length);
  // shape's product against what is there, without overflow: each step stays within the data.
  std::uint64_t expected = size_of(array.type);
  bool fits = true;
  for (const std::uint64_t extent : array.shape) {
    if (extent != 0 && expected > array.data.size() / extent) fits = false;
    if (fits) expected *= extent;
  }
  const bool empty = std::find(array.shape.begin(), array.shape.end(), 0U) != array.shape.end();
  if (empty ? !array.data.empty() : !fits || expected != array.data.size()) {
    throw InputError(
        where, fmt::format("{} of data", counted(array.data.size(), "byte")),
        fmt::format("what shape {} of {} takes", shape_text(array.shape), to_string(array.type)));
  }
  return array;
}

std::vector<std::int64_t> to_integers(const ArrayView& array, const std::string& where) {
  if (!is_integer(array.type)) throw InputError(where, to_string(array.type), "integers");
  std::vector<std::int64_t> values(array.size());
  with_integer_type(array.type, [&](auto tag) {
    using T = decltype(tag);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const T value = load<T>(array.data.data(), i);
      if (std::cmp_greater(value, std::numeric_limits<std::int64_t>::max())) {
        throw InputError(where, fmt::format("{}", value), "a number below 2^63");
      }
      values[i] = static_cast<std::int64_t>(value);
    }
  });
  return values;
}

std::vector<float> to_floats(const ArrayView& array) {
  std::vector<float> values(array.size());
  const std::byte* data = array.data.data();
  switch (array.type) {
    case NumberType::kF32:
      if (!values.empty()) std::memcpy(values.data(), data, array.data.size());
      break;
    case NumberType::kF64:
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(load<double>(data, i));
      }
      break;
    case NumberType::kF16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = from_half(load<std::uint16_t>(data, i));
      }
      break;
    case NumberType::kBf16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] =
            std::bit_cast<float>(static_cast<std::uint32_t>(load<std::uint16_t>(data, i)) << 16);
      }
      break;
    default:
      with_integer_type(array.type, [&](auto tag) {
        using T = decltype(tag);
        for (std::size_t i = 0; i < values.size(); ++i) {
          values[i] = static_cast<float>(load<T>(data, i));
        }
      });
  }
  return values;
}

}  // namespace coterie
