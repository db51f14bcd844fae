#pragma once
// The beginning of a text, for a sentence about it.

#include <cstddef>
#include <string>

namespace coterie {

// Of a file that is not what was expected, a line can be anything: at most `most` bytes of it, and "..."
// where there are more.
inline std::string excerpt(const std::string& text, std::size_t most = 200) {
  if (text.size() <= most) return text;
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xC0U) == 0x80U) --most;  // UTF-8
  return text.substr(0, most) + "...";
}

}  // namespace coterie
