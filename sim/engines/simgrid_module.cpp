// SimGrid behind simgrid_module.hpp. Uses SimGrid and the standard library, nothing of Coterie that
// would have to be linked.
//
// The tests pass with 3.32 (Debian 12); the names that 4 changed are asked for at compile time.

#include "sim/engines/simgrid_module.hpp"

#include <simgrid/kernel/Timer.hpp>
#include <simgrid/s4u.hpp>

// Not self-contained in 3.32: needs the headers above.
#include <simgrid/version.h>

#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace coterie {
namespace {

namespace sg = simgrid::s4u;

// SimGrid 4 renamed the settings and moved the constructors of zones and hosts into their parents.
#if SIMGRID_VERSION >= 40000
constexpr const char* kTimePrecision = "precision/timing";
constexpr const char* kAmountPrecision = "precision/work-amount";
#else
constexpr const char* kTimePrecision = "surf/precision";
constexpr const char* kAmountPrecision = "maxmin/precision";
#endif
// SimGrid's default of the latter: relative, where it shares bandwidth.
constexpr double kSharePrecision = 1e-5;

template <class EngineT>
auto* root_zone(EngineT& engine) {
  if constexpr (requires { engine.get_netzone_root()->add_netzone_full("gpus"); }) {
    return engine.get_netzone_root()->add_netzone_full("gpus");
  } else {
    return sg::create_full_zone("gpus");
  }
}
template <class ZoneT>
sg::Host* make_host(ZoneT* zone, const std::string& name) {
  if constexpr (requires { zone->add_host(name, 1.0); }) {
    return zone->add_host(name, 1.0);
  } else {
    return zone->create_host(name, 1.0);
  }
}
template <class ZoneT>
sg::Link* make_link(ZoneT* zone, const std::string& name, double bandwidth) {
  if constexpr (requires { zone->add_link(name, bandwidth); }) {
    return zone->add_link(name, bandwidth);
  } else {
    return zone->create_link(name, bandwidth);
  }
}
template <class ZoneT>
void make_route(ZoneT* zone, sg::Host* src, sg::Host* dst,
                const std::vector<sg::LinkInRoute>& links) {
  if constexpr (requires { zone->add_route(src, dst, links, false); }) {
    zone->add_route(src, dst, links, false);
  } else {
    zone->add_route(src->get_netpoint(), dst->get_netpoint(), nullptr, nullptr, links, false);
  }
}

// What an engine is made from must outlive it.
struct Arguments {
  Arguments() {
    for (std::string& text : texts) pointers.push_back(text.data());
    count = static_cast<int>(pointers.size());
  }
  std::vector<std::string> texts{"coterie", "--log=root.thresh:critical"};
  std::vector<char*> pointers;
  int count = 0;
};

class Simulation final : public SimGrid {
 public:
  explicit Simulation(const SimGridSettings& settings)
      : engine_(&arguments_.count, arguments_.pointers.data()) {
    sg::Engine::set_config("network/model", std::string("CM02"));
    sg::Engine::set_config("network/crosstraffic", false);
    sg::Engine::set_config("network/TCP-gamma", 1e30);
    if (settings.completion_bytes > 0.0) {
      sg::Engine::set_config("network/optim", std::string("Full"));
      // Under Full this time is used for nothing but the threshold, which is the product of both.
      sg::Engine::set_config(kAmountPrecision, kSharePrecision);
      sg::Engine::set_config(kTimePrecision, settings.completion_bytes / kSharePrecision);
    } else {
      sg::Engine::set_config(kTimePrecision, settings.precision_s);
    }
    zone_ = root_zone(engine_);
  }

  std::uint32_t add_host() override {
    hosts_.push_back(make_host(zone_, "host " + std::to_string(hosts_.size())));
    return static_cast<std::uint32_t>(hosts_.size() - 1);
  }
  std::uint32_t add_link(double bandwidth, bool shared) override {
    sg::Link* link = make_link(zone_, "link " + std::to_string(links_.size()), bandwidth);
    link->set_latency(0.0);
    if (!shared) link->set_sharing_policy(sg::Link::SharingPolicy::FATPIPE);
    link->seal();
    links_.push_back(link);
    return static_cast<std::uint32_t>(links_.size() - 1);
  }
  void add_route(std::uint32_t src, std::uint32_t dst,
                 std::span<const std::uint32_t> links) override {
    std::vector<sg::LinkInRoute> route;
    for (const std::uint32_t link : links) route.emplace_back(links_[link]);
    make_route(zone_, hosts_[src], hosts_[dst], route);
  }
  void seal() override { zone_->seal(); }

  void set_bandwidth(std::uint32_t link, double bandwidth) override {
    links_[link]->set_bandwidth(bandwidth);
  }
  void start(std::uint32_t src, std::uint32_t dst, std::uint64_t num_bytes,
             std::uint32_t id) override {
    sg::CommPtr comm = sg::Comm::sendto_init(hosts_[src], hosts_[dst]);
    comm->set_payload_size(num_bytes);
    id_of_.emplace(comm.get(), id);
    comm->start();
    // SimGrid touches a communication after its completion was reported; it must live on.
    comms_.push_back(std::move(comm));
  }
  void at(double time_s, std::function<void()> f) override {
    simgrid::kernel::timer::Timer::set(time_s, std::move(f));
  }
  [[nodiscard]] double now_s() const override { return sg::Engine::get_clock(); }
  void run(const std::function<void(std::uint32_t)>& on_completion) override {
    sg::Comm::on_completion_cb([this, &on_completion](const auto& activity) {
      const auto found = id_of_.find(&activity);
      if (found == id_of_.end()) return;
      const std::uint32_t id = found->second;
      id_of_.erase(found);
      on_completion(id);
    });
    engine_.run();
  }

 private:
  Arguments arguments_;
  sg::Engine engine_;
  sg::NetZone* zone_ = nullptr;
  std::vector<sg::Host*> hosts_;
  std::vector<sg::Link*> links_;
  std::unordered_map<const void*, std::uint32_t> id_of_;  // of what has not ended
  std::vector<sg::CommPtr> comms_;
};

}  // namespace
}  // namespace coterie

extern "C" coterie::SimGrid* coterie_simgrid_start(const coterie::SimGridSettings& settings);

coterie::SimGrid* coterie_simgrid_start(const coterie::SimGridSettings& settings) {
  return new coterie::Simulation(settings);  // lives as long as the process
}
