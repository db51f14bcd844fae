// What SimGrid itself answers to three simple questions, without anything of Coterie in between:
// 1 MB over two links of 1 GB/s and 1 us. They say what the engine builds on (CM02), and why it does
// not use SimGrid's default model: LV08 takes 97 percent of the bandwidth and 13 times the latency,
// which were fitted to TCP.

#include <gtest/gtest.h>
#include <simgrid/s4u.hpp>

#include <cstring>

#include "core/child_process.hpp"

namespace coterie {
namespace {

namespace sg = simgrid::s4u;

// Every host behind a link of its own; hosts 0 to num_senders - 1 send to the last one.
double naive_makespan_s(std::string model, std::size_t num_senders) {
  std::vector<char*> argv{const_cast<char*>("simgrid_facts")};
  int argc = 1;
  sg::Engine engine(&argc, argv.data());
  sg::Engine::set_config("network/model", model);
  sg::Engine::set_config("network/crosstraffic", false);  // else acknowledgements cost 5 percent
  sg::NetZone* zone = sg::create_full_zone("zone");
  std::vector<sg::Host*> hosts;
  std::vector<sg::Link*> links;
  for (std::size_t i = 0; i <= num_senders; ++i) {
    hosts.push_back(zone->create_host("host " + std::to_string(i), 1e9)->seal());
    links.push_back(zone->create_link("link " + std::to_string(i), 1e9)->set_latency(1e-6)->seal());
  }
  for (std::size_t i = 0; i < num_senders; ++i) {
    const std::vector<sg::LinkInRoute> route{sg::LinkInRoute(links[i]),
                                             sg::LinkInRoute(links.back())};
    zone->add_route(hosts[i]->get_netpoint(), hosts.back()->get_netpoint(), nullptr, nullptr, route,
                    true);
  }
  zone->seal();
  for (std::size_t i = 0; i < num_senders; ++i) {
    sg::Actor::create("sender", hosts[i],
                      [&hosts, i] { sg::Comm::sendto(hosts[i], hosts.back(), 1'000'000); });
  }
  engine.run();
  return sg::Engine::get_clock();
}

// In a process of its own, as SimGrid allows one simulation per process.
double simgrid_s(const std::string& model, std::size_t num_senders) {
  const std::string bytes = run_in_child("simgrid", 60.0, [&] {
    const double seconds = naive_makespan_s(model, num_senders);
    return std::string(reinterpret_cast<const char*>(&seconds), sizeof seconds);
  });
  double seconds = 0.0;
  std::memcpy(&seconds, bytes.data(), sizeof seconds);
  return seconds;
}

TEST(SimGridFacts, Cm02AddsLatencyAndSizeOverBandwidth) {
  EXPECT_NEAR(simgrid_s("CM02", 1), 1.002000e-3, 1e-9);
}

TEST(SimGridFacts, Cm02SharesTheReceiversLink) {
  EXPECT_NEAR(simgrid_s("CM02", 2), 2.002000e-3, 1e-9);
}

// 13.01 * 2 us + 1 MB / (0.97 * 1 GB/s) = 26.02 us + 1030.93 us.
TEST(SimGridFacts, Lv08AppliesFactorsOfTcp) {
  EXPECT_NEAR(simgrid_s("LV08", 1), 1.056948e-3, 1e-9);
}

}  // namespace
}  // namespace coterie
