#pragma once
// Several imported files made one trace.
//
// A recording is spread over files in three ways, and each asks for something else:
//   data-parallel ranks, requests    other tokens, the same layers     concatenated
//   tensor-parallel ranks            the same tokens, the same layers  counted once
//   pipeline stages, a file a layer  the same tokens, other layers     merged by layer

#include <string>
#include <vector>

#include "workloads/trace/importer.hpp"

namespace coterie {

struct ImportedFile {
  std::string name;  // for messages
  Imported imported;
};

// Files whose content is that of an earlier one (told by a digest, then compared) are left out.
// Files of disjoint layers are merged, the i-th of every group of layers (in order of rank, else of
// input) with the i-th of the others; they must agree in sequences and, where recorded, in tokens.
// The rest is concatenated in order; counts are added. Everything left out or assumed is noted, and
// so are sequences that begin alike (a shared prompt). Throws InputError for files that do not fit
// together, naming what differs. `files` is not empty, and its traces are sound.
Imported combine(std::vector<ImportedFile> files);

}  // namespace coterie
