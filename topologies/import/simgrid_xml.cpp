// SimGrid's platform files (simgrid.dtd, version 4 and 4.1). Read are
//   <cluster> without a topology      star, or a shared link where it has a backbone
//   <cluster topology="TORUS">        torus
//   <cluster topology="FAT_TREE">     leaf_spine, of two levels with one uplink per host
//   hosts and routers whose <route>s name one link each (routing Floyd, Dijkstra)   custom fabric
// Every host is a rank: a node of one GPU, which the base describes. Messages have no costs of
// their own there, and no limit on how many are in flight.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <pugixml.hpp>
#include <set>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "topologies/import/formats.hpp"

namespace coterie {
namespace {

// "125MBps", "1Gbps", "10GiBps": SimGrid's bandwidths.
Bandwidth bandwidth_of(const std::string& text, const std::string& where) {
  static const std::map<std::string, double> kUnits{
      {"Bps", 1.0},      {"kBps", 1e3},        {"KBps", 1e3},           {"MBps", 1e6},
      {"GBps", 1e9},     {"TBps", 1e12},       {"bps", 0.125},          {"kbps", 125.0},
      {"Kbps", 125.0},   {"Mbps", 125e3},      {"Gbps", 125e6},         {"Tbps", 125e9},
      {"KiBps", 1024.0}, {"MiBps", 1048576.0}, {"GiBps", 1073741824.0}, {"", 1.0}};
  double value = 0.0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  const auto unit = kUnits.find(std::string(end, text.data() + text.size()));
  if (status != std::errc{} || unit == kUnits.end() || value <= 0.0) {
    throw InputError(where, fmt::format("\"{}\"", text), "a bandwidth such as 125MBps or 1Gbps");
  }
  return {value * unit->second};
}

// "50us", "1ms": SimGrid's times; seconds without a unit.
Seconds seconds_of(const std::string& text, const std::string& where) {
  static const std::map<std::string, double> kUnits{{"ps", 1e-12}, {"ns", 1e-9}, {"us", 1e-6},
                                                    {"ms", 1e-3},  {"s", 1.0},   {"", 1.0}};
  double value = 0.0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  const auto unit = kUnits.find(std::string(end, text.data() + text.size()));
  if (status != std::errc{} || unit == kUnits.end() || value < 0.0) {
    throw InputError(where, fmt::format("\"{}\"", text), "a time such as 50us");
  }
  return {value * unit->second};
}

std::string attribute(const pugi::xml_node& node, const char* key, const std::string& name) {
  const pugi::xml_attribute found = node.attribute(key);
  if (!found) {
    throw InputError(
        fmt::format("{}: <{} id=\"{}\">", name, node.name(), node.attribute("id").value()),
        fmt::format("no {}", key), "it to be given");
  }
  return found.value();
}

std::vector<std::uint32_t> numbers(const std::string& text, char separator,
                                   const std::string& where) {
  std::vector<std::uint32_t> out;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(separator, begin), text.size());
    std::uint32_t value = 0;
    const auto [last, status] = std::from_chars(text.data() + begin, text.data() + end, value);
    if (status != std::errc{} || last != text.data() + end) {
      throw InputError(where, fmt::format("\"{}\"", text), "whole numbers");
    }
    out.push_back(value);
    begin = end + 1;
  }
  return out;
}

// Hosts of a radical such as "0-15,20".
std::uint32_t count_hosts(const std::string& radical, const std::string& where) {
  std::uint64_t count = 0;
  for (std::size_t begin = 0; begin <= radical.size();) {
    const std::size_t end = std::min(radical.find(',', begin), radical.size());
    const auto range = numbers(radical.substr(begin, end - begin), '-', where);
    if (range.size() > 2 || (range.size() == 2 && range[1] < range[0])) {
      throw InputError(where, fmt::format("radical \"{}\"", radical), "numbers and ranges");
    }
    count += range.size() == 2 ? range[1] - range[0] + std::uint64_t{1} : 1;
    begin = end + 1;
  }
  if (count < 2 || count > (1U << 20)) {
    throw InputError(where, counted(count, "host"), "2 to 1048576");
  }
  return static_cast<std::uint32_t>(count);
}

Injection plain_injection() {
  Injection injection;
  injection.sends_in_flight = kUnlimitedSends;
  return injection;
}

Cluster hosts_as_nodes(const Cluster& base, std::uint32_t num_hosts, Bandwidth bandwidth,
                       Seconds latency) {
  Cluster cluster = base;
  cluster.num_nodes = num_hosts;
  cluster.gpus_per_node = 1;
  cluster.scale_up.reset();
  cluster.transports.clear();
  cluster.nic.emplace();
  cluster.nic->bandwidth = bandwidth;
  cluster.nic->latency = latency;
  cluster.nic->pxn = false;
  cluster.nic->injection = plain_injection();
  cluster.fabric.emplace();
  return cluster;
}

void refuse_unknown(const pugi::xml_node& node, const std::set<std::string>& known,
                    const std::string& where) {
  for (const pugi::xml_attribute& attribute : node.attributes()) {
    if (!known.contains(attribute.name())) {
      throw InputError(where, fmt::format("attribute {}", attribute.name()),
                       "one that the import knows, as it may change the network");
    }
  }
}

struct Flat {
  std::uint32_t num_hosts = 0;
  Bandwidth bandwidth;
  Seconds latency;
};

// All hosts of a cluster behind one link.
void behind_backbone(const pugi::xml_node& node, const Flat& flat, const std::string& where,
                     ImportedTopology& out) {
  Cluster& cluster = out.cluster;
  if (flat.num_hosts > 1024) {
    throw InputError(where, fmt::format("a backbone of {}", counted(flat.num_hosts, "host")),
                     "at most 1024");
  }
  const Bandwidth backbone = bandwidth_of(node.attribute("bb_bw").value(), where + ": bb_bw");
  const Seconds latency = seconds_of(node.attribute("bb_lat").as_string("0"), where + ": bb_lat");
  cluster.num_nodes = 1;
  cluster.gpus_per_node = flat.num_hosts;
  cluster.nic.reset();
  cluster.fabric.reset();
  cluster.scale_up.emplace();
  cluster.scale_up->kind = ScaleUpKind::kSocket;
  cluster.scale_up->bandwidth = flat.bandwidth;
  // The backbone's latency falls on the two links of a route.
  cluster.scale_up->latency = Seconds{flat.latency.value + latency.value / 2.0};
  cluster.scale_up->shared_bandwidth = backbone;
  cluster.scale_up->injection = plain_injection();
  out.read.push_back(
      fmt::format("a backbone of {} that all traffic crosses", format_bandwidth(backbone)));
}

void fat_tree(const std::string& parameters, const Flat& flat, const std::string& where,
              ImportedTopology& out) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= parameters.size();) {
    const std::size_t end = std::min(parameters.find(';', begin), parameters.size());
    parts.push_back(parameters.substr(begin, end - begin));
    begin = end + 1;
  }
  if (parts.size() != 4) {
    throw InputError(where, fmt::format("topo_parameters \"{}\"", parameters),
                     "levels;children;parents;links");
  }
  const auto down = numbers(parts[1], ',', where);
  const auto up = numbers(parts[2], ',', where);
  const auto links = numbers(parts[3], ',', where);
  if (parts[0] != "2" || down.size() != 2 || up.size() != 2 || links.size() != 2 || up[0] != 1 ||
      links[0] != 1) {
    throw InputError(where, fmt::format("a fat tree {}", parameters),
                     "two levels with one uplink per host, which leaf_spine describes");
  }
  if (std::uint64_t{down[0]} * down[1] != flat.num_hosts) {
    throw InputError(where, counted(flat.num_hosts, "host"),
                     fmt::format("{} as topo_parameters has", std::uint64_t{down[0]} * down[1]));
  }
  LeafSpineFabric fabric;
  fabric.rail_optimised = false;
  fabric.ports_per_leaf = down[0];
  fabric.num_spines = up[1];
  fabric.oversubscription = static_cast<double>(down[0]) / (up[1] * links[1]);
  out.cluster.fabric->kind = fabric;
  out.cluster.fabric->hop_latency = flat.latency;
  out.read.push_back(
      fmt::format("{} leaves of {} under {} spines", down[1], counted(down[0], "host"), up[1]));
}

void read_cluster_tag(const pugi::xml_node& node, const std::string& name, ImportedTopology& out) {
  const std::string where =
      fmt::format("{}: <cluster id=\"{}\">", name, node.attribute("id").value());
  refuse_unknown(node,
                 {"id", "prefix", "suffix", "radical", "speed", "core", "bw", "lat",
                  "sharing_policy", "bb_bw", "bb_lat", "bb_sharing_policy", "router_id",
                  "limiter_link", "loopback_bw", "loopback_lat", "topology", "topo_parameters"},
                 where);
  const std::string sharing = node.attribute("sharing_policy").as_string("SPLITDUPLEX");
  if (sharing != "SPLITDUPLEX") {
    throw InputError(where, fmt::format("links of sharing_policy {}", sharing),
                     "SPLITDUPLEX: every link of the model carries both directions apart");
  }
  const Flat flat{count_hosts(attribute(node, "radical", name), where),
                  bandwidth_of(attribute(node, "bw", name), where + ": bw"),
                  seconds_of(attribute(node, "lat", name), where + ": lat")};
  out.read.push_back(fmt::format("{} on links of {} and {}", counted(flat.num_hosts, "host"),
                                 format_bandwidth(flat.bandwidth), format_seconds(flat.latency)));
  out.cluster = hosts_as_nodes(out.cluster, flat.num_hosts, flat.bandwidth, flat.latency);
  const std::string topology = node.attribute("topology").as_string("FLAT");
  const std::string parameters = node.attribute("topo_parameters").value();
  const bool backbone =
      node.attribute("bb_bw") &&
      std::string_view(node.attribute("bb_sharing_policy").as_string("SHARED")) != "FATPIPE";
  if (backbone && topology == "FLAT") {
    behind_backbone(node, flat, where, out);
  } else if (topology == "FLAT") {
    out.cluster.fabric->kind = StarFabric{};
  } else if (topology == "TORUS") {
    TorusFabric fabric;
    fabric.dimensions = numbers(parameters, ',', where);
    fabric.link_bandwidth = flat.bandwidth;
    out.cluster.fabric->kind = fabric;
    out.cluster.fabric->hop_latency = flat.latency;
    // Hosts of SimGrid's torus are its corners; ours hang on them by a link that must not matter.
    out.cluster.nic->bandwidth.value *= 2.0 * static_cast<double>(fabric.dimensions.size());
    out.cluster.nic->latency = Seconds{0.0};
    out.read.push_back(fmt::format("a torus of {}", fmt::join(fabric.dimensions, " x ")));
  } else if (topology == "FAT_TREE") {
    fat_tree(parameters, flat, where, out);
  } else {
    throw InputError(where, fmt::format("topology {}", topology),
                     "none, TORUS or FAT_TREE (SimGrid joins dragonflies otherwise than the model "
                     "does)");
  }
  if (node.attribute("limiter_link")) {
    const Bandwidth limit =
        bandwidth_of(node.attribute("limiter_link").value(), where + ": limiter_link");
    Injection& injection =
        out.cluster.nic ? out.cluster.nic->injection : out.cluster.scale_up->injection;
    injection.rank_total_bandwidth = limit;
    out.read.push_back(fmt::format("{} of a host both ways", format_bandwidth(limit)));
  }
}

// Hosts, routers, and routes of one link each.
void read_graph(const pugi::xml_node& zone, const std::string& name, ImportedTopology& out) {
  struct Link {
    Bandwidth bandwidth;
    Seconds latency;
  };
  std::map<std::string, Link> links;
  for (const pugi::xml_node& node : zone.children("link")) {
    const std::string id = attribute(node, "id", name);
    const std::string where = fmt::format("{}: <link id=\"{}\">", name, id);
    const std::string sharing = node.attribute("sharing_policy").as_string("SPLITDUPLEX");
    if (sharing != "SPLITDUPLEX") {
      throw InputError(where, fmt::format("sharing_policy {}", sharing), "SPLITDUPLEX");
    }
    links[id] = {bandwidth_of(attribute(node, "bandwidth", name), where),
                 seconds_of(node.attribute("latency").as_string("0"), where)};
  }
  std::map<std::string, std::uint32_t> hosts;
  std::map<std::string, std::uint32_t> routers;
  for (const pugi::xml_node& node : zone.children("host")) {
    hosts.emplace(attribute(node, "id", name), static_cast<std::uint32_t>(hosts.size()));
  }
  for (const pugi::xml_node& node : zone.children("router")) {
    routers.emplace(attribute(node, "id", name), static_cast<std::uint32_t>(routers.size()));
  }
  if (hosts.size() < 2 || routers.empty()) {
    throw InputError(
        name,
        fmt::format("{} and {}", counted(hosts.size(), "host"), counted(routers.size(), "router")),
        "hosts that hang on routers");
  }
  CustomFabric fabric;
  fabric.num_switches = static_cast<std::uint32_t>(routers.size());
  std::vector<std::optional<std::uint32_t>> attach(hosts.size());
  std::optional<Link> port;
  for (const pugi::xml_node& route : zone.children("route")) {
    const std::string src = attribute(route, "src", name);
    const std::string dst = attribute(route, "dst", name);
    const std::string where = fmt::format("{}: <route src=\"{}\" dst=\"{}\">", name, src, dst);
    const pugi::xml_node hop = route.child("link_ctn");
    if (!hop || hop.next_sibling("link_ctn")) {
      throw InputError(where, hop ? "several links" : "no link",
                       "one: a neighbour's (routing Floyd or Dijkstra)");
    }
    std::string id = attribute(hop, "id", name);
    for (const char* ending : {"_UP", "_DOWN"}) {
      if (id.ends_with(ending)) id.resize(id.size() - std::string_view(ending).size());
    }
    const auto link = links.find(id);
    if (link == links.end()) throw InputError(where, fmt::format("link {}", id), "one of the zone");
    const auto host = hosts.contains(src) ? hosts.find(src) : hosts.find(dst);
    const auto a = routers.find(src);
    const auto b = routers.find(dst);
    if (a != routers.end() && b != routers.end()) {
      fabric.cables.push_back({a->second, b->second, link->second.bandwidth, link->second.latency});
      continue;
    }
    const auto router = a != routers.end() ? a : b;
    if (host == hosts.end() || router == routers.end()) {
      throw InputError(where, "ends that are not a host and a router, or two routers",
                       "hosts that hang on routers");
    }
    if (attach[host->second]) throw InputError(where, "a second link of the host", "one");
    attach[host->second] = router->second;
    if (port &&
        (port->bandwidth != link->second.bandwidth || port->latency != link->second.latency)) {
      throw InputError(where, "a host's link unlike another's", "equal ones");
    }
    port = link->second;
  }
  for (const auto& [id, number] : hosts) {
    if (!attach[number]) {
      throw InputError(name, fmt::format("no route of host {} to a router", id), "one");
    }
  }
  for (const auto& router : attach) fabric.attach.push_back(*router);
  out.cluster = hosts_as_nodes(out.cluster, static_cast<std::uint32_t>(hosts.size()),
                               port->bandwidth, port->latency);
  out.read.push_back(fmt::format("{}, {} and {} between routers", counted(hosts.size(), "host"),
                                 counted(routers.size(), "router"),
                                 counted(fabric.cables.size(), "link")));
  out.cluster.fabric->kind = std::move(fabric);
}

}  // namespace

bool is_simgrid_xml(const std::string& text) {
  return text.find("<platform") != std::string::npos;
}

ImportedTopology import_simgrid_xml(const std::string& text, const std::string& name,
                                    const Cluster& base, const TopologyImportOptions& options) {
  if (options.num_nodes) {
    throw InputError("--nodes", "a number", "none for a platform, which has its hosts");
  }
  pugi::xml_document document;
  const pugi::xml_parse_result parsed =
      document.load_buffer(text.data(), text.size(), pugi::parse_default | pugi::parse_doctype);
  if (!parsed) {
    throw InputError(fmt::format("{}: byte {}", name, parsed.offset),
                     fmt::format("text that is not XML ({})", parsed.description()),
                     "SimGrid's platform");
  }
  const pugi::xml_node platform = document.child("platform");
  const std::string version = platform.attribute("version").value();
  if (version != "4" && version != "4.1") {
    throw InputError(name, fmt::format("platform version \"{}\"", version), "4 or 4.1");
  }
  // The one zone that has anything; an outer zone may wrap it.
  pugi::xml_node zone = platform;
  const auto elements = [](const pugi::xml_node& node) {
    std::vector<pugi::xml_node> out;
    for (const pugi::xml_node& child : node.children()) {
      const std::string_view tag = child.name();
      if (child.type() == pugi::node_element && tag != "config" && tag != "prop") {
        out.push_back(child);
      }
    }
    return out;
  };
  while (elements(zone).size() == 1 && std::string_view(elements(zone)[0].name()) == "zone") {
    zone = elements(zone)[0];
  }
  ImportedTopology out;
  out.cluster = base;
  out.cluster.relative_uncertainty.reset();
  out.cluster.provenance.clear();
  const auto parts = elements(zone);
  if (parts.size() == 1 && std::string_view(parts[0].name()) == "cluster") {
    read_cluster_tag(parts[0], name, out);
  } else {
    for (const pugi::xml_node& part : parts) {
      static const std::set<std::string_view> kGraph{"host", "router", "link", "route"};
      if (!kGraph.contains(part.name())) {
        throw InputError(name, fmt::format("<{}> beside others", part.name()),
                         "one <cluster>, or hosts, routers, links and routes of one zone");
      }
    }
    const std::string_view routing = zone.attribute("routing").value();
    if (routing != "Floyd" && routing != "Dijkstra" && routing != "DijkstraCache") {
      throw InputError(name, fmt::format("routing {}", routing),
                       "Floyd, Dijkstra or DijkstraCache, whose routes are a graph's edges");
    }
    read_graph(zone, name, out);
  }
  out.not_known.push_back(fmt::format(
      "GPUs: every host is a node of one {} as in the base, and the hosts' speed is of no use",
      base.gpu.name));
  out.not_known.emplace_back("costs of messages: none, as in SimGrid's model of links");
  out.cluster.description = "a SimGrid platform, imported";
  return out;
}

}  // namespace coterie
