#include "core/provenance.hpp"

namespace coterie {

std::string version() {
  return COTERIE_VERSION;
}

std::string version_text(const std::string& program, const std::string& commit,
                         const std::vector<std::pair<std::string, std::string>>& parts) {
  std::string text = program + " " + version() + " (commit " + commit + ")";
  for (const auto& [name, known] : parts) text += "\n" + name + ": " + known;
  return text;
}

std::string shell_quote(const std::vector<std::string>& arguments) {
  constexpr const char* kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%";
  std::string out;
  for (const std::string& argument : arguments) {
    if (!out.empty()) out += ' ';
    if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) {
      out += argument;
      continue;
    }
    out += '\'';
    for (const char c : argument) {
      if (c == '\'') {
        out += "'\\''";
      } else {
        out += c;
      }
    }
    out += '\'';
  }
  return out;
}

}  // namespace coterie
