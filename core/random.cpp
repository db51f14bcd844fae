#include "core/random.hpp"

#include <bit>
#include <cmath>

namespace coterie {

std::uint64_t mix64(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15ULL;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

Random::Random(std::uint64_t seed) : Random(seed, 0) {}

Random::Random(std::uint64_t seed, std::uint64_t stream) {
  std::uint64_t word = mix64(seed) ^ mix64(~stream);
  for (std::uint64_t& part : state_) {
    word += 0x9e3779b97f4a7c15ULL;
    part = mix64(word);
  }
}

std::uint64_t Random::bits() {
  const std::uint64_t result = std::rotl(state_[0] + state_[3], 23) + state_[0];
  const std::uint64_t shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

double Random::uniform() {
  return static_cast<double>(bits() >> 11) * 0x1.0p-53;
}

std::uint64_t Random::index(std::uint64_t bound) {
  // Reject the few values that would make small results more likely.
  const std::uint64_t threshold = (0 - bound) % bound;
  std::uint64_t draw = bits();
  while (draw < threshold) draw = bits();
  return draw % bound;
}

double Random::normal() {
  double u = 0.0;
  double s = 0.0;
  do {
    u = 2.0 * uniform() - 1.0;
    const double v = 2.0 * uniform() - 1.0;
    s = u * u + v * v;
  } while (s >= 1.0 || s == 0.0);
  return u * std::sqrt(-2.0 * std::log(s) / s);
}

}  // namespace coterie
