#include "sim/report/report.hpp"

#include "core/error.hpp"
#include "core/file.hpp"
#include "sim/report/pages.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

bool has_journal(const fs::path& folder) {
  for (const fs::path& file : list_folder(folder)) {
    const std::string name = file.filename().string();
    if (name.starts_with("points.") && name.ends_with(".jsonl")) return true;
  }
  return false;
}

}  // namespace

std::string render_report(const fs::path& folder, const fs::path& output) {
  constexpr const char* kExpected = "a folder that coterie simulate or coterie sweep wrote";
  if (folder.empty()) throw InputError("folder", "no name", kExpected);
  if (!path_exists(folder)) throw InputError(folder.string(), "nothing there", kExpected);
  if (!is_folder(folder)) throw InputError(folder.string(), "a file", kExpected);
  if (path_exists(folder / "results.json")) return render(experiment_page(folder, output));
  if (path_exists(folder / "sweep.csv")) return render(sweep_page(folder));
  if (has_journal(folder)) {
    throw InputError(folder.string(), "a sweep that has not ended",
                     "sweep.csv; start coterie sweep on it again");
  }
  throw InputError(folder.string(), "neither results.json nor sweep.csv", kExpected);
}

}  // namespace coterie
