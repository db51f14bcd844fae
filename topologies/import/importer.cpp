#include "topologies/import/importer.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <regex>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/yaml.hpp"
#include "topologies/import/formats.hpp"

namespace coterie {

const std::vector<TopologyImporter>& topology_importers() {
  static const std::vector<TopologyImporter> kImporters{
      {"nvidia-smi", "the matrix that `nvidia-smi topo -m` prints", is_nvidia_smi,
       import_nvidia_smi},
      {"nccl-xml", "NCCL's topology (NCCL_TOPO_DUMP_FILE=topo.xml)", is_nccl_xml, import_nccl_xml},
      {"simgrid-xml", "SimGrid's platform: one <cluster>, or hosts and routers joined by links",
       is_simgrid_xml, import_simgrid_xml},
  };
  return kImporters;
}

namespace {

// Other simulators' descriptions, which are not read, by what only they have.
std::string foreign_format(const std::string& text) {
  if (text.find("npus_count") != std::string::npos) {
    return "a network of ASTRA-sim (npus_count), which has no GPUs per node, NICs or switches";
  }
  static const std::regex kSimAi(R"(^\s*\d+ \d+ \d+ \d+ \S+[GM]bps \w+\s*\n)");
  if (std::regex_search(text, kSimAi)) return "a topology of SimAI (a list of switches and links)";
  if (text.find("<!DOCTYPE html") != std::string::npos) return "a web page";
  return "none of the formats that are read";
}

}  // namespace

ImportedTopology import_topology_text(const std::string& text, const std::string& name,
                                      const TopologyImportOptions& options) {
  std::vector<std::string> known;
  for (const TopologyImporter& importer : topology_importers()) {
    known.push_back(importer.description);
    if (!importer.recognises(text)) continue;
    if (options.base.empty()) {
      throw InputError(name,
                       "no word on what a GPU computes, what a transfer costs and how nodes are "
                       "joined",
                       "--base with a preset of the same GPU (`coterie topology list`)");
    }
    ImportedTopology imported =
        importer.import_text(text, name, load_cluster(options.base), options);
    imported.cluster.provenance.emplace_back("imported_from", importer.description);
    imported.cluster.provenance.emplace_back("read",
                                             fmt::format("{}", fmt::join(imported.read, "; ")));
    imported.cluster.provenance.emplace_back(
        "not_in_the_input", fmt::format("{}", fmt::join(imported.not_known, "; ")));
    // Written and read again, it passes every check that a file must pass.
    imported.cluster = read_cluster(parse_yaml(to_yaml(imported.cluster), name));
    return imported;
  }
  throw InputError(name, foreign_format(text), fmt::format("{}", fmt::join(known, "; ")));
}

ImportedTopology import_topology(const std::filesystem::path& path,
                                 const TopologyImportOptions& options) {
  ImportedTopology imported = import_topology_text(read_file(path), path.string(), options);
  return imported;
}

}  // namespace coterie
