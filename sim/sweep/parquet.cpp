#include "sim/sweep/parquet.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/json.hpp"
#include "core/provenance.hpp"

namespace coterie {
namespace {

using nlohmann::ordered_json;

// Enumerations of parquet.thrift.
enum class Type : std::int32_t { kBoolean = 0, kInt64 = 2, kDouble = 5, kByteArray = 6 };
constexpr std::int32_t kPlain = 0;
constexpr std::int32_t kRle = 3;
constexpr std::int32_t kOptional = 1;
constexpr std::int32_t kUtf8 = 0;
constexpr std::int32_t kDataPage = 0;
constexpr std::int32_t kUncompressed = 0;

void append_little_endian(std::string& out, std::uint64_t value, int num_bytes) {
  for (int i = 0; i < num_bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}

void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}

// Writes Thrift's compact protocol. Fields must be given in ascending order of their numbers.
class Thrift {
 public:
  void integer(int field, std::int32_t value) {
    header(field, 5);
    zigzag(value);
  }
  void long_integer(int field, std::size_t value) {
    header(field, 6);
    zigzag(static_cast<std::int64_t>(value));
  }
  void text(int field, const std::string& value) {
    header(field, 8);
    bare_text(value);
  }
  // A list's elements follow: bare integers, bare texts, or structs that each end in end().
  enum class Element : std::uint8_t { kInteger = 5, kText = 8, kStruct = 12 };
  void list(int field, Element element, std::size_t size) {
    header(field, 9);
    const auto type = static_cast<std::uint8_t>(element);
    if (size < 15) {
      out_ += static_cast<char>(size << 4 | type);
    } else {
      out_ += static_cast<char>(0xF0 | type);
      append_varint(out_, size);
    }
  }
  void bare_integer(std::int32_t value) { zigzag(value); }
  void bare_text(const std::string& value) {
    append_varint(out_, value.size());
    out_ += value;
  }
  // A struct as a field (begin_field) or as a list's element (begin).
  void begin_field(int field) {
    header(field, 12);
    begin();
  }
  void begin() {
    outer_.push_back(last_field_);
    last_field_ = 0;
  }
  void end() {
    out_ += '\0';
    last_field_ = outer_.back();
    outer_.pop_back();
  }
  // The outermost struct, ended.
  [[nodiscard]] std::string finish() && { return std::move(out_) + '\0'; }

 private:
  void header(int field, int type) {
    out_ += static_cast<char>((field - last_field_) << 4 | type);
    last_field_ = field;
  }
  void zigzag(std::int64_t value) {
    append_varint(out_,
                  static_cast<std::uint64_t>(value) << 1 ^ static_cast<std::uint64_t>(value >> 63));
  }
  std::string out_;
  std::vector<int> outer_;
  int last_field_ = 0;
};

Type type_of(const ParquetColumn& column) {
  bool any = false, booleans = true, integers = true, numbers = true;
  for (const ordered_json& value : column.values) {
    if (value.is_null()) continue;
    any = true;
    booleans &= value.is_boolean();
    integers &= value.is_number_integer();
    numbers &= value.is_number();
  }
  if (!any) return Type::kByteArray;
  if (booleans) return Type::kBoolean;
  if (integers) return Type::kInt64;
  return numbers ? Type::kDouble : Type::kByteArray;
}

// Which rows have a value: runs of equal levels in the RLE/bit-packing hybrid, after their length.
std::string definition_levels(const ParquetColumn& column) {
  std::string runs;
  for (std::size_t begin = 0; begin < column.values.size();) {
    std::size_t end = begin;
    const bool missing = column.values[begin].is_null();
    while (end < column.values.size() && column.values[end].is_null() == missing) ++end;
    append_varint(runs, (end - begin) << 1);
    runs += missing ? '\0' : '\1';
    begin = end;
  }
  std::string levels;
  append_little_endian(levels, runs.size(), 4);
  return levels + runs;
}

std::string plain_values(const ParquetColumn& column, Type type) {
  std::string out;
  std::size_t num_bits = 0;
  for (const ordered_json& value : column.values) {
    if (value.is_null()) continue;
    switch (type) {
      case Type::kBoolean:
        if (num_bits % 8 == 0) out += '\0';
        if (value.get<bool>()) out.back() = static_cast<char>(out.back() | 1 << num_bits % 8);
        ++num_bits;
        break;
      case Type::kInt64:
        append_little_endian(out, static_cast<std::uint64_t>(value.get<std::int64_t>()), 8);
        break;
      case Type::kDouble:
        append_little_endian(out, std::bit_cast<std::uint64_t>(value.get<double>()), 8);
        break;
      case Type::kByteArray: {
        const std::string text = value.is_string() ? value.get<std::string>() : dump_json(value);
        append_little_endian(out, text.size(), 4);
        out += text;
        break;
      }
    }
  }
  return out;
}

// A page with its header.
std::string data_page(const ParquetColumn& column, Type type) {
  const std::string content = definition_levels(column) + plain_values(column, type);
  const auto size = static_cast<std::int32_t>(content.size());
  Thrift header;
  header.integer(1, kDataPage);
  header.integer(2, size);  // uncompressed
  header.integer(3, size);  // compressed
  header.begin_field(5);
  header.integer(1, static_cast<std::int32_t>(column.values.size()));
  header.integer(2, kPlain);
  header.integer(3, kRle);  // definition levels
  header.integer(4, kRle);  // repetition levels, of which a flat column has none
  header.end();
  return std::move(header).finish() + content;
}

struct Chunk {
  Type type;
  std::size_t offset = 0;
  std::size_t size = 0;
};

void add_schema(Thrift& footer, const std::vector<ParquetColumn>& columns,
                const std::vector<Chunk>& chunks) {
  footer.list(2, Thrift::Element::kStruct, columns.size() + 1);
  footer.begin();  // the root
  footer.text(4, "table");
  footer.integer(5, static_cast<std::int32_t>(columns.size()));
  footer.end();
  for (std::size_t idx = 0; idx < columns.size(); ++idx) {
    footer.begin();
    footer.integer(1, static_cast<std::int32_t>(chunks[idx].type));
    footer.integer(3, kOptional);
    footer.text(4, columns[idx].name);
    if (chunks[idx].type == Type::kByteArray) footer.integer(6, kUtf8);
    footer.end();
  }
}

void add_chunk(Thrift& footer, const ParquetColumn& column, const Chunk& chunk) {
  footer.begin();
  footer.long_integer(2, chunk.offset);
  footer.begin_field(3);
  footer.integer(1, static_cast<std::int32_t>(chunk.type));
  footer.list(2, Thrift::Element::kInteger, 2);
  footer.bare_integer(kPlain);
  footer.bare_integer(kRle);
  footer.list(3, Thrift::Element::kText, 1);
  footer.bare_text(column.name);
  footer.integer(4, kUncompressed);
  footer.long_integer(5, column.values.size());
  footer.long_integer(6, chunk.size);
  footer.long_integer(7, chunk.size);
  footer.long_integer(9, chunk.offset);
  footer.end();
  footer.end();
}

}  // namespace

std::string parquet_file(const std::vector<ParquetColumn>& columns) {
  const std::size_t num_rows = columns.empty() ? 0 : columns.front().values.size();
  std::string file = "PAR1";
  std::vector<Chunk> chunks;
  std::size_t num_bytes = 0;
  for (const ParquetColumn& column : columns) {
    Chunk chunk{type_of(column), file.size(), 0};
    const std::string page = data_page(column, chunk.type);
    chunk.size = page.size();
    num_bytes += page.size();
    file += page;
    chunks.push_back(chunk);
  }
  Thrift footer;
  footer.integer(1, 1);  // format version
  add_schema(footer, columns, chunks);
  footer.long_integer(3, num_rows);
  footer.list(4, Thrift::Element::kStruct, 1);
  footer.begin();
  footer.list(1, Thrift::Element::kStruct, columns.size());
  for (std::size_t idx = 0; idx < columns.size(); ++idx)
    add_chunk(footer, columns[idx], chunks[idx]);
  footer.long_integer(2, num_bytes);
  footer.long_integer(3, num_rows);
  footer.end();
  footer.text(6, "coterie version " + std::string(version()));
  const std::string metadata = std::move(footer).finish();
  file += metadata;
  append_little_endian(file, metadata.size(), 4);
  return file + "PAR1";
}

}  // namespace coterie
