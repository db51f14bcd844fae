// The `coterie` program: parses the command line and hands over to the command.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <span>

#include "core/command_line.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/option_text.hpp"
#include "core/provenance.hpp"
#include "sim/cli/commands.hpp"
#include "sim/engines/engine.hpp"

namespace {

// CLI11 would only say that a subcommand is missing. `words` are those of the command line behind
// the app's name.
void check_subcommands(const CLI::App& app, std::span<char*> words) {
  const auto commands = app.get_subcommands({});
  if (words.empty() || commands.empty() || words.front()[0] == '-') return;
  const std::string name = words.front();
  std::vector<std::string> names;
  for (const CLI::App* command : commands) {
    if (command->get_name() == name) return check_subcommands(*command, words.subspan(1));
    names.push_back(command->get_name());
  }
  throw coterie::InputError(app.get_parent() == nullptr ? "command" : app.get_name() + " command",
                            fmt::format("\"{}\"", name),
                            fmt::format("one of {}", fmt::join(names, ", ")));
}

std::string versions() {
  using namespace coterie;
  return version_text("coterie", commit(),
                      {{"engines", fmt::format("{}", fmt::join(engine_names(), ", "))},
                       {"SimGrid", simgrid_version()},
                       {"CUDA, NCCL", "not used (coterie-runtime --version)"}});
}

// The words of the command line that name commands, for the help page an error points to.
std::string command_words(const CLI::App& app) {
  std::string words = app.get_name();
  for (const CLI::App* command : app.get_subcommands()) words += " " + command_words(*command);
  return words;
}

// The command that was given last: the one that an argument belongs to.
const CLI::App& given_command(const CLI::App& app) {
  const auto commands = app.get_subcommands();
  return commands.empty() ? app : given_command(*commands.front());
}

// CLI11 does not say what it would have converted "--ranks = 1.5" to.
std::string unconverted(const CLI::App& app, const std::string& option, const std::string& value) {
  const CLI::Option* known = given_command(app).get_option_no_throw(option);
  const std::string type = known == nullptr ? "" : known->get_type_name();
  std::string expected = "a number";
  if (type.starts_with("INT")) expected = "a whole number";
  if (type.starts_with("UINT")) expected = "a whole number of 0 or more";
  if (value.find_first_not_of("0123456789") == std::string::npos) expected = "a smaller number";
  return fmt::format("{}: found \"{}\", expected {}", option, value, expected);
}

// The sentence for what CLI11 refuses.
std::string sentence_for(const CLI::App& app, const CLI::ParseError& error) {
  const std::string message = error.what();
  const std::string conversion = "Could not convert: ";
  const std::size_t equals = message.find(" = ");
  if (!message.starts_with(conversion) || equals == std::string::npos)
    return coterie::readable_range(message);
  return unconverted(app, message.substr(conversion.size(), equals - conversion.size()),
                     message.substr(equals + 3));
}

}  // namespace

int main(int argc, char** argv) {
  using namespace coterie;
  prepare_standard_descriptors();
  remove_unfinished_files_on_signals();
  set_up_messages("coterie");

  CLI::App app{"Simulates expert-parallel dispatch of MoE models on GPU clusters.", "coterie"};
  app.set_version_flag("--version", [] { return versions(); });
  app.require_subcommand(1);
  add_simulate_command(app);
  add_sweep_command(app);
  add_recommend_command(app);
  add_report_command(app);
  add_place_command(app);
  add_analyze_command(app);
  add_drift_command(app);
  add_trace_command(app);
  add_plan_command(app);
  add_predict_command(app);
  add_topology_command(app);
  add_model_command(app);
  add_calibrate_command(app);
  add_compare_command(app);
  add_validate_command(app);
  coterie::check_option_numbers<CLI::Validator>(app);
  return run_guarded("coterie", [&] {
    check_subcommands(app,
                      std::span(argv, static_cast<std::size_t>(argc)).subspan(argc > 0 ? 1 : 0));
    try {
      app.parse(argc, argv);
    } catch (const CLI::Success& success) {
      return app.exit(success);  // --help, --version
    } catch (const CLI::ParseError& error) {
      throw InputError(
          fmt::format("{} (see {} --help)", sentence_for(app, error), command_words(app)));
    }
    return static_cast<int>(ExitCode::kOk);
  });
}
