#pragma once
// Zip archives (.npz of NumPy, .pt of PyTorch), checksums. Members are inflated whole and never
// written anywhere; sizes are checked against the file before memory is asked for.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace coterie {

// CRC-32 (zip's and zlib's polynomial) of the bytes.
std::uint32_t crc32_of(std::span<const std::byte> bytes);

// Bytes that are not zeroed before they are filled.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size)
      : data_(std::make_unique_for_overwrite<std::byte[]>(size)), size_(size) {}
  [[nodiscard]] std::byte* data() { return data_.get(); }
  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  std::unique_ptr<std::byte[]> data_;
  std::size_t size_ = 0;
};

// An open zip archive. Throws InputError for anything that is not one, and where this build has no
// libzip.
class Archive {
 public:
  explicit Archive(const std::filesystem::path& path);
  ~Archive();
  Archive(const Archive&) = delete;
  Archive& operator=(const Archive&) = delete;

  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }
  [[nodiscard]] bool has(const std::string& name) const;
  // The inflated member, its CRC checked. Throws InputError for missing or damaged members.
  [[nodiscard]] Buffer read(const std::string& name) const;
  // "FILE: member NAME", for error messages.
  [[nodiscard]] std::string where(const std::string& name) const;

 private:
  struct Handle;
  std::filesystem::path path_;
  std::unique_ptr<Handle> handle_;
  std::vector<std::string> names_;
};

}  // namespace coterie
