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

TransportChoice take_transport_choice(const std::string& name, std::vector<Override>& overrides) {
  TransportChoice choice;
  if (!name.empty()) choice.name = name;
  constexpr std::string_view kPrefix = "transport.";
  std::erase_if(overrides, [&](const Override& override_) {
    if (!override_.key.starts_with(kPrefix)) return false;
    choice.settings.push_back(
        {override_.key.substr(kPrefix.size()), override_.value, std::string(kPrefix)});
    return true;
  });
  return choice;
}

}  // namespace coterie
