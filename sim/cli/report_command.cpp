// `coterie report`: a folder of results as one HTML page.

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "sim/cli/commands.hpp"
#include "sim/report/report.hpp"

namespace coterie {
namespace {

struct ReportArguments {
  std::filesystem::path folder;
  std::filesystem::path output;
  bool json = false;
};

void run_report(const ReportArguments& arguments) {
  const std::filesystem::path output =
      arguments.output.empty() ? arguments.folder / "report.html" : arguments.output;
  const std::string page = render_report(arguments.folder, output);
  write_file(output, page);
  if (arguments.json) {
    fmt::print("{}\n",
               dump_json(nlohmann::json(
                   {{"schema_version", 1}, {"report", output.string()}, {"bytes", page.size()}})));
  } else {
    fmt::print("report in {} ({:.1f} MB); open it in a browser\n", output.string(),
               static_cast<double>(page.size()) * 1e-6);
  }
}

}  // namespace

void add_report_command(CLI::App& app) {
  auto arguments = std::make_shared<ReportArguments>();
  CLI::App* command = app.add_subcommand(
      "report", "Makes one HTML page, with plots and tables, from a folder of results");
  command
      ->add_option("DIR", arguments->folder,
                   "What coterie simulate, coterie sweep or coterie-runtime run wrote")
      ->required();
  command->add_option("-o,--output", arguments->output, "The page (default: DIR/report.html)");
  command->add_flag("--json", arguments->json, "Print where the page is as JSON and nothing else");
  command->footer("Example:\n  coterie simulate quickstart.yaml -o out && coterie report out");
  command->callback([arguments] { run_report(*arguments); });
}

}  // namespace coterie
