#include "workloads/trace/record_file.hpp"

#include <algorithm>
#include <array>
#include <span>

#include "core/counted.hpp"
#include "core/file.hpp"
#include "workloads/trace/archive.hpp"

namespace coterie {
namespace {

constexpr std::uint64_t kMaxRecord = std::uint64_t{1} << 28;

std::uint32_t checksum(std::string_view bytes) {
  return crc32_of(std::as_bytes(std::span(bytes)));
}

}  // namespace

void write_record_file_magic(std::ostream& out, const RecordFileKind& kind) {
  out.write(kind.magic.data(), static_cast<std::streamsize>(kind.magic.size()));
}

void write_record(std::ostream& out, std::string_view message) {
  std::array<char, 10> length{};
  std::size_t n = 0;
  std::uint64_t rest = message.size();
  do {
    const std::uint64_t more = rest > 0x7f ? 0x80U : 0U;
    length[n++] = static_cast<char>((rest & 0x7fU) | more);
    rest >>= 7;
  } while (rest != 0);
  out.write(length.data(), static_cast<std::streamsize>(n));
  out.write(message.data(), static_cast<std::streamsize>(message.size()));
  const std::uint32_t crc = checksum(message);
  out.write(reinterpret_cast<const char*>(&crc), sizeof(crc));
}

RecordFileReader::RecordFileReader(const std::filesystem::path& path, const RecordFileKind& kind)
    : path_(path.string()) {
  in_ = open_input(path);
  in_.seekg(0, std::ios::end);
  size_ = static_cast<std::uint64_t>(std::max<std::streamoff>(in_.tellg(), 0));
  in_.seekg(0);
  std::string magic(kind.magic.size(), '\0');
  if (size_ < magic.size() || !read(magic.data(), magic.size()) ||
      std::string_view(magic).substr(0, 6) != kind.magic.substr(0, 6)) {
    throw InputError(path_, "a file of another kind", kind.description);
  }
  if (magic != kind.magic) {
    throw InputError(path_,
                     fmt::format("version {} of the {} format",
                                 static_cast<unsigned char>(magic[7]), kind.format),
                     fmt::format("version {}", static_cast<unsigned char>(kind.magic[7])));
  }
}

std::string_view RecordFileReader::next() {
  record_position_ = position_;
  const std::uint64_t length = read_length();
  if (length > kMaxRecord) {
    throw error(fmt::format("a record of {}", counted(length, "byte")),
                fmt::format("at most {}", kMaxRecord));
  }
  if (length + sizeof(std::uint32_t) > size_ - position_) {
    throw error(fmt::format("a record of {} of which {} are there (a truncated file)",
                            counted(length + sizeof(std::uint32_t), "byte"), size_ - position_),
                "a whole record");
  }
  bytes_.resize(length);
  std::uint32_t stored = 0;
  if (!read(bytes_.data(), length) || !read(&stored, sizeof(stored))) {
    throw error("the end of the data", "a whole record");
  }
  const std::uint32_t crc = checksum(bytes_);
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  stored = crc;
#endif
  if (crc != stored) {
    throw error(fmt::format("a corrupted record (checksum {:08x})", crc),
                fmt::format("checksum {:08x}", stored));
  }
  return bytes_;
}

InputError RecordFileReader::error(std::string_view found, std::string_view expected) const {
  return {fmt::format("{}: record at byte {}", path_, record_position_), found, expected};
}

void RecordFileReader::seek(std::uint64_t position) {
  in_.clear();
  in_.seekg(static_cast<std::streamoff>(position));
  position_ = position;
}

bool RecordFileReader::read(void* to, std::uint64_t size) {
  in_.read(static_cast<char*>(to), static_cast<std::streamsize>(size));
  position_ += static_cast<std::uint64_t>(in_.gcount());
  return static_cast<std::uint64_t>(in_.gcount()) == size;
}

std::uint64_t RecordFileReader::read_length() {
  std::uint64_t length = 0;
  for (unsigned shift = 0; shift < 63; shift += 7) {
    unsigned char byte = 0;
    if (!read(&byte, 1)) {
      throw error("the end of the file (a truncated file)", "a further record or the footer");
    }
    length |= static_cast<std::uint64_t>(byte & 0x7fU) << shift;
    if ((byte & 0x80U) == 0) return length;
  }
  throw error("a length that does not end", "a record");
}

}  // namespace coterie
