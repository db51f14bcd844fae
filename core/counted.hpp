#pragma once
// Numbers of things in messages.

#include <fmt/format.h>

#include <concepts>
#include <string>
#include <string_view>

namespace coterie {

// "1 token", "2 tokens", "0 tokens": the noun is given for one, and takes an s for several.
template <std::integral Number>
std::string counted(Number number, std::string_view noun) {
  return fmt::format("{} {}{}", number, noun, number == 1 ? "" : "s");
}

}  // namespace coterie
