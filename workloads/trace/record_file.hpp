#pragma once
// The framing that trace and plan files share: 8 bytes of magic (6 of name, a zero, the version),
// then records until the end of the file, each as
//   varint length | `length` bytes of a Protobuf message | CRC-32 of those bytes, little-endian
// What the messages mean, and that the last one is a footer, is the caller's.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ostream>
#include <string>
#include <string_view>

#include "core/error.hpp"

namespace coterie {

struct RecordFileKind {
  std::string_view magic;        // 8 bytes
  std::string_view format;       // "trace": names the format in messages
  std::string_view description;  // what an expected file is and what writes it
};

void write_record_file_magic(std::ostream& out, const RecordFileKind& kind);
void write_record(std::ostream& out, std::string_view message);

// Reads record after record; every size is checked against the rest of the file before memory is
// asked for.
class RecordFileReader {
 public:
  // Throws InputError for unreadable files and those of another kind or version.
  RecordFileReader(const std::filesystem::path& path, const RecordFileKind& kind);

  // The message of the next record, valid until the next call. Throws InputError for truncated and
  // corrupted records.
  std::string_view next();
  [[nodiscard]] bool at_end() const { return position_ == size_; }
  [[nodiscard]] std::uint64_t file_size() const { return size_; }
  // Goes back to a record that began where position() was.
  [[nodiscard]] std::uint64_t position() const { return position_; }
  void seek(std::uint64_t position);
  // A fault of the record that was read last.
  [[nodiscard]] InputError error(std::string_view found, std::string_view expected) const;

 private:
  bool read(void* to, std::uint64_t size);
  std::uint64_t read_length();

  std::string path_;
  std::ifstream in_;
  std::uint64_t size_ = 0;
  std::uint64_t position_ = 0;
  std::uint64_t record_position_ = 0;
  std::string bytes_;
};

}  // namespace coterie
