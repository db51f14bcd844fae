#include "sim/calibrate/alltoall_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/error.hpp"
#include "sim/calibrate/optimiser.hpp"

namespace coterie {
namespace {

constexpr double kNcclThreshold = 16384.0;  // bytes per channel
constexpr double kPcieChannels = 2.0;       // of a pair of GPUs without NVLink
constexpr std::size_t kSizeFolds = 4;
// In log units: how far a part of a bend may be from an equal share of the launch, and from the part
// before it.
constexpr double kBendPrior = 2.0;
constexpr double kBendSmooth = 0.5;
// What is known of NVLink before any measurement: NCCL's all-to-alls reach about 72 % of a port's data
// sheet, and one channel, a thread block that copies, about 18 GB/s.
constexpr double kLinkShare = 0.72;
constexpr double kLinkShareWidth = 0.1;
constexpr double kChannelRate = 18e9;
constexpr double kChannelRateWidth = 0.3;
constexpr std::uint32_t kNvlinkChannels = 32;
// One more peer is one more entry in a kernel's list of work: a small part of its launch.
constexpr double kPeerShare = 0.02;
constexpr double kPeerWidth = 1.0;

// (launch^q + line^q)^(1/q) - launch
double hidden_s(double launch_s, double time_s, double q) {
  const double larger = std::max(launch_s, time_s);
  if (larger <= 0.0) return 0.0;
  const double smaller = std::min(launch_s, time_s);
  return larger * std::pow(1.0 + std::pow(smaller / larger, q), 1.0 / q) - launch_s;
}

// Bytes over the shared link of one socket, where every rank sends `volume` in equal parts to the
// others. Ranks of one group do not use it; what goes to another socket uses both sockets' links.
double shared_volume(std::uint32_t num_ranks, std::uint32_t group,
                     std::optional<std::uint32_t> socket_gpus, double volume) {
  if (num_ranks <= group) return 0.0;
  const double message = volume / (num_ranks - 1.0);
  if (!socket_gpus || num_ranks <= *socket_gpus) return num_ranks * message * (num_ranks - group);
  const double here = *socket_gpus;
  return here * message * ((here - group) + 2.0 * (num_ranks - here));
}

// Bytes between the sockets, both directions together.
double socket_volume(std::uint32_t num_ranks, std::optional<std::uint32_t> socket_gpus,
                     double volume) {
  if (!socket_gpus || num_ranks <= *socket_gpus) return 0.0;
  return 2.0 * *socket_gpus * (num_ranks - *socket_gpus) * volume / (num_ranks - 1.0);
}

// Which parameters exist and where they stand in the parameter vector.
class Layout {
 public:
  Layout(const AllToAllModel& structure, bool message_rate)
      : structure_(structure), message_rate_(message_rate) {}

  [[nodiscard]] bool has_small() const { return structure_.threshold > 0.0; }
  [[nodiscard]] bool has_shared() const { return structure_.shared.has_value(); }
  [[nodiscard]] bool has_sockets() const { return structure_.socket.has_value(); }
  [[nodiscard]] bool has_message_rate() const { return message_rate_; }

  [[nodiscard]] AllToAllModel model(std::span<const double> p) const {
    AllToAllModel out = structure_;
    std::size_t next = 0;
    const auto take = [&] { return std::exp(p[next++]); };
    out.large.launch_s = take();
    out.large.per_peer_s = take();
    out.sharpness = 1.0 + take();
    if (message_rate_) out.large.message_rate = take();
    if (has_small()) {
      out.small.launch_s = take();
      out.small.per_peer_s = take();
      out.small.message_rate = take();
    }
    out.line.bends.resize(out.line.knots.size());
    for (double& bend : out.line.bends) bend = take();
    out.line.slope = take();
    const auto take_slopes = [&](SharedLine& line) {
      line.slopes.resize(line.knots.size() + 1);
      for (double& slope : line.slopes) slope = take();
    };
    if (has_shared()) {
      take_slopes(*out.shared);
      if (has_small()) out.small_shared_slope = take();
    }
    if (has_sockets()) {
      take_slopes(*out.socket);
      if (has_small()) out.small_socket_slope = take();
    }
    return out;
  }

 private:
  const AllToAllModel& structure_;
  bool message_rate_;
};

// Starting values and priors from simple readings of the points.
class Start {
 public:
  Start(const std::vector<AllToAllPoint>& points, const AllToAllModel& structure,
        std::optional<double> link_bandwidth)
      : points_(points), structure_(structure), link_bandwidth_(link_bandwidth) {
    for (const AllToAllPoint& point : points) {
      min_ranks_ = std::min(min_ranks_, point.num_ranks);
      const bool below = point.message() <= structure.threshold;
      num_small_ += below ? 1 : 0;
      min_time_s_ = std::min(min_time_s_, point.time_s);
      if (!below) min_large_s_ = std::min(min_large_s_, point.time_s);
      const double rate = point.volume() / point.time_s;
      const bool unshared = point.num_ranks <= structure.shared_group;
      const double between = socket_volume(point.num_ranks, structure.socket_gpus, point.volume());
      socket_rate_ = std::max(socket_rate_, between / point.time_s);
      if (between > 0.0) continue;  // what joins the sockets decides, not their bridges
      if (!structure.shared || unshared) {
        rate_ = std::max(rate_, rate);
      } else {
        shared_rate_ = std::max(shared_rate_, shared_volume(point.num_ranks, structure.shared_group,
                                                            structure.socket_gpus, point.volume()) /
                                                  point.time_s);
      }
    }
    for (const AllToAllPoint& point : points) {
      const double dealt = channels_per_peer(structure.channels, point.num_ranks);
      channel_rate_ = std::max(channel_rate_, point.message() / (point.time_s * dealt));
      if (point.num_ranks == 2) pair_rate_ = std::max(pair_rate_, point.message() / point.time_s);
    }
    if (rate_ == 0.0) rate_ = shared_rate_;
    if (shared_rate_ == 0.0) shared_rate_ = rate_;
    if (min_large_s_ > 1e3) min_large_s_ = min_time_s_;
  }

  [[nodiscard]] bool message_rate() const {
    if (structure_.channels > 0) return true;
    return pair_rate_ > 0.0 && std::any_of(points_.begin(), points_.end(),
                                           [](const auto& point) { return point.num_ranks > 2; });
  }

  [[nodiscard]] bool over_pcie() const { return structure_.shared.has_value(); }

  [[nodiscard]] FitProblem problem(const Layout& layout) const {
    FitProblem problem;
    const auto add = [&](const std::string& name, double value, double width) {
      problem.parameters.push_back({name, std::log(value), width});
      return problem.parameters.size() - 1;
    };
    const double latency = structure_.latency_s;
    const auto above = [&](double time_s) { return std::max(time_s - latency, 0.2 * time_s); };
    add("launch", above(min_large_s_), 2.0);
    add("per_peer", kPeerShare * min_large_s_, kPeerWidth);
    if (over_pcie()) {
      add("sharpness", 0.15, 0.7);
    } else {
      add("sharpness", 2.5, 1.2);
    }
    if (structure_.channels > 0) {
      add("channel_rate", kChannelRate, kChannelRateWidth);
      // From where it limits some point, so that the fit sees what it does.
      problem.parameters.back().start = std::log(channel_rate_);
    } else if (layout.has_message_rate()) {
      add("message_rate", 1.1 * pair_rate_, 2.0);
    }
    if (layout.has_small()) {
      add("small.launch", above(min_time_s_), 2.0);
      add("small.per_peer", 0.02 * min_time_s_, 2.0);
      add("small.message_rate", 16384.0 / (0.5 * min_time_s_), 2.0);
    }
    add_line(problem, structure_.line, 1.0 / rate_);
    if (structure_.channels > 0) {
      // Where the channels are what limits, the links are as fast as the data sheet suggests, or else as
      // what they were seen to carry.
      FitParameter& slope = problem.parameters.back();
      if (link_bandwidth_) slope.prior = -std::log(kLinkShare * *link_bandwidth_);
      slope.prior_width = kLinkShareWidth;
    }
    if (layout.has_shared()) {
      add_slopes(problem, "shared_slope", *structure_.shared, 1.0 / shared_rate_);
      if (layout.has_small()) add("small.shared_slope", 2.0 / shared_rate_, 2.0);
    }
    if (layout.has_sockets()) {
      add_slopes(problem, "socket_slope", *structure_.socket, 1.5 / socket_rate_);
      if (layout.has_small()) add("small.socket_slope", 3.0 / socket_rate_, 2.0);
    }
    return problem;
  }

 private:
  // A bend of the launch's size in all.
  void add_line(FitProblem& problem, const VolumeLine& line, double slope) const {
    const std::size_t first = problem.parameters.size();
    const auto num_knots = static_cast<double>(line.knots.size());
    for (std::size_t i = 0; i < line.knots.size(); ++i) {
      problem.parameters.push_back(
          {fmt::format("bend[{}]", i), std::log(min_large_s_ / num_knots), kBendPrior});
      if (i >= 1) problem.smooth.push_back({first + i, first + i - 1, kBendSmooth});
    }
    problem.parameters.push_back({"slope", std::log(slope), 5.0});
  }

  static void add_slopes(FitProblem& problem, const std::string& name, const SharedLine& line,
                         double slope) {
    const std::size_t first = problem.parameters.size();
    for (std::size_t i = 0; i <= line.knots.size(); ++i) {
      const double factor = i < line.knots.size() ? 1.2 : 1.0;
      problem.parameters.push_back({fmt::format("{}[{}]", name, i), std::log(factor * slope), 5.0});
      if (i >= 1) problem.smooth.push_back({first + i, first + i - 1, 1.3});
    }
  }

  const std::vector<AllToAllPoint>& points_;
  const AllToAllModel& structure_;
  std::optional<double> link_bandwidth_;
  std::uint32_t min_ranks_ = 1U << 30;
  std::size_t num_small_ = 0;
  double min_time_s_ = 1e9, min_large_s_ = 1e9;
  double rate_ = 0.0, shared_rate_ = 0.0, socket_rate_ = 0.0, pair_rate_ = 0.0;
  double channel_rate_ = 0.0;
};

struct Solved {
  AllToAllModel model;
  FitResult result;
  FitProblem problem;
};

Solved solve_structure(const std::vector<AllToAllPoint>& points, const AllToAllModel& structure,
                       std::optional<double> link_bandwidth) {
  const Start start(points, structure, link_bandwidth);
  const Layout layout(structure, start.message_rate());
  FitProblem problem = start.problem(layout);
  for (const AllToAllPoint& point : points) {
    problem.log_measured.push_back(std::log(point.time_s));
  }
  problem.model = [&](std::span<const double> p, std::span<double> out) {
    const AllToAllModel model = layout.model(p);
    for (std::size_t i = 0; i < points.size(); ++i) {
      out[i] = std::log(model.time_s(points[i].num_ranks, points[i].bytes_per_rank));
    }
  };
  FitResult result = solve(problem);
  return {layout.model(result.parameters), std::move(result), std::move(problem)};
}

// Points of every kSizeFolds-th size.
std::vector<std::size_t> fold_of(const std::vector<AllToAllPoint>& points) {
  std::set<double> sizes;
  for (const AllToAllPoint& point : points) sizes.insert(point.bytes_per_rank);
  std::vector<std::size_t> fold;
  for (const AllToAllPoint& point : points) {
    const auto rank = std::distance(sizes.begin(), sizes.find(point.bytes_per_rank));
    fold.push_back(static_cast<std::size_t>(rank) % kSizeFolds);
  }
  return fold;
}

std::vector<double> held_out_errors(const std::vector<AllToAllPoint>& points,
                                    const AllToAllModel& structure,
                                    std::optional<double> link_bandwidth) {
  const std::vector<std::size_t> fold = fold_of(points);
  std::vector<double> errors(points.size(), 0.0);
  for (std::size_t out = 0; out < kSizeFolds; ++out) {
    std::vector<AllToAllPoint> training;
    for (std::size_t i = 0; i < points.size(); ++i) {
      if (fold[i] != out) training.push_back(points[i]);
    }
    if (training.size() == points.size() || training.empty()) continue;
    const AllToAllModel model = solve_structure(training, structure, link_bandwidth).model;
    for (std::size_t i = 0; i < points.size(); ++i) {
      if (fold[i] != out) continue;
      errors[i] =
          model.time_s(points[i].num_ranks, points[i].bytes_per_rank) / points[i].time_s - 1.0;
    }
  }
  return errors;
}

// Mean error on a log scale; one outlier counts no more than 0.3.
double score(const std::vector<double>& errors) {
  double sum = 0.0;
  for (const double error : errors) sum += std::min(0.3, std::abs(std::log1p(error)));
  return sum / static_cast<double>(errors.size());
}

// All pairs.
std::vector<std::pair<std::vector<double>, std::optional<std::uint32_t>>> with_sockets(
    const std::vector<std::vector<double>>& shared_knots,
    const std::vector<std::optional<std::uint32_t>>& sockets) {
  std::vector<std::pair<std::vector<double>, std::optional<std::uint32_t>>> pairs;
  for (const auto& shared : shared_knots) {
    for (const auto& socket_gpus : sockets) pairs.emplace_back(shared, socket_gpus);
  }
  return pairs;
}

std::vector<AllToAllModel> structures(const std::vector<AllToAllPoint>& points,
                                      const AllToAllOptions& options) {
  double largest = 0.0;
  double largest_message = 0.0;
  double smallest_message = 1e30;
  double largest_shared = 0.0;
  for (const AllToAllPoint& point : points) {
    largest = std::max(largest, point.volume());
    largest_message = std::max(largest_message, point.message());
    smallest_message = std::min(smallest_message, point.message());
    largest_shared = std::max(largest_shared, shared_volume(point.num_ranks, options.shared_group,
                                                            std::nullopt, point.volume()));
  }
  const auto below = [](std::vector<double> knots, double limit) {
    std::erase_if(knots, [&](double knot) { return knot > 0.5 * limit; });
    return knots;
  };
  std::vector<AllToAllModel> out;
  const bool over_pcie = options.shared_link && largest_shared > 0.0;
  // One count of ranks cannot tell channels from links, unless the data sheet does.
  std::set<std::uint32_t> counts;
  for (const AllToAllPoint& point : points) counts.insert(point.num_ranks);
  const bool channels = options.nvlink && (counts.size() > 1 || options.link_bandwidth);
  const double ll_threshold = over_pcie ? kPcieChannels * kNcclThreshold : kNcclThreshold;
  const bool straddles = smallest_message <= ll_threshold && largest_message > ll_threshold;
  std::vector<std::vector<double>> knots{{16e6},
                                         {1e6, 16e6},
                                         {0.5e6, 4e6, 32e6},
                                         {1e6, 4e6, 16e6, 64e6},
                                         {0.25e6, 1e6, 4e6, 16e6, 64e6}};
  std::vector<std::vector<double>> shared_knots{{}};
  if (over_pcie) {
    knots = {{}, {1e6}, {1e6, 16e6}};
    shared_knots = {{1e6}, {1e6, 64e6}, {1e6, 64e6, 600e6}, {1e6, 200e6, 800e6}};
  }
  if (options.socket) {
    knots = {{1e6}, {128e3, 2e6}, {64e3, 512e3, 8e6}};
  }
  // One bridge for all, or one per socket: 2 and 8 GPUs alone cannot tell.
  std::vector<std::optional<std::uint32_t>> sockets{std::nullopt};
  const bool has_four = std::any_of(points.begin(), points.end(),
                                    [](const auto& point) { return point.num_ranks == 4; });
  if (over_pcie && has_four) sockets.emplace_back(4);
  std::vector<double> thresholds{ll_threshold};
  if (!straddles) thresholds = {0.0};
  if (straddles && options.socket) thresholds.push_back(0.0);
  for (const double threshold : thresholds) {
    for (const auto& own : knots) {
      for (const auto& [shared, socket_gpus] : with_sockets(shared_knots, sockets)) {
        AllToAllModel model;
        model.socket_gpus = socket_gpus;
        if (socket_gpus) model.socket = SharedLine{{4e6, 200e6}, {}};
        model.threshold = threshold;
        model.latency_s = options.latency_s;
        model.shared_group = options.shared_group;
        model.rank_total = options.socket;
        if (channels) model.channels = kNvlinkChannels;
        model.line.knots = below(own, largest);
        if (over_pcie) model.shared = SharedLine{below(shared, largest_shared), {}};
        const auto shared_of = [](const AllToAllModel& of) {
          return of.shared ? of.shared->knots : std::vector<double>{};
        };
        const bool known = std::any_of(out.begin(), out.end(), [&](const AllToAllModel& other) {
          return other.threshold == model.threshold && other.line.knots == model.line.knots &&
                 shared_of(other) == shared_of(model) && other.socket_gpus == model.socket_gpus;
        });
        if (!known) out.push_back(std::move(model));
      }
    }
  }
  return out;
}

// A table of a function of the volume, from 16 KiB to 4 GiB in steps of sqrt(2), and where it bends.
template <class F>
std::vector<RampPoint> tabulate(const std::vector<double>& knots, const F& time_s) {
  std::set<std::int64_t> volumes;
  for (const double knot : knots) volumes.insert(static_cast<std::int64_t>(knot));
  for (int i = 0; i <= 36; ++i) {
    volumes.insert(std::llround(std::ldexp(1.0, 14) * std::pow(2.0, 0.5 * i)));
  }
  std::vector<RampPoint> points;
  for (const std::int64_t volume : volumes) {
    // Tenths of a nanosecond.
    points.push_back(
        {Bytes{volume}, Seconds{std::round(time_s(static_cast<double>(volume)) * 1e10) * 1e-10}});
  }
  return points;
}

}  // namespace

double VolumeLine::time_s(double volume) const {
  double time_s = volume * slope;
  double from = 0.0;
  for (std::size_t i = 0; i < knots.size() && volume > from; ++i) {
    const double to = std::min(volume, knots[i]);
    time_s += bends[i] * (i == 0 ? to / knots[i] : std::log(to / from) / std::log(knots[i] / from));
    from = knots[i];
  }
  return time_s;
}

double SharedLine::time_s(double volume) const {
  double time_s = 0.0;
  double from = 0.0;
  for (std::size_t i = 0; i < knots.size() && volume > from; ++i) {
    time_s += (std::min(volume, knots[i]) - from) * slopes[i];
    from = knots[i];
  }
  return volume > from ? time_s + (volume - from) * slopes.back() : time_s;
}

double AllToAllModel::ramp_s(double volume) const {
  return hidden_s(large.launch_s, line.time_s(volume), sharpness);
}
double AllToAllModel::shared_ramp_s(double volume) const {
  return hidden_s(large.launch_s, shared->time_s(volume), sharpness);
}
double AllToAllModel::small_shared_ramp_s(double volume) const {
  return hidden_s(small.launch_s, volume * small_shared_slope, sharpness);
}

double AllToAllModel::socket_ramp_s(double volume) const {
  return hidden_s(large.launch_s, socket->time_s(volume), sharpness);
}
double AllToAllModel::small_socket_ramp_s(double volume) const {
  return hidden_s(small.launch_s, volume * small_socket_slope, sharpness);
}

double AllToAllModel::time_s(std::uint32_t num_ranks, double bytes_per_rank) const {
  const double message = bytes_per_rank / num_ranks;
  const double volume = message * (num_ranks - 1);
  const bool is_small = message <= threshold;
  const Protocol& protocol = is_small ? small : large;
  double single = 0.0;
  double dealt = 0.0;
  if (is_small || channels == 0) {
    if (protocol.message_rate) single = message / *protocol.message_rate;
  } else {
    dealt = message / (protocol.message_rate.value() * channels_per_peer(channels, num_ranks));
  }
  double ramped = (is_small ? volume * line.slope : ramp_s(volume)) +
                  std::max(0.0, dealt - volume * line.slope);
  ramped = std::max(ramped, single);
  double links = std::max({single, dealt, volume * line.slope});
  if (shared) {
    const double across = shared_volume(num_ranks, shared_group, socket_gpus, volume);
    if (across > 0.0) {
      ramped = std::max(ramped, is_small ? small_shared_ramp_s(across) : shared_ramp_s(across));
      links = std::max(links, across * shared->slopes.back());
    }
  }
  const double between = socket_volume(num_ranks, socket_gpus, volume);
  if (between > 0.0 && socket) {
    ramped = std::max(ramped, is_small ? small_socket_ramp_s(between) : socket_ramp_s(between));
    links = std::max(links, between * socket->slopes.back());
  }
  const double start =
      std::max(0.0, protocol.launch_s + protocol.per_peer_s * (num_ranks - 2) + ramped - links);
  return start + latency_s + links;
}

AllToAllFit fit_alltoall(const std::vector<AllToAllPoint>& points, const AllToAllOptions& options) {
  AllToAllModel best;
  double best_score = 1e30;
  std::vector<double> best_errors;
  for (const AllToAllModel& structure : structures(points, options)) {
    std::vector<double> errors = held_out_errors(points, structure, options.link_bandwidth);
    const double value = score(errors);
    if (value < best_score) {
      best_score = value;
      best = structure;
      best_errors = std::move(errors);
    }
  }
  Solved solved = solve_structure(points, best, options.link_bandwidth);
  AllToAllFit fit;
  fit.model = std::move(solved.model);
  fit.held_out = std::move(best_errors);
  fit.undetermined = solved.result.undetermined;
  for (std::size_t j = 0; j < solved.problem.parameters.size(); ++j) {
    fit.parameters.push_back({solved.problem.parameters[j].name,
                              std::exp(solved.result.parameters[j]),
                              solved.result.standard_error[j]});
  }
  return fit;
}

bool widen_links(const std::vector<AllToAllPoint>& points, Cluster& cluster) {
  Bandwidth fastest{0.0};
  for (const AllToAllPoint& point : points) {
    fastest = std::max(fastest, Bandwidth{point.volume() / point.time_s});
  }
  if (fastest <= cluster.scale_up->bandwidth) return false;
  cluster.scale_up->bandwidth = fastest;
  return true;
}

AllToAllOptions alltoall_options(const Cluster& base) {
  AllToAllOptions options;
  if (!base.scale_up) throw InputError("topology " + base.name + " has no scale_up links to fit");
  options.latency_s = 2.0 * base.scale_up->latency.value;
  options.socket = base.scale_up->kind == ScaleUpKind::kSocket;
  options.nvlink = base.scale_up->kind == ScaleUpKind::kNvlink;
  options.shared_link = base.scale_up->kind == ScaleUpKind::kPcie;
  options.shared_group = base.scale_up->kind == ScaleUpKind::kPcie ? 2 : 1;
  return options;
}

namespace {

// The cluster's parameters of `nccl`, put in front where there are none.
NcclParameters& nccl_of(Cluster& cluster) {
  for (TransportParameters& parameters : cluster.transports) {
    if (auto* nccl = std::get_if<NcclParameters>(&parameters)) return *nccl;
  }
  cluster.transports.insert(cluster.transports.begin(), NcclParameters{});
  return std::get<NcclParameters>(cluster.transports.front());
}

}  // namespace

Cluster calibrated_cluster(const Cluster& base, const AllToAllModel& model) {
  Cluster out = base;
  // The notify step exchanges counts, and nobody goes on before all have come.
  const double notify_s = model.time_s(base.num_gpus(), 4.0 * base.num_gpus());
  out.overheads.notify = std::max(base.overheads.notify, Seconds{notify_s});
  ScaleUp& scale_up = *out.scale_up;
  scale_up.shared_bandwidth.reset();
  scale_up.shared_group = 1;
  scale_up.num_sockets = 1;
  scale_up.socket_bandwidth.reset();
  Injection& injection = scale_up.injection;
  injection.rank_bandwidth.reset();
  injection.rank_total_bandwidth.reset();
  scale_up.bandwidth = std::max(base.scale_up->bandwidth, Bandwidth{1.0 / model.line.slope});
  if (model.rank_total) {
    injection.rank_total_bandwidth = Bandwidth{2.0 / model.line.slope};
  }
  NcclTier tier;
  tier.segments.clear();
  // The links stay what they are: other transports may reach more of them.
  if (!model.rank_total) tier.rank_bandwidth = Bandwidth{1.0 / model.line.slope};
  const auto rate = [](const std::optional<double>& value) {
    return value ? std::optional(Bandwidth{*value}) : std::nullopt;
  };
  StartCost large{{}, {model.large.launch_s}, {model.large.per_peer_s}, {}, {}, {}};
  large.ramp = tabulate(model.line.knots, [&](double volume) { return model.ramp_s(volume); });
  if (model.shared) {
    scale_up.shared_bandwidth = Bandwidth{1.0 / model.shared->slopes.back()};
    scale_up.shared_group = model.shared_group;
    const std::uint32_t domain_gpus = scale_up.nodes_per_domain * out.gpus_per_node;
    if (model.socket_gpus && domain_gpus % *model.socket_gpus == 0) {
      scale_up.num_sockets = domain_gpus / *model.socket_gpus;
      scale_up.socket_bandwidth = Bandwidth{1.0 / model.socket->slopes.back()};
      large.socket_ramp =
          tabulate(model.socket->knots, [&](double volume) { return model.socket_ramp_s(volume); });
    }
    large.shared_ramp =
        tabulate(model.shared->knots, [&](double volume) { return model.shared_ramp_s(volume); });
  }
  if (model.threshold > 0.0) {
    const Bytes threshold{static_cast<std::int64_t>(model.threshold)};
    tier.segments.push_back({threshold, {}, rate(model.small.message_rate), {}});
    StartCost small{threshold, {model.small.launch_s}, {model.small.per_peer_s}, {}, {}, {}};
    if (model.shared) {
      small.shared_ramp =
          tabulate({}, [&](double volume) { return model.small_shared_ramp_s(volume); });
    }
    if (scale_up.num_sockets > 1) {
      small.socket_ramp =
          tabulate({}, [&](double volume) { return model.small_socket_ramp_s(volume); });
    }
    tier.start.push_back(std::move(small));
  }
  if (model.channels > 0) {
    tier.channels = model.channels;
    tier.segments.push_back({{}, {}, {}, rate(model.large.message_rate)});
  } else {
    tier.segments.push_back({{}, {}, rate(model.large.message_rate), {}});
  }
  tier.start.push_back(std::move(large));
  nccl_of(out).scale_up = std::move(tier);
  return out;
}

}  // namespace coterie
