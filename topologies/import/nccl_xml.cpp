// NCCL's view of a machine (NVIDIA/nccl, src/graph/xml.cc): what NCCL_TOPO_DUMP_FILE is written
// with and NCCL_TOPO_FILE is read from.
//   system / cpu / pci / ... / pci / gpu / nvlink     target: a GPU's bus id, or that of a switch
//                                                     (told by tclass)
//                            pci / nic / net          speed in Mbit/s
// A dump of several hosts of one NVLink domain has their cpus side by side, with a host_hash.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <pugixml.hpp>
#include <set>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "topologies/import/formats.hpp"
#include "topologies/import/machine.hpp"

namespace coterie {
namespace {

constexpr std::string_view kSwitchClass = "0x068000";  // a bridge that is no PCIe one: NVSwitch

struct Gpu {
  std::string bus_id, host;
  pugi::xml_node node;
  std::optional<std::string> pcie_switch;  // the outermost above it
};
struct Port {
  std::optional<std::string> pcie_switch;
  double megabits = 0.0;
};

struct Walk {
  std::vector<Gpu> gpus;
  std::vector<Port> ports;

  // `above` is the outermost PCIe bridge on the way down, if there is one besides the device's own.
  void descend(const pugi::xml_node& node, const std::string& host,
               const std::optional<std::string>& above) {
    for (const pugi::xml_node& child : node.children()) {
      const std::string tag = child.name();
      if (tag == "pci") {
        const bool bridge = child.child("pci") || (child.child("gpu") && child.child("nic"));
        const std::string bus = child.attribute("busid").value();
        descend(child, host, above ? above : bridge ? std::optional(bus) : std::nullopt);
      } else if (tag == "gpu") {
        gpus.push_back({node.attribute("busid").value(), host, child, above});
      } else if (tag == "nic") {
        for (const pugi::xml_node& net : child.children("net")) {
          ports.push_back({above, net.attribute("speed").as_double()});
        }
      }
    }
  }
};

// Raw rate of a PCIe link: "32.0 GT/s PCIe" times its lanes, less the 128b/130b code (8b/10b below
// 8 GT/s).
std::optional<Bandwidth> pcie_rate(const pugi::xml_node& pci) {
  const double transfers = pci.attribute("link_speed").as_double();
  const double lanes = pci.attribute("link_width").as_double();
  if (transfers <= 0.0 || lanes <= 0.0) return std::nullopt;
  const double code = transfers < 8.0 ? 0.8 : 128.0 / 130.0;
  return Bandwidth{transfers * 1e9 * code / 8.0 * lanes};
}

pugi::xml_document parse(const std::string& text, const std::string& name) {
  pugi::xml_document document;
  const pugi::xml_parse_result result = document.load_buffer(text.data(), text.size());
  if (!result) {
    throw InputError(fmt::format("{}: byte {}", name, result.offset),
                     fmt::format("text that is not XML ({})", result.description()),
                     "NCCL's topology");
  }
  return document;
}

// NVLinks between the GPUs, or of each GPU to switches.
void read_links(const std::vector<Gpu>& gpus, const std::string& name, Machine& machine) {
  std::map<std::string, std::size_t> index;
  for (std::size_t g = 0; g < gpus.size(); ++g) index[gpus[g].bus_id] = g;
  machine.links.assign(gpus.size(), std::vector<std::uint32_t>(gpus.size(), 0));
  std::set<std::uint32_t> to_switches;
  for (std::size_t g = 0; g < gpus.size(); ++g) {
    std::uint32_t switched = 0;
    for (const pugi::xml_node& link : gpus[g].node.children("nvlink")) {
      const auto count = static_cast<std::uint32_t>(link.attribute("count").as_uint());
      const std::string target = link.attribute("target").value();
      if (std::string_view(link.attribute("tclass").value()).starts_with(kSwitchClass)) {
        switched += count;
      } else if (const auto found = index.find(target); found != index.end()) {
        machine.links[g][found->second] += count;
      } else {
        throw InputError(name, fmt::format("an NVLink of GPU {} to {}", gpus[g].bus_id, target),
                         "a GPU of the file, or a switch (tclass 0x068000)");
      }
    }
    to_switches.insert(switched);
  }
  if (to_switches.size() > 1) {
    throw InputError(name,
                     fmt::format("{} NVLinks to switches of one GPU and {} of another",
                                 *to_switches.begin(), *to_switches.rbegin()),
                     "as many of all");
  }
  if (*to_switches.begin() > 0) machine.switch_links = *to_switches.begin();
}

}  // namespace

bool is_nccl_xml(const std::string& text) {
  return text.find("<system") != std::string::npos && text.find("<cpu") != std::string::npos;
}

ImportedTopology import_nccl_xml(const std::string& text, const std::string& name,
                                 const Cluster& base, const TopologyImportOptions& options) {
  const pugi::xml_document document = parse(text, name);
  const pugi::xml_node system = document.child("system");
  if (std::string_view(system.attribute("version").value()) != "1") {
    throw InputError(name, fmt::format("version \"{}\"", system.attribute("version").value()),
                     "version 1 of NCCL's topology");
  }
  Walk walk;
  std::set<std::string> hosts;
  for (const pugi::xml_node& cpu : system.children("cpu")) {
    const std::string host = cpu.attribute("host_hash").value();
    const std::size_t before = walk.gpus.size();
    walk.descend(cpu, host, std::nullopt);
    if (walk.gpus.size() > before) hosts.insert(host);
  }
  if (walk.gpus.empty()) {
    throw InputError(name, "no <gpu>",
                     "at least one under its <pci> (dump the topology with "
                     "NCCL_TOPO_DUMP_FILE, not NCCL_GRAPH_DUMP_FILE)");
  }
  Machine machine;
  machine.num_nodes = static_cast<std::uint32_t>(hosts.size());
  if (walk.gpus.size() % hosts.size() != 0) {
    throw InputError(
        name,
        fmt::format("{} on {}", counted(walk.gpus.size(), "GPU"), counted(hosts.size(), "host")),
        "as many on every host");
  }
  read_links(walk.gpus, name, machine);
  machine.num_gpus = static_cast<std::uint32_t>(walk.gpus.size() / hosts.size());
  if (hosts.size() > 1 && !machine.switch_links) {
    throw InputError(name,
                     fmt::format("{} without NVLinks to a switch", counted(hosts.size(), "host")),
                     "one host, or those of one NVLink domain");
  }
  std::map<std::string, std::uint32_t> groups;
  std::set<std::uint32_t> sms;
  std::uint32_t next_group = 0;
  for (const Gpu& gpu : walk.gpus) {
    const auto rate = pcie_rate(gpu.node.parent());
    if (rate && (!machine.pcie || *rate < *machine.pcie)) machine.pcie = rate;
    if (gpu.node.attribute("sm")) sms.insert(gpu.node.attribute("sm").as_uint());
    if (!gpu.pcie_switch) {
      machine.pcie_group.push_back(next_group++);
      continue;
    }
    const auto [group, is_new] = groups.try_emplace(*gpu.pcie_switch, next_group);
    if (is_new) ++next_group;
    machine.pcie_group.push_back(group->second);
  }
  machine.pcie_group.resize(machine.num_gpus);
  if (sms.size() > 1) throw InputError(name, "GPUs of several kinds (sm)", "one kind");
  if (!sms.empty()) machine.sm = *sms.begin();
  // Ports behind a GPU's PCIe switch are its network; others may serve storage.
  std::vector<double> near;
  std::vector<double> all;
  for (const Port& port : walk.ports) {
    all.push_back(port.megabits);
    if (port.pcie_switch && groups.contains(*port.pcie_switch)) near.push_back(port.megabits);
  }
  const std::vector<double>& ports = near.empty() ? all : near;
  machine.num_nics = static_cast<std::uint32_t>(ports.size() / hosts.size());
  if (!ports.empty() && ports.front() > 0.0 &&
      std::all_of(ports.begin(), ports.end(), [&](double s) { return s == ports.front(); })) {
    machine.nic_bandwidth = Bandwidth{ports.front() * 1e6 / 8.0};
  }
  return describe(machine, name, base, options);
}

}  // namespace coterie
