#pragma once
// The sentence that bad input gets.

#include <functional>
#include <string>

#include "core/error.hpp"

namespace coterie {

// What the InputError says that `body` throws, or that it threw none.
inline std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const InputError& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

}  // namespace coterie
