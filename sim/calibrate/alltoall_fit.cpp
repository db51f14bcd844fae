#include "sim/calibrate/alltoall_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "core/error.hpp"
#include "sim/calibrate/link_forms.hpp"

namespace coterie {
namespace {

constexpr double kNcclThreshold = 16384.0;  // bytes per channel
constexpr std::size_t kSizeFolds = 4;
// In log units: how far a part of a bend may be from an equal share of the launch, and from the part
// before it.
constexpr double kBendPrior = 2.0;
constexpr double kBendSmooth = 0.5;
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

// Which parameters exist and where they stand in the parameter vector.
class Layout {
 public:
  Layout(VolumeModel structure, bool message_rate)
      : structure_(std::move(structure)), message_rate_(message_rate) {}

  [[nodiscard]] bool has_small() const { return structure_.threshold > 0.0; }
  [[nodiscard]] bool has_message_rate() const { return message_rate_; }

  [[nodiscard]] VolumeModel model(std::span<const double> p) const {
    VolumeModel out = structure_;
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
    return out;
  }

 private:
  VolumeModel structure_;
  bool message_rate_;
};

// Starting values and priors from simple readings of the points.
class Start {
 public:
  Start(const std::vector<AllToAllPoint>& points, const VolumeModel& structure)
      : points_(points), structure_(structure) {
    for (const AllToAllPoint& point : points) {
      min_time_s_ = std::min(min_time_s_, point.time_s);
      if (point.message() > structure.threshold) {
        min_large_s_ = std::min(min_large_s_, point.time_s);
      }
      rate_ = std::max(rate_, point.volume() / point.time_s);
      if (point.num_ranks == 2) pair_rate_ = std::max(pair_rate_, point.message() / point.time_s);
    }
    if (min_large_s_ > 1e3) min_large_s_ = min_time_s_;
  }

  [[nodiscard]] bool message_rate() const {
    return pair_rate_ > 0.0 && std::any_of(points_.begin(), points_.end(),
                                           [](const auto& point) { return point.num_ranks > 2; });
  }

  [[nodiscard]] FitProblem problem(const Layout& layout) const {
    FitProblem problem;
    const auto add = [&](const std::string& name, double value, double width) {
      problem.parameters.push_back({name, std::log(value), width});
    };
    const double latency = structure_.latency_s;
    const auto above = [&](double time_s) { return std::max(time_s - latency, 0.2 * time_s); };
    add("launch", above(min_large_s_), 2.0);
    add("per_peer", kPeerShare * min_large_s_, kPeerWidth);
    add("sharpness", 2.5, 1.2);
    if (layout.has_message_rate()) add("message_rate", 1.1 * pair_rate_, 2.0);
    if (layout.has_small()) {
      add("small.launch", above(min_time_s_), 2.0);
      add("small.per_peer", 0.02 * min_time_s_, 2.0);
      add("small.message_rate", 16384.0 / (0.5 * min_time_s_), 2.0);
    }
    add_line(problem, structure_.line, 1.0 / rate_);
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

  const std::vector<AllToAllPoint>& points_;
  const VolumeModel& structure_;
  double min_time_s_ = 1e9, min_large_s_ = 1e9;
  double rate_ = 0.0, pair_rate_ = 0.0;
};

struct Solved {
  AllToAllModel model;
  FitResult result;
  FitProblem problem;
};

Solved solve_form(const std::vector<AllToAllPoint>& points, const LinkForm& prepare) {
  PreparedForm form = prepare(points);
  for (const AllToAllPoint& point : points) {
    form.problem.log_measured.push_back(std::log(point.time_s));
  }
  form.problem.model = [&](std::span<const double> p, std::span<double> out) {
    const AllToAllModel model = form.model(p);
    for (std::size_t i = 0; i < points.size(); ++i) {
      out[i] = std::log(model.time_s(points[i].num_ranks, points[i].bytes_per_rank));
    }
  };
  FitResult result = solve(form.problem);
  return {form.model(result.parameters), std::move(result), std::move(form.problem)};
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
                                    const LinkForm& form) {
  const std::vector<std::size_t> fold = fold_of(points);
  std::vector<double> errors(points.size(), 0.0);
  for (std::size_t out = 0; out < kSizeFolds; ++out) {
    std::vector<AllToAllPoint> training;
    for (std::size_t i = 0; i < points.size(); ++i) {
      if (fold[i] != out) training.push_back(points[i]);
    }
    if (training.size() == points.size() || training.empty()) continue;
    const AllToAllModel model = solve_form(training, form).model;
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

double VolumeModel::ramp_s(double volume) const {
  return hidden_s(large.launch_s, line.time_s(volume), sharpness);
}

double VolumeModel::time_s(std::uint32_t num_ranks, double bytes_per_rank) const {
  const double message = bytes_per_rank / num_ranks;
  const double volume = message * (num_ranks - 1);
  const bool is_small = message <= threshold;
  const Protocol& protocol = is_small ? small : large;
  const double single = protocol.message_rate ? message / *protocol.message_rate : 0.0;
  const double ramped = std::max(is_small ? volume * line.slope : ramp_s(volume), single);
  const double links = std::max(single, volume * line.slope);
  const double start =
      std::max(0.0, protocol.launch_s + protocol.per_peer_s * (num_ranks - 2) + ramped - links);
  return start + latency_s + links;
}

double AllToAllModel::time_s(std::uint32_t num_ranks, double bytes_per_rank) const {
  return std::visit([&](const auto& model) { return model.time_s(num_ranks, bytes_per_rank); },
                    form);
}

std::vector<LinkForm> volume_forms(const std::vector<AllToAllPoint>& points,
                                   const AllToAllOptions& options) {
  double largest = 0.0;
  double largest_message = 0.0;
  double smallest_message = 1e30;
  for (const AllToAllPoint& point : points) {
    largest = std::max(largest, point.volume());
    largest_message = std::max(largest_message, point.message());
    smallest_message = std::min(smallest_message, point.message());
  }
  std::vector<std::vector<double>> knots{{16e6},
                                         {1e6, 16e6},
                                         {0.5e6, 4e6, 32e6},
                                         {1e6, 4e6, 16e6, 64e6},
                                         {0.25e6, 1e6, 4e6, 16e6, 64e6}};
  if (options.socket) knots = {{1e6}, {128e3, 2e6}, {64e3, 512e3, 8e6}};
  for (std::vector<double>& choice : knots) {
    std::erase_if(choice, [&](double knot) { return knot > 0.5 * largest; });
  }
  const bool straddles = smallest_message <= kNcclThreshold && largest_message > kNcclThreshold;
  std::vector<double> thresholds{straddles ? kNcclThreshold : 0.0};
  if (straddles && options.socket) thresholds.push_back(0.0);
  std::set<std::pair<double, std::vector<double>>> known;
  std::vector<LinkForm> forms;
  for (const double threshold : thresholds) {
    for (const std::vector<double>& choice : knots) {
      if (!known.emplace(threshold, choice).second) continue;
      VolumeModel structure;
      structure.threshold = threshold;
      structure.latency_s = options.latency_s;
      structure.rank_total = options.socket;
      structure.line.knots = choice;
      forms.push_back([structure](const std::vector<AllToAllPoint>& training) {
        const Start start(training, structure);
        const Layout layout(structure, start.message_rate());
        return PreparedForm{start.problem(layout), [layout](std::span<const double> p) {
                              return AllToAllModel{layout.model(p)};
                            }};
      });
    }
  }
  return forms;
}

AllToAllFit fit_alltoall(const std::vector<AllToAllPoint>& points, const AllToAllOptions& options) {
  std::vector<LinkForm> forms = channel_forms(points, options);
  if (forms.empty()) forms = volume_forms(points, options);
  const LinkForm* best = nullptr;
  double best_score = 1e30;
  std::vector<double> best_errors;
  for (const LinkForm& form : forms) {
    std::vector<double> errors = held_out_errors(points, form);
    const double value = score(errors);
    if (best == nullptr || value < best_score) {
      best_score = value;
      best = &form;
      best_errors = std::move(errors);
    }
  }
  Solved solved = solve_form(points, *best);
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

namespace {

std::optional<Bandwidth> bandwidth_of(const std::optional<double>& rate) {
  return rate ? std::optional(Bandwidth{*rate}) : std::nullopt;
}

NcclTier tier_of(const VolumeModel& model) {
  NcclTier tier;
  tier.segments.clear();
  // The links stay what they are: other transports may reach more of them.
  if (!model.rank_total) tier.rank_bandwidth = Bandwidth{1.0 / model.line.slope};
  if (model.threshold > 0.0) {
    const Bytes threshold{static_cast<std::int64_t>(model.threshold)};
    tier.segments.push_back({threshold, {}, bandwidth_of(model.small.message_rate), {}});
    tier.start.push_back({threshold, {model.small.launch_s}, {model.small.per_peer_s}, {}, {}, {}});
  }
  StartCost large{{}, {model.large.launch_s}, {model.large.per_peer_s}, {}, {}, {}};
  large.ramp = tabulate(model.line.knots, [&](double volume) { return model.ramp_s(volume); });
  tier.segments.push_back({{}, {}, bandwidth_of(model.large.message_rate), {}});
  tier.start.push_back(std::move(large));
  return tier;
}

// A straight line, as far as small messages go.
std::vector<RampPoint> line_of(double slope) {
  constexpr std::int64_t kBeyond = std::int64_t{1} << 26;
  return {{Bytes{kBeyond}, Seconds{static_cast<double>(kBeyond) * slope}}};
}

NcclTier tier_of(const ChannelModel& model) {
  NcclTier tier = model.dealing;
  tier.segments.clear();
  tier.rank_bandwidth = Bandwidth{1.0 / model.slope};
  const Bytes ll_part{static_cast<std::int64_t>(kNcclThreshold)};
  tier.segments.push_back({ll_part, {}, {}, Bandwidth{model.ll_rate}});
  StartCost small{ll_part, {model.small.launch_s}, {}, {}, {}, {}};
  StartCost large{{}, {model.large.launch_s}, {}, {}, {}, {}};
  small.per_doubling = Seconds{model.small.per_doubling_s};
  large.per_doubling = Seconds{model.large.per_doubling_s};
  if (model.shared) small.shared_ramp = line_of(model.shared->small_slope);
  if (model.socket) small.socket_ramp = line_of(model.socket->small_slope);
  MessageSegment last;
  if (model.copy) {
    last.channel_bandwidth = Bandwidth{model.copy->rate};
    large.first_bandwidth = Bandwidth{1.0 / model.copy->first_slope};
    // LL adds as many bytes of flags.
    small.first_bandwidth = Bandwidth{0.5 / model.copy->first_slope};
  }
  if (model.shared) tier.few_channels = model.few_channels;
  tier.segments.push_back(last);
  tier.start = {std::move(small), std::move(large)};
  return tier;
}

void set_links(const VolumeModel& model, ScaleUp& scale_up) {
  const Bandwidth fitted{1.0 / model.line.slope};
  scale_up.bandwidth = std::max(scale_up.bandwidth, fitted);
  if (model.rank_total) scale_up.injection.rank_total_bandwidth = fitted * 2.0;
}

void set_links(const ChannelModel& model, ScaleUp& scale_up, std::uint32_t domain_gpus) {
  scale_up.bandwidth = std::max(scale_up.bandwidth, Bandwidth{1.0 / model.slope});
  if (!model.shared) return;
  scale_up.shared_bandwidth = Bandwidth{1.0 / model.shared->slope};
  scale_up.shared_group = model.shared_group;
  if (!model.socket_gpus || domain_gpus % *model.socket_gpus != 0) return;
  scale_up.num_sockets = domain_gpus / *model.socket_gpus;
  if (model.socket && scale_up.num_sockets > 1) {
    scale_up.socket_bandwidth = Bandwidth{1.0 / model.socket->slope};
  }
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
  scale_up.injection.rank_bandwidth.reset();
  scale_up.injection.rank_total_bandwidth.reset();
  if (const auto* volume = std::get_if<VolumeModel>(&model.form)) {
    set_links(*volume, scale_up);
    nccl_of(out).scale_up = tier_of(*volume);
  } else {
    const auto& channels = std::get<ChannelModel>(model.form);
    set_links(channels, scale_up, scale_up.nodes_per_domain * out.gpus_per_node);
    nccl_of(out).scale_up = tier_of(channels);
  }
  return out;
}

}  // namespace coterie
