#include "core/units.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <span>

#include "core/error.hpp"

namespace coterie {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};

constexpr double kKi = 1024.0;
constexpr std::array kSecondUnits{Unit{"s", 1.0}, Unit{"ms", 1e-3}, Unit{"us", 1e-6},
                                  Unit{"ns", 1e-9}};
constexpr std::array kByteUnits{Unit{"B", 1.0},
                                Unit{"kB", 1e3},
                                Unit{"MB", 1e6},
                                Unit{"GB", 1e9},
                                Unit{"TB", 1e12},
                                Unit{"KiB", kKi},
                                Unit{"MiB", kKi* kKi},
                                Unit{"GiB", kKi* kKi* kKi},
                                Unit{"TiB", kKi* kKi* kKi* kKi}};
constexpr std::array kBandwidthUnits{Unit{"B/s", 1.0},
                                     Unit{"kB/s", 1e3},
                                     Unit{"MB/s", 1e6},
                                     Unit{"GB/s", 1e9},
                                     Unit{"TB/s", 1e12},
                                     Unit{"KiB/s", kKi},
                                     Unit{"MiB/s", kKi* kKi},
                                     Unit{"GiB/s", kKi* kKi* kKi},
                                     Unit{"TiB/s", kKi* kKi* kKi* kKi},
                                     Unit{"b/s", 0.125},
                                     Unit{"kb/s", 0.125e3},
                                     Unit{"Mb/s", 0.125e6},
                                     Unit{"Gb/s", 0.125e9},
                                     Unit{"Tb/s", 0.125e12}};
constexpr std::array kComputeUnits{Unit{"FLOP/s", 1.0}, Unit{"GFLOP/s", 1e9}, Unit{"TFLOP/s", 1e12},
                                   Unit{"PFLOP/s", 1e15}};

std::string_view trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// What a quantity may be besides zero. Far beyond any machine, and so near to each other that sums
// and ratios of all of them stay within double precision.
struct Range {
  double min;
  double max;
};
constexpr Range kSecondRange{1e-18, 1e9};     // 1e9 s: 31 years
constexpr Range kBandwidthRange{1e-3, 1e18};  // B/s
constexpr Range kComputeRange{1e-3, 1e24};    // FLOP/s
constexpr Range kByteRange{0.0, 9e18};

double parse_quantity(std::string_view text, std::string_view where, std::span<const Unit> units,
                      const Range& range, std::string_view expected) {
  const auto fail = [&]() -> InputError { return {where, fmt::format("\"{}\"", text), expected}; };
  const std::string_view trimmed = trim(text);
  double number = 0.0;
  const auto [end, status] =
      std::from_chars(trimmed.data(), trimmed.data() + trimmed.size(), number);
  if (status != std::errc{} || !std::isfinite(number) || number < 0.0) throw fail();
  const auto used = static_cast<std::size_t>(end - trimmed.data());
  const std::string_view name = trim(trimmed.substr(used));
  for (const Unit& unit : units) {
    if (unit.name != name) continue;
    const double value = number * unit.factor;
    if (value != 0.0 && (value < range.min || value > range.max)) {
      throw InputError(
          where, fmt::format("\"{}\"", text),
          fmt::format("0, or from {} to {} {}", range.min, range.max, units.front().name));
    }
    return value;
  }
  throw fail();
}

// Three significant digits without a trailing ".0": 1.25, 12.5, 125, 50.
std::string three_digits(double value) {
  const double magnitude = std::abs(value);
  std::string text = magnitude >= 99.95   ? fmt::format("{:.0f}", value)
                     : magnitude >= 9.995 ? fmt::format("{:.1f}", value)
                                          : fmt::format("{:.2f}", value);
  if (text.find('.') != std::string::npos) {
    while (text.back() == '0') text.pop_back();
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

std::string format_scaled(double value, std::span<const Unit> ascending) {
  if (!std::isfinite(value)) return fmt::format("{}", value);
  const Unit* chosen = &ascending.front();
  for (const Unit& unit : ascending) {
    if (std::abs(value) >= 0.9995 * unit.factor) chosen = &unit;
  }
  return fmt::format("{} {}", three_digits(value / chosen->factor), chosen->name);
}

}  // namespace

Seconds parse_seconds(std::string_view text, std::string_view where) {
  return {parse_quantity(text, where, kSecondUnits, kSecondRange,
                         "a time with its unit, such as \"2 us\"")};
}

Bytes parse_bytes(std::string_view text, std::string_view where) {
  const double bytes = parse_quantity(text, where, kByteUnits, kByteRange,
                                      "a size with its unit, such as \"4 KiB\"");
  return {static_cast<std::int64_t>(std::llround(bytes))};
}

Bandwidth parse_bandwidth(std::string_view text, std::string_view where) {
  return {parse_quantity(text, where, kBandwidthUnits, kBandwidthRange,
                         "a bandwidth with its unit, such as \"50 GB/s\" or \"400 Gb/s\"")};
}

ComputeRate parse_compute_rate(std::string_view text, std::string_view where) {
  return {parse_quantity(text, where, kComputeUnits, kComputeRange,
                         "a compute rate with its unit, such as \"989 TFLOP/s\"")};
}

std::string format_seconds(Seconds seconds) {
  constexpr std::array kAscending{Unit{"ns", 1e-9}, Unit{"us", 1e-6}, Unit{"ms", 1e-3},
                                  Unit{"s", 1.0}};
  return seconds.value == 0.0 ? "0 s" : format_scaled(seconds.value, kAscending);
}

std::string format_bytes(double bytes) {
  constexpr std::array kAscending{Unit{"B", 1.0}, Unit{"KiB", kKi}, Unit{"MiB", kKi * kKi},
                                  Unit{"GiB", kKi * kKi * kKi}, Unit{"TiB", kKi * kKi * kKi * kKi}};
  return format_scaled(bytes, kAscending);
}

std::string format_bandwidth(Bandwidth bandwidth) {
  constexpr std::array kAscending{Unit{"B/s", 1.0}, Unit{"kB/s", 1e3}, Unit{"MB/s", 1e6},
                                  Unit{"GB/s", 1e9}, Unit{"TB/s", 1e12}};
  return format_scaled(bandwidth.value, kAscending);
}

std::string format_compute_rate(ComputeRate rate) {
  constexpr std::array kAscending{Unit{"FLOP/s", 1.0}, Unit{"GFLOP/s", 1e9}, Unit{"TFLOP/s", 1e12},
                                  Unit{"PFLOP/s", 1e15}};
  return format_scaled(rate.value, kAscending);
}

}  // namespace coterie
