#pragma once
// Random numbers that are the same on every machine and with every standard library: own generator
// (xoshiro256++, Blackman and Vigna 2019, seeded through SplitMix64) and own draws.

#include <array>
#include <cstdint>
#include <span>
#include <utility>

namespace coterie {

class Random {
 public:
  explicit Random(std::uint64_t seed);
  // A stream that is independent for every (seed, stream) pair.
  Random(std::uint64_t seed, std::uint64_t stream);

  std::uint64_t bits();
  // Uniform in [0, 1), 53 bits.
  double uniform();
  // Uniform in [0, bound), unbiased; bound > 0.
  std::uint64_t index(std::uint64_t bound);
  // Standard normal (polar method).
  double normal();

  template <class T>
  void shuffle(std::span<T> items) {
    for (std::size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[index(i)]);
    }
  }

 private:
  std::array<std::uint64_t, 4> state_;
};

// A stateless 64-bit mix of its argument, for hashing flows and ids (SplitMix64 finaliser).
std::uint64_t mix64(std::uint64_t value);

}  // namespace coterie
