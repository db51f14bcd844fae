#include "core/hash.hpp"

#include <fmt/format.h>

#include <bit>

// Everything in the header: nothing has to be linked.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace coterie {

static_assert(std::endian::native == std::endian::little, "digests of numbers are of their bytes");

struct ContentHash::State {
  XXH3_state_t xxh3;
};

std::uint64_t content_hash(std::string_view bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

ContentHash::ContentHash() : state_(std::make_unique<State>()) {
  XXH3_64bits_reset(&state_->xxh3);
}

ContentHash::~ContentHash() = default;

ContentHash& ContentHash::add(std::string_view bytes) {
  const std::uint64_t size = bytes.size();
  XXH3_64bits_update(&state_->xxh3, &size, sizeof size);
  if (!bytes.empty()) XXH3_64bits_update(&state_->xxh3, bytes.data(), bytes.size());
  return *this;
}

std::uint64_t ContentHash::digest() const {
  return XXH3_64bits_digest(&state_->xxh3);
}

std::string hex64(std::uint64_t value) {
  return fmt::format("{:016x}", value);
}

}  // namespace coterie
