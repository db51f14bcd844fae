#pragma once
// Where a result comes from. Kept free of dates and host names, so that the same inputs give the
// same bytes; measured reports add the machine on top (see RunReport).

#include <string>
#include <utility>
#include <vector>

namespace coterie {

// The version of this build, as in the changelog.
std::string version();

// The commit of this build ("unknown" without a history). Defined in the programs alone, not in the
// library, so that a commit changes nothing else.
std::string commit();

// What --version prints: program, version and commit, then a line for each of `parts` (name, what
// is known of it).
std::string version_text(const std::string& program, const std::string& commit,
                         const std::vector<std::pair<std::string, std::string>>& parts);

// A command line that can be pasted into a shell.
std::string shell_quote(const std::vector<std::string>& arguments);

}  // namespace coterie
