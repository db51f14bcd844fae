#pragma once
// Where a result comes from. Kept free of dates and host names, so that the same inputs give the
// same bytes; measured reports add the machine on top (see RunReport).

#include <string>
#include <vector>

namespace coterie {

// The version of this build, as in the changelog.
std::string version();

// A command line that can be pasted into a shell.
std::string shell_quote(const std::vector<std::string>& arguments);

}  // namespace coterie
