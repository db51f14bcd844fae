#include "sim/cli/commands.hpp"

namespace coterie {

void add_set_option(CLI::App& command, std::vector<std::string>& texts,
                    const std::string& of_what) {
  command.add_option("--set", texts, "KEY=VALUE, overrides a key of " + of_what + " (repeatable)")
      ->allow_extra_args(false);
}

std::vector<Override> parse_overrides(const std::vector<std::string>& texts) {
  std::vector<Override> overrides;
  for (const std::string& text : texts) overrides.push_back(parse_override(text));
  return overrides;
}

}  // namespace coterie
