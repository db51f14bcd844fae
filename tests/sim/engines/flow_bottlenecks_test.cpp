// The shares that exact runs keep up to date, against progressive filling as in the textbook
// (flow_reference.hpp) after every single change.

#include "sim/engines/flow_bottlenecks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "core/random.hpp"
#include "sim/engines/flow.hpp"
#include "tests/sim/engines/flow_reference.hpp"

namespace coterie {
namespace {

using flow::BottleneckOrder;
using testing::slow_max_min;
using testing::SlowFlow;
using testing::why_not_max_min;

constexpr double kNoCap = std::numeric_limits<double>::infinity();

// A network under random changes, in the order and beside it as plain data.
class Changing {
 public:
  struct Shape {
    std::uint32_t num_links = 12;
    std::uint32_t max_hops = 3;
    double spread = 1.0;         // of the capacities: standard deviation of their logarithm
    std::uint32_t num_caps = 0;  // different caps; 0: no flow has one
    bool twice = false;          // routes may cross a link twice
    std::size_t num_idle = 0;    // further links without flows
  };
  Changing(const Shape& shape, std::uint64_t seed)
      : shape_(shape),
        random_(seed),
        capacity_(capacities()),
        order_(capacity_, shape.max_hops + 1, shape.num_caps) {}

  void start() {
    Flow flow;
    const std::size_t num_hops = 1 + random_.index(shape_.max_hops);
    while (flow.slow.route.size() < num_hops) {
      const auto link = static_cast<std::uint32_t>(random_.index(shape_.num_links));
      const auto& route = flow.slow.route;
      if (shape_.twice || std::find(route.begin(), route.end(), link) == route.end()) {
        flow.slow.route.push_back(link);
      }
    }
    if (shape_.num_caps > 0 && random_.index(2) == 0) {
      flow.slow.cap = 0.05 * static_cast<double>(1 + random_.index(shape_.num_caps));
    }
    flow.left = std::exp(2.0 * random_.normal());
    std::uint32_t slot = 0;
    while (flows_.contains(slot)) ++slot;
    order_.start(slot, flow.slow.route, flow.left, flow.slow.cap);
    flows_.emplace(slot, flow);
  }
  // Lets time pass until the next flow ends, which is the one that the rates say.
  void end_next() {
    double next = kNoCap;
    for (const auto& [slot, flow] : flows_) {
      if (flow.rate > 0.0) next = std::min(next, flow.left / flow.rate);
    }
    if (next == kNoCap) return;
    ASSERT_NEAR(order_.next_finish_s(), now_ + next, 1e-9 * (now_ + next));
    pass(next);
    const std::uint32_t slot = order_.end_next();
    ASSERT_NEAR(flows_.at(slot).left, 0.0, 1e-7);
    flows_.erase(slot);
  }
  void remove() {
    if (flows_.empty()) return;
    auto flow = flows_.begin();
    std::advance(flow, static_cast<std::ptrdiff_t>(random_.index(flows_.size())));
    EXPECT_NEAR(order_.left(flow->first, now_), flow->second.left, 1e-7);
    order_.remove(flow->first);
    flows_.erase(flow);
  }
  void change_capacity() {
    const std::size_t link = random_.index(shape_.num_links);
    capacity_[link] = random_.index(8) == 0 ? 0.0 : std::exp(shape_.spread * random_.normal());
    order_.set_capacity(static_cast<std::uint32_t>(link), capacity_[link]);
  }
  // New rates, which must be the slow solver's.
  void update() {
    order_.update(now_);
    std::vector<SlowFlow> slow;
    std::vector<double> rate;
    for (auto& [slot, flow] : flows_) {
      flow.rate = order_.rate(slot);
      slow.push_back(flow.slow);
      rate.push_back(flow.rate);
    }
    ASSERT_EQ(why_not_max_min(slow, rate, capacity_), "");
    const std::vector<double> expected = slow_max_min(slow, capacity_);
    for (std::size_t i = 0; i < rate.size(); ++i) {
      ASSERT_NEAR(rate[i], expected[i], 1e-9 * expected[i]);
    }
  }
  void pass_some_time() {
    const double next = order_.next_finish_s();
    if (next < kNoCap) pass(0.5 * random_.uniform() * (next - now_));
  }
  Random& random() { return random_; }
  [[nodiscard]] std::size_t num_flows() const { return flows_.size(); }
  [[nodiscard]] const BottleneckOrder& order() const { return order_; }

 private:
  struct Flow {
    SlowFlow slow;
    double left = 0.0;
    double rate = 0.0;
  };
  std::vector<double> capacities() {
    std::vector<double> out(shape_.num_links + shape_.num_idle, 1.0);
    for (double& capacity : out) capacity = std::exp(shape_.spread * random_.normal());
    return out;
  }
  void pass(double seconds) {
    now_ += seconds;
    for (auto& [slot, flow] : flows_) flow.left -= flow.rate * seconds;
  }

  Shape shape_;
  Random random_;
  std::vector<double> capacity_;
  BottleneckOrder order_;
  std::map<std::uint32_t, Flow> flows_;
  double now_ = 0.0;
};

void expect_exact(const Changing::Shape& shape, std::uint64_t seed, std::size_t num_flows) {
  Changing network(shape, seed);
  for (std::size_t i = 0; i < num_flows; ++i) network.start();
  ASSERT_NO_FATAL_FAILURE(network.update()) << "seed " << seed;
  for (int step = 0; step < 150; ++step) {
    // One change in most steps, a few at once in others.
    for (std::size_t i = network.random().index(8) == 0 ? 3 : 1; i-- > 0;) {
      switch (network.random().index(6)) {
        case 0:
        case 1:
          ASSERT_NO_FATAL_FAILURE(network.end_next()) << "seed " << seed << ", step " << step;
          break;
        case 2:
          network.pass_some_time();
          network.remove();
          break;
        case 3:
          network.pass_some_time();
          network.change_capacity();
          break;
        default:
          if (network.num_flows() < 2 * num_flows) network.start();
      }
      ASSERT_NO_FATAL_FAILURE(network.update()) << "seed " << seed << ", step " << step;
    }
  }
  // Most updates did not fill all anew, or this would test nothing.
  EXPECT_LT(network.order().num_refills(), 75U) << "seed " << seed;
}

TEST(FlowBottlenecks, AreThoseOfProgressiveFillingAfterEveryChange) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    expect_exact({}, seed, 40);
    expect_exact({.num_links = 40, .max_hops = 4, .spread = 2.0}, seed, 60);
    expect_exact({.num_links = 6, .max_hops = 2}, seed, 80);
  }
}

// All links alike, so that nearly all levels are equal but for rounding.
TEST(FlowBottlenecks, StandTies) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    expect_exact({.num_links = 16, .max_hops = 2, .spread = 0.0}, seed, 60);
  }
}

TEST(FlowBottlenecks, KnowCaps) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    expect_exact({.num_links = 12, .max_hops = 3, .spread = 0.5, .num_caps = 2}, seed, 40);
    expect_exact({.num_links = 12, .max_hops = 1, .spread = 2.0, .num_caps = 50}, seed, 40);
  }
}

// A route that crosses a link twice takes twice its rate there.
TEST(FlowBottlenecks, KnowRoutesThatCrossALinkTwice) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    expect_exact({.num_links = 5, .max_hops = 4, .twice = true}, seed, 30);
    expect_exact({.num_links = 5, .max_hops = 2, .num_caps = 3, .twice = true}, seed, 30);
  }
}

// A link "without a limit" beside others: what its own flow gets must not round away what theirs is
// computed from. Three flows share 1e9 B/s.
TEST(FlowBottlenecks, StandLinksWithoutALimit) {
  const std::vector<double> capacity{1e30, 1e9, 1e9, 1e9};
  BottleneckOrder order(capacity, 3, 0);
  const std::vector<std::vector<std::uint32_t>> routes{{0}, {3, 1, 0}, {2, 1, 0}, {1, 0}};
  for (std::uint32_t slot = 0; slot < routes.size(); ++slot) {
    order.start(slot, routes[slot], 200e3, kNoCap);
  }
  order.update(0.0);
  EXPECT_EQ(order.end_next(), 0U);
  order.update(0.0);
  for (std::uint32_t slot = 1; slot < routes.size(); ++slot) {
    EXPECT_NEAR(order.rate(slot), 1e9 / 3.0, 1.0);
  }
  EXPECT_NEAR(order.next_finish_s(), 600e-6, 1e-12);
}

// More links than two bytes can tell apart.
TEST(FlowBottlenecks, ManyLinksChangeNothing) {
  expect_exact({.num_idle = flow::LinkList::kMostSmall}, 1, 40);
}

// 16 senders and 16 receivers of 1 B/s, one flow of log-normal size for each pair: as many events as
// flows, on all of which the shares of most links change. That must not need refilling.
TEST(FlowBottlenecks, AllToAllIsFilledOnceAndThenKeptUp) {
  const std::vector<double> capacity(32, 1.0);
  BottleneckOrder order(capacity, 2, 0);
  Random random(3);
  std::map<std::uint32_t, SlowFlow> flows;
  for (std::uint32_t slot = 0; slot < 256; ++slot) {
    flows[slot].route = {slot / 16, 16 + slot % 16};
    order.start(slot, flows[slot].route, std::exp(random.normal()), kNoCap);
  }
  for (double now = 0.0; !flows.empty(); now = order.next_finish_s()) {
    if (now > 0.0) flows.erase(order.end_next());
    order.update(now);
    std::vector<SlowFlow> slow;
    std::vector<double> rate;
    for (const auto& [slot, flow] : flows) {
      slow.push_back(flow);
      rate.push_back(order.rate(slot));
    }
    ASSERT_EQ(why_not_max_min(slow, rate, capacity), "") << flows.size() << " flows";
    if (flows.empty()) break;
  }
  EXPECT_EQ(order.num_refills(), 1U);
}

// The rule that says how many active flows are exact, for programs from nothing to 2^40 operations:
// in larger programs fewer (so the error grows with the size), and the rates set in the whole
// program, operations times the flows that can be active, never fall (so does the time) and never
// exceed what they may cost. From one operation to the next nothing jumps.
TEST(FlowExactFlows, FallGraduallyWithTheSizeOfTheProgram) {
  const auto visits = [](std::size_t num_ops) {
    return static_cast<double>(num_ops) *
           std::min(static_cast<double>(num_ops), exact_flows(num_ops));
  };
  std::size_t last = 1;
  for (std::size_t num_ops = 2; num_ops < std::size_t{1} << 40; num_ops += 1 + num_ops / 100) {
    EXPECT_LE(exact_flows(num_ops), exact_flows(last));
    EXPECT_GE(visits(num_ops), visits(last) * (1.0 - 1e-15));
    EXPECT_LE(visits(num_ops), kFlowExactVisits * (1.0 + 1e-15));
    EXPECT_NEAR(exact_flows(num_ops + 1), exact_flows(num_ops),
                1.01 * exact_flows(num_ops) / static_cast<double>(num_ops));
    last = num_ops;
  }
  EXPECT_EQ(exact_flows(1000, 0.0), 0.0);
}

}  // namespace
}  // namespace coterie
