// Clusters from what machines and SimGrid say. The texts are written as those programs write them:
//   nvidia-smi topo -m   its matrix and legend, cells between tabs, the first line underlined
//   NCCL's topology      NVIDIA/nccl 081eafa, src/graph/xml.cc (its parser rules name the tags)
//   SimGrid's platform   simgrid/simgrid, docs/source/XML_reference.rst
// Expected bandwidths: NVLinks times their data sheet's rate, ports' speeds, sums by hand.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "core/yaml.hpp"
#include "topologies/import/importer.hpp"

namespace coterie {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

ImportedTopology import(const std::string& text, const std::string& base,
                        std::optional<std::uint32_t> num_nodes = std::nullopt) {
  return import_topology_text(text, "F", {base, num_nodes});
}

std::string refusal(const std::string& text, const std::string& base,
                    std::optional<std::uint32_t> num_nodes = std::nullopt) {
  try {
    (void)import(text, base, num_nodes);
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

// A matrix of `gpus` GPUs and `nics` NICs; NIC i is next to GPU i, groups of `group` GPUs share a
// PCIe switch.
std::string matrix(int gpus, int nics, const std::string& between, int group = 1) {
  std::string text = "\t";
  for (int g = 0; g < gpus; ++g) text += fmt::format("\x1b[4mGPU{}\t", g);
  for (int n = 0; n < nics; ++n) text += fmt::format("NIC{}\t", n);
  text += "CPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n";
  const auto cell = [&](int a, int b) -> std::string {
    if (a == b) return " X ";
    if (a < gpus && b < gpus) return a / group == b / group && group > 1 ? "PIX" : between;
    if (a >= gpus && b >= gpus) return "NODE";
    return std::min(a, b) == std::max(a, b) - gpus ? "PIX" : "SYS";
  };
  for (int a = 0; a < gpus + nics; ++a) {
    text += a < gpus ? fmt::format("GPU{}\t", a) : fmt::format("NIC{}\t", a - gpus);
    for (int b = 0; b < gpus + nics; ++b) text += cell(a, b) + "\t";
    if (a < gpus) text += "0-55\t0\t\tN/A";
    text += "\n";
  }
  return text +
         "\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n";
}

TEST(TopologyImport, ReadsTheMatrixOfNvidiaSmi) {
  const ImportedTopology node = import(matrix(8, 8, "NV18"), "h100_node");
  EXPECT_EQ(node.cluster.gpus_per_node, 8U);
  EXPECT_EQ(node.cluster.num_nodes, 1U);
  EXPECT_EQ(node.cluster.scale_up->kind, ScaleUpKind::kNvlink);
  EXPECT_DOUBLE_EQ(node.cluster.scale_up->bandwidth.value, 450e9);
  EXPECT_FALSE(node.cluster.nic.has_value());
  // Nodes of the kind, with a fabric from the base; 16 ports are two per GPU.
  const ImportedTopology cluster = import(matrix(8, 8, "NV18"), "h100_rail_optimised", 4);
  EXPECT_EQ(cluster.cluster.num_nodes, 4U);
  EXPECT_EQ(cluster.cluster.nic->per_gpu, 1U);
  EXPECT_THAT(cluster.not_known, Contains(HasSubstr("a port's rate")));
  // An H800's 8 links of 25 GB/s, with the base's caps scaled: 310 * 200 / 450.
  const ImportedTopology cut = import(matrix(8, 0, "NV8"), "h100_node");
  EXPECT_DOUBLE_EQ(cut.cluster.scale_up->bandwidth.value, 200e9);
  EXPECT_NEAR(cut.cluster.scale_up->injection.rank_bandwidth->value, 137.8e9, 0.1e9);
}

TEST(TopologyImport, TellsDirectLinksFromASwitchByTheBase) {
  // 4 A100 with 4 links to each other are 12 links, the 300 GB/s of the base's port; one transfer
  // gets 100 GB/s.
  const Cluster mesh = import(matrix(4, 0, "NV4"), "a100_node").cluster;
  EXPECT_DOUBLE_EQ(mesh.scale_up->bandwidth.value, 300e9);
  for (const MessageSegment& segment :
       std::get<NcclParameters>(mesh.transports.at(0)).scale_up->segments) {
    EXPECT_DOUBLE_EQ(segment.bandwidth->value, 100e9);
  }
  // 2 GPUs on a bridge: as through a switch.
  EXPECT_DOUBLE_EQ(import(matrix(2, 0, "NV12"), "a100_node").cluster.scale_up->bandwidth.value,
                   300e9);
  // 4 links of 25 GB/s or 12: neither is the 450 GB/s of an H100.
  EXPECT_THAT(refusal(matrix(4, 0, "NV4"), "h100_node"),
              HasSubstr("found NV4 between every pair of 4 GPUs, which may be 12 direct links of "
                        "each GPU or 4 to a switch"));
}

TEST(TopologyImport, ReadsPcieBoxes) {
  const ImportedTopology box = import(matrix(8, 0, "SYS", 4), "l40s_pcie_8");
  EXPECT_EQ(box.cluster.scale_up->kind, ScaleUpKind::kPcie);
  EXPECT_EQ(box.cluster.scale_up->shared_group, 4U);
  EXPECT_THAT(box.not_known, Contains(HasSubstr("what the host bridge carries: 72 GB/s")));
  EXPECT_EQ(import(matrix(4, 0, "NODE"), "l40s_pcie_8").cluster.scale_up->shared_group, 1U);
}

TEST(TopologyImport, RefusesMachinesThatTheModelDoesNotHave) {
  std::string unequal = matrix(4, 0, "NV4");
  const std::size_t at = unequal.find("NV4");
  unequal.replace(at, 3, "SYS");
  EXPECT_THAT(refusal(unequal, "a100_node"), HasSubstr("the same both ways"));
  unequal.replace(unequal.find("NV4", unequal.find("\nGPU1")), 3, "SYS");
  EXPECT_THAT(refusal(unequal, "a100_node"),
              HasSubstr("found 0 NVLinks between some GPUs and 4 between others"));
  EXPECT_THAT(refusal(matrix(8, 0, "NV18"), "l40s_pcie_8"),
              HasSubstr("found GPUs joined by NVLink, expected PCIe alone as in the base"));
  EXPECT_THAT(refusal(matrix(8, 0, "SYS"), "h100_node"),
              HasSubstr("found GPUs joined by PCIe alone, expected NVLink as in the base"));
  EXPECT_THAT(refusal(matrix(8, 0, "NV18"), "h100_node", 2),
              HasSubstr("found 2 nodes asked for, expected a base with NICs and a fabric"));
  EXPECT_THAT(refusal(matrix(8, 3, "NV18"), "h100_rail_optimised", 2),
              HasSubstr("found 3 network ports near 8 GPUs"));
  EXPECT_THAT(refusal(matrix(8, 0, "QPI"), "h100_node"), HasSubstr("found \"QPI\""));
  EXPECT_THAT(refusal(matrix(8, 0, "NV18"), ""), HasSubstr("expected --base"));
  std::string cut = matrix(4, 0, "NV18");
  cut.resize(cut.find("\nGPU3") + 1);
  EXPECT_THAT(refusal(cut, "h100_node"), HasSubstr("found no row of GPU3"));
}

// GPUs that share a PCIe switch with a port, two by two, and NVLinks to a switch.
std::string nccl_xml(int gpus, int sm, int links, const std::string& host = "") {
  std::string text;
  for (int g = 0; g < gpus; g += 2) {
    text += fmt::format("  <cpu {}numaid=\"{}\" affinity=\"ffff\" arch=\"x86_64\">\n", host, g / 4);
    text += fmt::format(
        "    <pci busid=\"0000:{:02x}:00.0\" class=\"0x060400\" link_speed=\"32.0 GT/s PCIe\" "
        "link_width=\"16\">\n",
        g + 1);
    for (int i = g; i < g + 2; ++i) {
      text += fmt::format(
          "      <pci busid=\"0000:{:02x}:00.0\" class=\"0x030200\" link_speed=\"32.0 GT/s PCIe\" "
          "link_width=\"16\">\n        <gpu dev=\"{}\" sm=\"{}\" rank=\"{}\" gdr=\"1\">\n",
          0x40 + i, i, sm, i);
      if (links > 0) {
        text += fmt::format(
            "          <nvlink target=\"fffffff:ffff:ff\" count=\"{}\" tclass=\"0x068000\"/>\n",
            links);
      }
      text += "        </gpu>\n      </pci>\n";
      text += fmt::format(
          "      <pci busid=\"0000:{:02x}:00.0\" class=\"0x020700\" link_speed=\"32.0 GT/s PCIe\" "
          "link_width=\"16\">\n        <nic>\n          <net name=\"mlx5_{}\" dev=\"{}\" "
          "latency=\"0\" speed=\"400000\" port=\"1\" guid=\"0x1\" gdr=\"1\"/>\n        </nic>\n"
          "      </pci>\n",
          0x80 + i, i, i);
    }
    text += "    </pci>\n  </cpu>\n";
  }
  return text;
}
std::string system(const std::string& cpus) {
  return "<system version=\"1\">\n" + cpus + "</system>\n";
}

TEST(TopologyImport, ReadsNcclsTopology) {
  const ImportedTopology cluster = import(system(nccl_xml(8, 90, 18)), "h100_rail_optimised", 2);
  EXPECT_EQ(cluster.cluster.gpus_per_node, 8U);
  EXPECT_DOUBLE_EQ(cluster.cluster.scale_up->bandwidth.value, 450e9);
  EXPECT_EQ(cluster.cluster.nic->per_gpu, 1U);
  EXPECT_DOUBLE_EQ(cluster.cluster.nic->bandwidth.value, 50e9);  // 400 Gbit/s
  // Without NVLink: PCIe 5.0 x16 carries 32 * 128/130 / 8 * 16 = 63 GB/s, more than the base.
  const ImportedTopology box = import(system(nccl_xml(8, 89, 0)), "l40s_pcie_8");
  EXPECT_EQ(box.cluster.scale_up->shared_group, 2U);
  EXPECT_DOUBLE_EQ(box.cluster.scale_up->bandwidth.value, 25e9);
  EXPECT_THAT(refusal(system(nccl_xml(8, 90, 18)), "b200_node"),
              HasSubstr("found GPUs of compute capability 90, expected 100 as the B200 SXM"));
  EXPECT_THAT(refusal("<system version=\"2\">\n<cpu/></system>", "h100_node"),
              HasSubstr("found version \"2\", expected version 1"));
  EXPECT_THAT(refusal("<system version=\"1\">\n<cpu></system>", "h100_node"),
              HasSubstr("found text that is not XML"));
  EXPECT_THAT(refusal("<system version=\"1\">\n<cpu/></system>", "h100_node"),
              HasSubstr("found no <gpu>"));
}

TEST(TopologyImport, HostsOfOneNvlinkDomainAreItsNodes) {
  std::string cpus;
  for (int host = 0; host < 3; ++host) {
    cpus += nccl_xml(4, 100, 18, fmt::format("host_hash=\"0x{}\" ", host));
  }
  const Cluster rack = import(system(cpus), "gb200_nvl72").cluster;
  EXPECT_EQ(rack.num_nodes, 3U);
  EXPECT_EQ(rack.gpus_per_node, 4U);
  EXPECT_EQ(rack.scale_up->nodes_per_domain, 3U);
}

TEST(TopologyImport, OneVisibleGpuIsNamed) {
  const ImportedTopology one =
      import(system("<cpu numaid=\"0\"><pci busid=\"0000:0f:00.0\" link_speed=\"32.0 GT/s PCIe\" "
                    "link_width=\"16\"><gpu dev=\"0\" sm=\"90\"><nvlink target=\"0000:05:00.0\" "
                    "count=\"18\" tclass=\"0x068000\"/></gpu></pci></cpu>"),
             "h100_node");
  EXPECT_EQ(one.cluster.gpus_per_node, 1U);
  EXPECT_THAT(one.not_known, Contains(HasSubstr("other GPUs of the node")));
}

std::string platform(const std::string& content, const std::string& routing = "Full") {
  return "<?xml version='1.0'?>\n<!DOCTYPE platform SYSTEM "
         "\"https://simgrid.org/simgrid.dtd\">\n<platform version=\"4.1\">\n  <zone id=\"world\" "
         "routing=\"" +
         routing + "\">\n" + content + "  </zone>\n</platform>\n";
}
std::string cluster_tag(const std::string& more, const std::string& radical = "0-15") {
  return "<cluster id=\"c\" prefix=\"n-\" radical=\"" + radical +
         "\" suffix=\"\" speed=\"1Gf\" bw=\"125MBps\" lat=\"50us\" " + more + "/>\n";
}

TEST(TopologyImport, ReadsSimGridsClusters) {
  const Cluster star = import(platform(cluster_tag("", "0-7,9,11-13")), "h100_node").cluster;
  EXPECT_EQ(star.num_nodes, 12U);
  EXPECT_EQ(star.gpus_per_node, 1U);
  EXPECT_TRUE(std::holds_alternative<StarFabric>(star.fabric->kind));
  EXPECT_DOUBLE_EQ(star.nic->bandwidth.value, 125e6);
  EXPECT_DOUBLE_EQ(star.nic->latency.value, 50e-6);
  EXPECT_EQ(star.nic->injection.sends_in_flight, kUnlimitedSends);

  // A route is two links of 50 us and the backbone of 500.
  const Cluster shared =
      import(platform(cluster_tag("bb_bw=\"2.25GBps\" bb_lat=\"500us\"")), "h100_node").cluster;
  EXPECT_EQ(shared.gpus_per_node, 16U);
  EXPECT_DOUBLE_EQ(shared.scale_up->shared_bandwidth->value, 2.25e9);
  EXPECT_DOUBLE_EQ(2.0 * shared.scale_up->latency.value, 600e-6);

  // 4 leaves of 4 hosts; 2 spines with 2 cables each: 4 ports face 4 cables.
  const Cluster tree =
      import(platform(cluster_tag("topology=\"FAT_TREE\" topo_parameters=\"2;4,4;1,2;1,2\"")),
             "h100_node")
          .cluster;
  const auto& leaf_spine = std::get<LeafSpineFabric>(tree.fabric->kind);
  EXPECT_EQ(leaf_spine.ports_per_leaf, 4U);
  EXPECT_EQ(leaf_spine.num_spines, 2U);
  EXPECT_DOUBLE_EQ(leaf_spine.oversubscription, 1.0);

  const Cluster torus = import(platform(cluster_tag("topology=\"TORUS\" topo_parameters=\"4,2,2\" "
                                                    "limiter_link=\"1GBps\"")),
                               "h100_node")
                            .cluster;
  EXPECT_EQ(std::get<TorusFabric>(torus.fabric->kind).dimensions,
            (std::vector<std::uint32_t>{4, 2, 2}));
  EXPECT_DOUBLE_EQ(torus.nic->injection.rank_total_bandwidth->value, 1e9);
}

// Hosts a and b on router r, c on router s, and a link of 1 Gbit/s between the routers.
std::string graph(const std::string& last_route = "") {
  return "<host id=\"a\" speed=\"1Gf\"/><host id=\"b\" speed=\"1Gf\"/><host id=\"c\" "
         "speed=\"1Gf\"/><router id=\"r\"/><router id=\"s\"/>\n"
         "<link id=\"la\" bandwidth=\"125MBps\" latency=\"50us\"/>"
         "<link id=\"lb\" bandwidth=\"125MBps\" latency=\"50us\"/>"
         "<link id=\"lc\" bandwidth=\"125MBps\" latency=\"50us\"/>"
         "<link id=\"up\" bandwidth=\"1Gbps\" latency=\"1ms\"/>\n"
         "<route src=\"a\" dst=\"r\"><link_ctn id=\"la\"/></route>"
         "<route src=\"b\" dst=\"r\"><link_ctn id=\"lb\"/></route>"
         "<route src=\"s\" dst=\"c\"><link_ctn id=\"lc\"/></route>"
         "<route src=\"r\" dst=\"s\"><link_ctn id=\"up\"/></route>" +
         last_route + "\n";
}

TEST(TopologyImport, ReadsSimGridsGraphs) {
  const Cluster cluster = import(platform(graph(), "Floyd"), "h100_node").cluster;
  const auto& fabric = std::get<CustomFabric>(cluster.fabric->kind);
  EXPECT_EQ(fabric.attach, (std::vector<std::uint32_t>{0, 0, 1}));
  ASSERT_EQ(fabric.cables.size(), 1U);
  EXPECT_DOUBLE_EQ(fabric.cables[0].bandwidth.value, 125e6);
  EXPECT_DOUBLE_EQ(fabric.cables[0].latency.value, 1e-3);
  EXPECT_THAT(refusal(platform(graph(), "Full"), "h100_node"), HasSubstr("found routing Full"));
  EXPECT_THAT(
      refusal(platform(graph("<route src=\"a\" dst=\"s\"><link_ctn id=\"la\"/></route>"), "Floyd"),
              "h100_node"),
      HasSubstr("found a second link of the host"));
  EXPECT_THAT(refusal(platform(graph("<route src=\"r\" dst=\"s\"><link_ctn id=\"la\"/><link_ctn "
                                     "id=\"lb\"/></route>"),
                               "Floyd"),
                      "h100_node"),
              HasSubstr("found several links, expected one"));
}

TEST(TopologyImport, RefusesPlatformsThatTheModelDoesNotHave) {
  const auto refused = [](const std::string& more) {
    return refusal(platform(cluster_tag(more)), "h100_node");
  };
  EXPECT_THAT(refused("topology=\"DRAGONFLY\" topo_parameters=\"3,4;4,3;5,1;2\""),
              HasSubstr("found topology DRAGONFLY"));
  EXPECT_THAT(refused("topology=\"FAT_TREE\" topo_parameters=\"3;2,2,4;1,1,1;1,1,1\""),
              HasSubstr("found a fat tree 3;2,2,4;1,1,1;1,1,1, expected two levels"));
  EXPECT_THAT(refused("topology=\"TORUS\" topo_parameters=\"3,2\""), HasSubstr("dimensions"));
  EXPECT_THAT(refused("sharing_policy=\"SHARED\""), HasSubstr("sharing_policy SHARED"));
  EXPECT_THAT(refused("mystery=\"1\""), HasSubstr("found attribute mystery"));
  EXPECT_THAT(refusal(platform(cluster_tag("") + cluster_tag("")), "h100_node"),
              HasSubstr("found <cluster> beside others"));
  EXPECT_THAT(refusal("<platform version=\"3\"/>", "h100_node"),
              HasSubstr("found platform version \"3\""));
}

TEST(TopologyImport, NamesOtherSimulatorsDescriptions) {
  EXPECT_THAT(refusal("topology: [ Ring ]\nnpus_count: [ 8 ]\n", "h100_node"),
              HasSubstr("found a network of ASTRA-sim"));
  EXPECT_THAT(refusal("18 8 2 0 400Gbps H100\n16 17\n", "h100_node"),
              HasSubstr("found a topology of SimAI"));
  EXPECT_THAT(refusal("hello\n", "h100_node"),
              HasSubstr("found none of the formats that are read"));
}

// What is written is a topology file like any other.
TEST(TopologyImport, WhatIsWrittenReadsBack) {
  Cluster cluster = import(system(nccl_xml(8, 90, 18)), "h100_rail_optimised", 2).cluster;
  cluster.name = "mine";
  const std::string text = to_yaml(cluster);
  EXPECT_EQ(to_yaml(read_cluster(parse_yaml(text, "mine.yaml"))), text);
}

}  // namespace
}  // namespace coterie
