#pragma once
// Tables as Parquet, without a library: the smallest subset of the format that every reader knows.
//
// One row group, one page per column, PLAIN values, no compression, every column optional. Format:
// github.com/apache/parquet-format (README.md, Encodings.md, parquet.thrift); the metadata is
// Thrift's compact protocol.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace coterie {

struct ParquetColumn {
  std::string name;
  std::vector<nlohmann::ordered_json> values;  // [num_rows]; null: missing
};

// The file's bytes. A column of booleans, of integers or of numbers is stored as BOOLEAN, INT64 or
// DOUBLE, any other as UTF-8 text (values that are no strings as their JSON). All columns must have
// the same length.
std::string parquet_file(const std::vector<ParquetColumn>& columns);

}  // namespace coterie
