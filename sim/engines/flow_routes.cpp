#include "sim/engines/flow_routes.hpp"

#include <algorithm>
#include <limits>

namespace coterie::flow {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// The transfers over every link, ascending.
struct Users {
  std::vector<std::uint64_t> begin;  // [num_links + 1]
  std::vector<std::uint32_t> ops;
};

Users users_of(const Routes& routes) {
  const std::size_t num_links = routes.capacity.size();
  const std::size_t num_ops = routes.begin.size() - 1;
  Users out;
  out.begin.assign(num_links + 1, 0);
  for (const std::uint32_t link : routes.links) ++out.begin[link + 1];
  for (std::size_t link = 0; link < num_links; ++link) out.begin[link + 1] += out.begin[link];
  out.ops.resize(routes.links.size());
  std::vector<std::uint64_t> next(out.begin.begin(), out.begin.end() - 1);
  for (std::size_t op = 0; op < num_ops; ++op) {
    for (const std::uint32_t link : routes.of(op)) {
      out.ops[next[link]++] = static_cast<std::uint32_t>(op);
    }
  }
  return out;
}

class Pruner {
 public:
  Pruner(const Program& program, const Routes& routes)
      : routes_(routes),
        capacity_(routes.largest),
        users_(users_of(routes)),
        dropped_(capacity_.size(), 0),
        pinned_(capacity_.size(), 0),
        seen_(capacity_.size(), 0) {
    for (const CapacityChange& change : program.changes) pinned_[change.link] = 1;
    for (const Hold& hold : program.holds) pinned_[routes.num_links(program) + hold.resource] = 1;
  }

  // For each link, whether it is redundant.
  std::vector<std::uint8_t> run() {
    for (std::uint32_t link = 0; link < capacity_.size(); ++link) {
      if (pinned_[link] != 0 || users_.begin[link] == users_.begin[link + 1]) continue;
      if (fed_by(link, true) || fed_by(link, false)) {
        dropped_[link] = 1;
        for (const std::uint32_t feeder : feeders_) pinned_[feeder] = 1;
      }
    }
    return std::move(dropped_);
  }

 private:
  // The first or last of the narrowest links of the route, `link` itself left out.
  [[nodiscard]] std::uint32_t pick(std::uint32_t op, std::uint32_t link, bool first) const {
    std::uint32_t best = kNone;
    for (const std::uint32_t hop : routes_.of(op)) {
      if (hop == link) continue;
      if (best == kNone || capacity_[hop] < capacity_[best] ||
          (!first && capacity_[hop] == capacity_[best])) {
        best = hop;
      }
    }
    return best;
  }

  bool fed_by(std::uint32_t link, bool first) {
    feeders_.clear();
    ++round_;
    double sum = 0.0;
    for (std::uint64_t i = users_.begin[link]; i < users_.begin[link + 1]; ++i) {
      const std::uint32_t feeder = pick(users_.ops[i], link, first);
      if (feeder == kNone) return false;
      if (seen_[feeder] == round_) continue;
      seen_[feeder] = round_;
      sum += capacity_[feeder];
      if (sum > capacity_[link]) return false;
      feeders_.push_back(feeder);
    }
    return true;
  }

  const Routes& routes_;
  std::span<const double> capacity_;
  Users users_;
  std::vector<std::uint8_t> dropped_;
  std::vector<std::uint8_t> pinned_;  // never dropped
  std::vector<std::uint32_t> seen_;   // [num_links] the last round in which it was counted
  std::vector<std::uint32_t> feeders_;
  std::uint32_t round_ = 0;
};

}  // namespace

BindingRoutes binding_routes(const Program& program, const Routes& routes) {
  const std::size_t num_ops = routes.begin.size() - 1;
  const bool detours = !routes.detours.empty();
  const std::vector<std::uint8_t> dropped =
      detours ? std::vector<std::uint8_t>(routes.capacity.size()) : Pruner(program, routes).run();
  BindingRoutes out;
  out.num_dropped = static_cast<std::uint64_t>(std::count(dropped.begin(), dropped.end(), 1));
  out.begin.reserve(num_ops + 1);
  out.begin.push_back(0);
  out.cap.reserve(num_ops);
  std::size_t num_kept = 0;
  for (const std::uint32_t link : routes.links) num_kept += dropped[link] == 0 ? 1 : 0;
  out.links.reserve(num_kept);
  for (std::size_t op = 0; op < num_ops; ++op) {
    double narrowest = std::numeric_limits<double>::infinity();
    for (const std::uint32_t link : routes.of(op)) {
      narrowest = std::min(narrowest, routes.largest[link]);
      if (dropped[link] == 0) out.links.push_back(link);
    }
    out.begin.push_back(out.links.size());
    out.max_hops = std::max(out.max_hops, static_cast<std::uint32_t>(out.of(op).size()));
    const double cap = routes.rate_cap[op];
    out.cap.push_back(cap < narrowest || detours ? cap : std::numeric_limits<double>::infinity());
  }
  for (const Detour& detour : routes.detours) {
    out.max_hops = std::max(out.max_hops, static_cast<std::uint32_t>(detour.links.size()));
  }
  return out;
}

}  // namespace coterie::flow
