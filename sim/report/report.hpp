#pragma once
// One self-contained HTML page from a folder of results: an experiment's (`coterie simulate`,
// `coterie-runtime run`) or a sweep's (`coterie sweep`).

#include <filesystem>
#include <string>

namespace coterie {

// The page for `folder`, as it will lie at `output`: links to timelines are relative to it. Depends
// on the folder's content and on where the two lie to each other, on nothing else. Throws
// InputError where the folder holds no complete results, or results that cannot be read.
std::string render_report(const std::filesystem::path& folder, const std::filesystem::path& output);

}  // namespace coterie
