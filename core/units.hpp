#pragma once
// Physical quantities as strong types, and their text form in YAML and on the command line.
//
// A quantity is a double in its SI unit: seconds, bytes per second, floating-point operations per
// second. Bytes are exact 64-bit counts. Text always carries a unit ("50 GB/s", "400 Gb/s", "2 us",
// "4 KiB"); a bare number where a unit belongs is an error.

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

namespace coterie {

template <class Tag>
struct Quantity {
  double value = 0.0;

  friend constexpr auto operator<=>(Quantity, Quantity) = default;
  friend constexpr Quantity operator+(Quantity a, Quantity b) { return {a.value + b.value}; }
  friend constexpr Quantity operator-(Quantity a, Quantity b) { return {a.value - b.value}; }
  friend constexpr Quantity operator*(Quantity a, double factor) { return {a.value * factor}; }
  friend constexpr Quantity operator*(double factor, Quantity a) { return {a.value * factor}; }
  friend constexpr Quantity operator/(Quantity a, double divisor) { return {a.value / divisor}; }
  friend constexpr double operator/(Quantity a, Quantity b) { return a.value / b.value; }
  constexpr Quantity& operator+=(Quantity other) {
    value += other.value;
    return *this;
  }
};

using Seconds = Quantity<struct SecondsTag>;
using Bandwidth = Quantity<struct BandwidthTag>;  // bytes per second
using ComputeRate = Quantity<struct ComputeTag>;  // floating-point operations per second

// A number of bytes.
struct Bytes {
  std::int64_t value = 0;

  friend constexpr auto operator<=>(Bytes, Bytes) = default;
  friend constexpr Bytes operator+(Bytes a, Bytes b) { return {a.value + b.value}; }
  friend constexpr Bytes operator-(Bytes a, Bytes b) { return {a.value - b.value}; }
  friend constexpr Bytes operator*(Bytes a, std::int64_t factor) { return {a.value * factor}; }
  friend constexpr Bytes operator*(std::int64_t factor, Bytes a) { return {a.value * factor}; }
  constexpr Bytes& operator+=(Bytes other) {
    value += other.value;
    return *this;
  }
};

// Time to move `bytes` at `bandwidth`.
constexpr Seconds operator/(Bytes bytes, Bandwidth bandwidth) {
  return {static_cast<double>(bytes.value) / bandwidth.value};
}

// Parse a quantity with its unit. Spaces between number and unit are optional. `where` names the
// place in error messages. Throws InputError; numbers must be finite and not negative.
//   seconds:   s, ms, us, ns        bandwidth: B/s kB/s MB/s GB/s TB/s, KiB/s MiB/s GiB/s TiB/s,
//   bytes:     B, kB MB GB TB,                 b/s kb/s Mb/s Gb/s Tb/s (bits)
//              KiB MiB GiB TiB      compute:   FLOP/s, GFLOP/s, TFLOP/s, PFLOP/s
Seconds parse_seconds(std::string_view text, std::string_view where);
Bytes parse_bytes(std::string_view text, std::string_view where);
Bandwidth parse_bandwidth(std::string_view text, std::string_view where);
ComputeRate parse_compute_rate(std::string_view text, std::string_view where);

// The shortest readable text of a quantity, with three significant digits ("1.25 ms", "50 GB/s",
// "7.2 KiB"). For tables and figures, not for round trips.
std::string format_seconds(Seconds seconds);
std::string format_bytes(double bytes);
std::string format_bandwidth(Bandwidth bandwidth);
std::string format_compute_rate(ComputeRate rate);

}  // namespace coterie
