#pragma once
// What the programs say of the values of their options, where CLI11 says too little. It knows nothing of
// CLI11 but its texts.

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <system_error>

namespace coterie {

// What is wrong with the text of a number that CLI11 takes all the same; empty for nothing. `type` is its
// name for the option's type: of a FLOAT numbers that are not finite, which no bound holds for, and of a
// UINT negative ones and those beyond 64 bits.
inline std::string number_fault(std::string_view type, const std::string& text) {
  if (type.starts_with("FLOAT")) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const bool number = !text.empty() && *end == '\0';
    if (number && !std::isfinite(value)) {
      return fmt::format("found \"{}\", expected a finite number", text);
    }
  }
  if (type.starts_with("UINT")) {
    if (text.starts_with("-")) {
      return fmt::format("found \"{}\", expected a whole number of 0 or more", text);
    }
    std::uint64_t value = 0;
    const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (fault == std::errc::result_out_of_range) {
      return fmt::format("found \"{}\", expected a smaller number", text);
    }
  }
  return "";
}

// Lets every option of an app and of its commands refuse what number_fault() names. The types are CLI11's:
// CLI::App, and CLI::Validator, whose function returns what is wrong.
template <class Validator, class App>
void check_option_numbers(App& app) {
  for (auto* option : app.get_options()) {
    option->check(Validator(
        [type = option->get_type_name()](std::string& text) { return number_fault(type, text); },
        ""));
  }
  for (auto* command : app.get_subcommands({})) check_option_numbers<Validator>(*command);
}

// "--jobs: Value 0 not in range 1 to 4096" in the words of all other messages. CLI11 prints the bounds of
// "above zero" with all digits of the largest double.
inline std::string readable_range(const std::string& message) {
  const std::string range = " not in range ";
  const std::size_t value = message.find("Value ");
  const std::size_t begin = message.find(range);
  if (value == std::string::npos || begin == std::string::npos || begin < value ||
      message.find(" to ", begin) == std::string::npos) {
    return message;
  }
  const std::string found = message.substr(value + 6, begin - value - 6);
  const std::string bounds = message.substr(begin + range.size());
  const bool above_zero = bounds.find(" to 17976931348623157") != std::string::npos;
  const std::size_t to = bounds.find(" to ");
  const auto shortest = [](std::string number) {  // "0.100000" is 0.1
    if (number.find('.') == std::string::npos) return number;
    number.erase(number.find_last_not_of('0') + 1);
    return number.ends_with('.') ? number.substr(0, number.size() - 1) : number;
  };
  return fmt::format("{}found {}, expected {}", message.substr(0, value), found,
                     above_zero
                         ? "a positive number"
                         : fmt::format("a number from {} to {}", shortest(bounds.substr(0, to)),
                                       shortest(bounds.substr(to + 4))));
}

}  // namespace coterie
