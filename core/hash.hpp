#pragma once
// Digests of bytes (XXH3, 64 bits), for caches, provenance and the comparison of what ranks hold.
// Equal bytes give equal digests on every little-endian machine and in every version of xxHash
// (XXH3's values are fixed since 0.8.0). Not for security: whoever wants two inputs of one digest
// can make them.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace coterie {

// XXH3_64bits of the bytes, seed 0.
std::uint64_t content_hash(std::string_view bytes);

// The digest of several parts. Every part is added with its length, so that moving bytes from one
// part to the next changes the digest.
class ContentHash {
 public:
  ContentHash();
  ~ContentHash();
  ContentHash(const ContentHash&) = delete;
  ContentHash& operator=(const ContentHash&) = delete;

  ContentHash& add(std::string_view bytes);
  template <class T>
  ContentHash& add(std::span<const T> values) {
    static_assert(std::has_unique_object_representations_v<T> || std::is_floating_point_v<T>,
                  "padding has no defined bytes");
    return add(std::string_view(reinterpret_cast<const char*>(values.data()),  // NOLINT
                                values.size_bytes()));
  }
  template <class T>
  ContentHash& add(const std::vector<T>& values) {
    return add(std::span<const T>(values));
  }
  [[nodiscard]] std::uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Sixteen hexadecimal digits.
std::string hex64(std::uint64_t value);

}  // namespace coterie
