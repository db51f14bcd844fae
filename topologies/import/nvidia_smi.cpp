// `nvidia-smi topo -m`: a matrix of GPUs and NICs.
//
//   NV#        as many NVLinks
//   PIX, PXB   one or more PCIe switches
//   PHB        the host bridge of the socket
//   NODE, SYS  other bridges of the socket; the other socket
//
// Which GPU it is, what an NVLink carries and the NICs' rate are not in it.

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <regex>
#include <set>
#include <sstream>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "topologies/import/formats.hpp"
#include "topologies/import/machine.hpp"

namespace coterie {
namespace {

// Without the terminal's escapes.
std::string plain(const std::string& text) {
  static const std::regex kEscape("\x1b\\[[0-9;]*m");
  return std::regex_replace(text, kEscape, "");
}

std::vector<std::string> words(const std::string& line) {
  std::istringstream stream(line);
  std::vector<std::string> out;
  for (std::string word; stream >> word;) out.push_back(word);
  return out;
}

bool is_gpu(const std::string& word) {
  static const std::regex kGpu(R"(GPU\d+)");
  return std::regex_match(word, kGpu);
}

// Names of the header, up to the affinities, which have words of their own.
std::vector<std::string> devices_of(const std::vector<std::string>& header) {
  std::vector<std::string> devices;
  for (const std::string& word : header) {
    if (word == "CPU" || word == "NUMA" || word == "GPU") break;
    devices.push_back(word);
  }
  return devices;
}

struct Matrix {
  std::vector<std::string> devices;
  std::vector<std::vector<std::string>> cells;  // [device][device]; empty rows: not printed
};

Matrix read_matrix(const std::string& text, const std::string& name) {
  Matrix matrix;
  std::istringstream stream(plain(text));
  std::size_t number = 0;
  for (std::string line; std::getline(stream, line);) {
    ++number;
    const auto cells = words(line);
    if (cells.empty()) continue;
    if (matrix.devices.empty()) {
      if (!is_gpu(cells.front()) || cells.size() < 2) continue;
      if (std::find(cells.begin(), cells.end(), "X") == cells.end()) {
        matrix.devices = devices_of(cells);
        matrix.cells.resize(matrix.devices.size());
        continue;
      }
      throw InputError(fmt::format("{}:{}", name, number), "a row before the line of device names",
                       "GPU0 GPU1 ... above it");
    }
    if (cells.front() == "Legend:") break;
    const auto device = std::find(matrix.devices.begin(), matrix.devices.end(), cells.front());
    if (device == matrix.devices.end()) continue;
    if (cells.size() <= matrix.devices.size()) {
      throw InputError(fmt::format("{}:{}", name, number),
                       fmt::format("{} of {}", counted(cells.size() - 1, "cell"), cells.front()),
                       fmt::format("{}, one for each device", matrix.devices.size()));
    }
    static const std::regex kCell("X|NV\\d+|PIX|PXB|PHB|NODE|SYS");
    auto& row = matrix.cells[static_cast<std::size_t>(device - matrix.devices.begin())];
    row.assign(cells.begin() + 1,
               cells.begin() + 1 + static_cast<std::ptrdiff_t>(matrix.devices.size()));
    for (const std::string& cell : row) {
      if (!std::regex_match(cell, kCell)) {
        throw InputError(fmt::format("{}:{}", name, number), fmt::format("\"{}\"", cell),
                         "X, NV and a number, PIX, PXB, PHB, NODE or SYS");
      }
    }
  }
  for (std::size_t a = 0; a < matrix.devices.size(); ++a) {
    if (matrix.cells[a].empty()) {
      throw InputError(name, fmt::format("no row of {}", matrix.devices[a]),
                       "one for each device of the first line");
    }
    for (std::size_t b = 0; b < a; ++b) {
      if (matrix.cells[a][b] != matrix.cells[b][a]) {
        throw InputError(name,
                         fmt::format("{} from {} to {} and {} back", matrix.cells[a][b],
                                     matrix.devices[a], matrix.devices[b], matrix.cells[b][a]),
                         "the same both ways");
      }
    }
  }
  return matrix;
}

std::uint32_t links_in(const std::string& cell) {
  std::uint32_t links = 0;
  if (cell.starts_with("NV")) std::from_chars(cell.data() + 2, cell.data() + cell.size(), links);
  return links;
}

// Sockets of GPUs that see each other across SYS; nothing where they are not equal parts in order
// of ids.
std::optional<std::uint32_t> sockets_of(const Matrix& matrix,
                                        const std::vector<std::size_t>& gpus) {
  std::vector<std::uint32_t> sizes;
  for (std::size_t g = 0; g < gpus.size(); ++g) {
    const bool apart = g > 0 && matrix.cells[gpus[g]][gpus[g - 1]] == "SYS";
    if (g == 0 || apart) sizes.push_back(0);
    ++sizes.back();
  }
  const bool equal = std::all_of(sizes.begin(), sizes.end(),
                                 [&](std::uint32_t size) { return size == sizes.front(); });
  return equal ? std::optional(static_cast<std::uint32_t>(sizes.size())) : std::nullopt;
}

bool behind_switch(const std::string& cell) {
  return cell == "PIX" || cell == "PXB";
}

}  // namespace

bool is_nvidia_smi(const std::string& text) {
  static const std::regex kHeader(R"((^|\n)\s*GPU0\s)");
  static const std::regex kRow(R"(\n\s*GPU0\s+X\s)");
  const std::string clean = plain(text.substr(0, 65536)) + "\n";
  return std::regex_search(clean, kHeader) && std::regex_search(clean, kRow);
}

ImportedTopology import_nvidia_smi(const std::string& text, const std::string& name,
                                   const Cluster& base, const TopologyImportOptions& options) {
  const Matrix matrix = read_matrix(text, name);
  std::vector<std::size_t> gpus;
  std::vector<std::size_t> others;
  for (std::size_t d = 0; d < matrix.devices.size(); ++d) {
    (is_gpu(matrix.devices[d]) ? gpus : others).push_back(d);
  }
  Machine machine;
  machine.num_gpus = static_cast<std::uint32_t>(gpus.size());
  for (std::size_t a = 0; a < gpus.size(); ++a) {
    machine.links.emplace_back();
    machine.pcie_group.push_back(static_cast<std::uint32_t>(a));
    for (std::size_t b = 0; b < gpus.size(); ++b) {
      const std::string& cell = matrix.cells[gpus[a]][gpus[b]];
      machine.links[a].push_back(links_in(cell));
      if (b < a && behind_switch(cell)) {
        machine.pcie_group[a] = std::min(machine.pcie_group[a], machine.pcie_group[b]);
      }
    }
  }
  machine.num_sockets = sockets_of(matrix, gpus);
  // Ports behind a GPU's own PCIe switch are its network; others may serve storage or management.
  std::uint32_t near = 0;
  for (const std::size_t nic : others) {
    near += std::any_of(gpus.begin(), gpus.end(),
                        [&](std::size_t gpu) { return behind_switch(matrix.cells[nic][gpu]); })
                ? 1
                : 0;
  }
  machine.num_nics = near > 0 ? near : static_cast<std::uint32_t>(others.size());
  return describe(machine, name, base, options);
}

}  // namespace coterie
