// One libFuzzer program for every reader: `coterie_fuzz --target=NAME CORPUS`. A reader may give
// back a value or throw an InputError that says what is wrong; anything else (another exception, a
// fault that a sanitizer sees, a hang, memory out of proportion) is a finding. run.sh runs them all.

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/results.hpp"
#include "core/yaml.hpp"
#include "sim/calibrate/measurements.hpp"
#include "sim/calibrate/row_exchanges.hpp"
#include "sim/report/link_loads.hpp"
#include "sim/sweep/journal.hpp"
#include "sim/sweep/spec.hpp"
#include "topologies/cluster.hpp"
#include "topologies/import/importer.hpp"
#include "workloads/experiment.hpp"
#include "workloads/model.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/plan/matrix.hpp"
#include "workloads/plan/plan_file.hpp"
#include "workloads/trace/generate.hpp"
#include "workloads/trace/importer.hpp"
#include "workloads/trace/importers/torch_file.hpp"
#include "workloads/trace/moet.hpp"
#include "workloads/trace/npy.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

// A folder of this process, in memory where there is such a place.
class Folder {
 public:
  Folder() {
    std::string pattern =
        (fs::exists("/dev/shm") ? std::string("/dev/shm") : fs::temp_directory_path().string()) +
        "/coterie-fuzz-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  // Not through write_file, which waits for the disk.
  [[nodiscard]] fs::path put(const std::string& name, std::string_view bytes) const {
    const fs::path path = path_ / name;
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path;
  }

 private:
  fs::path path_;
};

const Folder& folder() {
  static const Folder folder;
  return folder;
}

struct Target {
  std::string name;
  std::function<void(const std::string&)> read;
};

ImportOptions import_options() {
  ImportOptions options;
  options.num_experts = 8;
  options.num_topk = 2;
  options.selection = "softmax_topk";
  return options;
}

Target importer_target(const std::string& format, const std::string& file) {
  return {"import-" + format, [format, file](const std::string& bytes) {
            const std::vector<fs::path> inputs{folder().put(file, bytes)};
            (void)import_traces(inputs, format, import_options());
          }};
}

// What is read is written again and must come back the same.
void round_trip(const std::string& bytes) {
  const Trace trace = read_moet(folder().put("t.moet", bytes));
  const fs::path again = folder().put("u.moet", "");
  write_moet(again, trace);
  if (read_moet(again).index() != trace.index()) throw std::logic_error("another kind of trace");
}

std::vector<Target> targets() {
  std::vector<Target> all{
      {"moet", round_trip},
      {"plan", [](const std::string& b) { (void)read_plan(folder().put("p.plan", b)); }},
      {"matrix", [](const std::string& b) { (void)parse_traffic(b, "m", MatrixFormat::kMatrix); }},
      {"htsim", [](const std::string& b) { (void)parse_traffic(b, "m", MatrixFormat::kHtsim); }},
      {"topology",
       [](const std::string& b) { (void)to_yaml(read_cluster(parse_yaml(b, "t.yaml"))); }},
      {"topology-import",
       [](const std::string& b) {
         (void)import_topology_text(b, "F", {.base = "h100_node", .num_nodes = std::nullopt});
       }},
      {"model", [](const std::string& b) { (void)read_model(parse_yaml(b, "m.yaml")); }},
      {"workload", [](const std::string& b) { (void)read_workload(parse_yaml(b, "w.yaml")); }},
      {"experiment",
       [](const std::string& b) { (void)load_experiment(folder().put("e.yaml", b)); }},
      {"sweep", [](const std::string& b) { (void)load_sweep(folder().put("s.yaml", b)); }},
      {"override",
       [](const std::string& b) {
         const YamlValue value =
             parse_yaml("a: {b: 1, c: [1, {d: 2}]}", "o.yaml", {parse_override(b)});
         (void)dump_yaml(value);
       }},
      {"placement", [](const std::string& b) { (void)parse_placement(b, "p.json", 2); }},
      {"csv",
       [](const std::string& b) {
         const CsvTable table = parse_csv(b, "t.csv");
         std::string text = csv_line(table.columns);
         for (const auto& row : table.rows) text += csv_line(row);
         const CsvTable again = parse_csv(text, "again");
         if (again.columns != table.columns || again.rows != table.rows) {
           throw std::logic_error("a table that does not come back");
         }
       }},
      {"results",
       [](const std::string& b) {
         const Results results = results_from_json(parse_json(b, "r.json"), "r.json");
         (void)dump_json(to_json(results));
         (void)to_csv(results.runs);
       }},
      {"timeline",
       [](const std::string& b) {
         RunReport report;
         report.layers.resize(2);
         report.layers[0].time_s = report.layers[1].time_s = 1e-3;
         (void)read_link_loads(folder().put("timeline.json", b), report);
       }},
      {"journal",
       [](const std::string& b) {
         (void)read_journal(folder().put("points.0.jsonl", b), "0123456789abcdef");
       }},
      {"alltoall", [](const std::string& b) { (void)parse_alltoall(b, "log", nullptr); }},
      {"row-exchanges", [](const std::string& b) { (void)parse_row_exchanges(b, "rows.csv"); }},
      {"npy",
       [](const std::string& b) {
         const ArrayView array = parse_npy(std::as_bytes(std::span(b)), "a.npy");
         if (is_integer(array.type)) (void)to_integers(array, "a.npy");
         (void)to_floats(array);
       }},
      {"pickle",
       [](const std::string& b) { (void)Pickle(std::as_bytes(std::span(b)), "data.pkl"); }},
  };
  for (const Importer& importer : importers()) {
    all.push_back(importer_target(
        importer.name, importer.name == "esft" ? "expert_weights_3.txt" : "rank0.safetensors"));
  }
  return all;
}

const Target* chosen = nullptr;

int choose(int argc, char** argv) {
  static const std::vector<Target> all = targets();
  constexpr std::string_view kOption = "--target=";
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--list") {
      for (const Target& target : all) std::cout << target.name << "\n";
      std::exit(0);
    }
    if (!argument.starts_with(kOption)) continue;
    for (const Target& target : all) {
      if (target.name == argument.substr(kOption.size())) chosen = &target;
    }
  }
  if (chosen == nullptr) {
    std::cerr << "coterie_fuzz: no --target=NAME of those that --list names\n";
    std::exit(2);
  }
  // Files that experiments and sweeps name; only their names are looked at.
  (void)folder().put("t.moet", "");
  (void)folder().put("base.yaml", "schema_version: 1\nruns:\n  - {name: a}\n  - {name: b}\n");
  return 0;
}

}  // namespace
}  // namespace coterie

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  return coterie::choose(*argc, *argv);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    coterie::chosen->read(std::string(reinterpret_cast<const char*>(data), size));
  } catch (const coterie::InputError& error) {
    if (std::string_view(error.what()).empty()) std::abort();
  }
  return 0;
}
