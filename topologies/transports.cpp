#include "topologies/transports.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <utility>

#include "core/error.hpp"
#include "topologies/cluster.hpp"
#include "topologies/fabrics/fabric_type.hpp"
#include "topologies/layered_map.hpp"

namespace coterie {
namespace {

// The text of a transport stands this deep in a topology file.
constexpr std::size_t kIndent = 4;
constexpr std::int64_t kMostChannels = 1024;
constexpr std::int64_t kLeastChunk = 1024;  // bytes

std::string spaces(std::size_t count) {
  return std::string(count, ' ');
}

// nccl -------------------------------------------------------------------------------------------

MessageSegment read_segment(const YamlValue& value) {
  YamlMap map = value.as_map();
  MessageSegment segment;
  if (const auto up_to = map.optional("up_to")) segment.up_to = up_to->as_bytes();
  segment.alpha = map.required("alpha").as_seconds();
  if (const auto rate = map.optional("bandwidth")) segment.bandwidth = positive_bandwidth(*rate);
  if (const auto rate = map.optional("channel_bandwidth")) {
    segment.channel_bandwidth = positive_bandwidth(*rate);
  }
  map.finish();
  return segment;
}

std::vector<RampPoint> read_ramp(const YamlValue& list) {
  std::vector<RampPoint> ramp;
  RampPoint last;
  for (const YamlValue& value : list.as_list()) {
    YamlMap map = value.as_map();
    const RampPoint point{map.required("volume").as_bytes(), map.required("time").as_seconds()};
    map.finish();
    if (point.volume <= last.volume || point.time < last.time) {
      throw value.error("a point that is not beyond the one before",
                        "ascending volumes above zero and times that never fall");
    }
    last = point;
    ramp.push_back(point);
  }
  return ramp;
}

StartCost read_start_cost(const YamlValue& value) {
  YamlMap map = value.as_map();
  StartCost cost;
  if (const auto up_to = map.optional("up_to")) cost.up_to = up_to->as_bytes();
  cost.launch = map.required("launch").as_seconds();
  if (const auto per_peer = map.optional("per_peer")) cost.per_peer = per_peer->as_seconds();
  if (const auto ramp = map.optional("ramp")) cost.ramp = read_ramp(*ramp);
  if (const auto ramp = map.optional("shared_ramp")) cost.shared_ramp = read_ramp(*ramp);
  if (const auto ramp = map.optional("socket_ramp")) cost.socket_ramp = read_ramp(*ramp);
  if (const auto time = map.optional("per_doubling")) cost.per_doubling = time->as_seconds();
  if (const auto rate = map.optional("first_bandwidth")) {
    cost.first_bandwidth = positive_bandwidth(*rate);
  }
  map.finish();
  return cost;
}

// A list of segments by message size: `up_to` ascends, and the last has none.
template <class Segment>
std::vector<Segment> read_segments(const YamlValue& list, Segment (*read)(const YamlValue&)) {
  std::vector<Segment> segments;
  for (const YamlValue& value : list.as_list()) {
    const Segment segment = read(value);
    if (!segments.empty()) {
      const auto& previous = segments.back().up_to;
      if (!previous) throw value.error("a segment after one without up_to", "it to be the last");
      if (segment.up_to && *segment.up_to <= *previous) {
        throw value.error("up_to not above that of the segment before", "ascending segments");
      }
    }
    segments.push_back(segment);
  }
  if (segments.empty()) throw list.error("an empty list", "at least one segment");
  if (segments.back().up_to) {
    throw list.error("a last segment with up_to", "one without, for all larger messages");
  }
  return segments;
}

// How messages are dealt to channels.
void read_dealing(LayeredMap& map, NcclTier& tier) {
  const auto given = [&](const char* key) {
    auto value = map.optional(key);
    if (value && says(*value, "none")) value.reset();
    if (value && !tier.channels) {
      throw value->error(fmt::format("{} without channels", key), "channels beside it");
    }
    return value;
  };
  if (const auto count = given("pair_channels")) {
    tier.pair_channels = static_cast<std::uint32_t>(count->as_integer(1, kMostChannels));
    if (*tier.pair_channels > *tier.channels) {
      throw count->error(fmt::format("{} of a pair", *tier.pair_channels),
                         fmt::format("at most the {} channels of all", *tier.channels));
    }
  }
  const auto chunk = [&](const char* key, std::optional<Bytes>& value) {
    const auto found = given(key);
    if (!found) return;
    value = found->as_bytes();
    if (value->value < kLeastChunk) {
      throw found->error(fmt::format("{} B", value->value),
                         fmt::format("at least {} B", kLeastChunk));
    }
  };
  chunk("chunk", tier.chunk);
  chunk("ll_chunk", tier.ll_chunk);
  if (const auto few = given("few_channels")) tier.few_channels = few->as_number(1.0, 1000.0);
}

// First chunks are timed by a channel's rate.
void check_first_chunks(const YamlValue& list, const NcclTier& tier) {
  const bool timed =
      std::all_of(tier.segments.begin(), tier.segments.end(),
                  [](const MessageSegment& segment) { return segment.channel_bandwidth; });
  for (const StartCost& cost : tier.start) {
    if (!cost.first_bandwidth) continue;
    if (!tier.chunk)
      throw list.error("a first_bandwidth without a chunk", "chunk beside the start");
    if (!timed) {
      throw list.error("a first_bandwidth where channels have no rate",
                       "a channel_bandwidth in every segment");
    }
  }
}

std::optional<NcclTier> read_nccl_tier(LayeredMap& parent, const std::string& key) {
  auto map = parent.block(key);
  if (!map) return std::nullopt;
  NcclTier tier;
  if (const auto count = map->optional("channels")) {
    if (!says(*count, "none")) {
      tier.channels = static_cast<std::uint32_t>(count->as_integer(1, kMostChannels));
    }
  }
  read_dealing(*map, tier);
  if (const auto list = map->optional("segments")) {
    tier.segments = read_segments(*list, read_segment);
    for (const MessageSegment& segment : tier.segments) {
      if (!segment.channel_bandwidth || tier.channels) continue;
      throw list->error("a channel_bandwidth without channels", "channels beside the segments");
    }
  }
  if (const auto list = map->optional("start")) {
    if (!says(*list, "none")) tier.start = read_segments(*list, read_start_cost);
    check_first_chunks(*list, tier);
  }
  const auto rate = [&map](const char* name, std::optional<Bandwidth>& value) {
    const auto given = map->optional(name);
    if (given && !says(*given, "none")) value = positive_bandwidth(*given);
  };
  rate("rank_bandwidth", tier.rank_bandwidth);
  rate("rank_total_bandwidth", tier.rank_total_bandwidth);
  rate("pair_bandwidth", tier.pair_bandwidth);
  rate("pair_total_bandwidth", tier.pair_total_bandwidth);
  if (const auto beside = map->optional("beside_kernels")) {
    tier.beside_kernels = beside->as_number(1.0, 1000.0);
  }
  map->finish();
  return tier;
}

std::string ramp_text(std::string_view key, const std::vector<RampPoint>& ramp,
                      std::size_t indent) {
  if (ramp.empty()) return {};
  std::string text = fmt::format("{}{}:\n", spaces(indent), key);
  for (const RampPoint& point : ramp) {
    text += fmt::format("{}- {{volume: {} B, time: {}}}\n", spaces(indent + 2), point.volume.value,
                        exact(point.time));
  }
  return text;
}

std::string nccl_tier_text(std::string_view key, const NcclTier& tier, std::size_t indent) {
  std::string text = fmt::format("{}{}:\n", spaces(indent), key);
  const auto add = [&](const char* name, const std::optional<Bandwidth>& rate) {
    if (rate) text += fmt::format("{}{}: {}\n", spaces(indent + 2), name, exact(*rate));
  };
  add("rank_bandwidth", tier.rank_bandwidth);
  add("rank_total_bandwidth", tier.rank_total_bandwidth);
  add("pair_bandwidth", tier.pair_bandwidth);
  add("pair_total_bandwidth", tier.pair_total_bandwidth);
  if (tier.beside_kernels) {
    text += fmt::format("{}beside_kernels: {}\n", spaces(indent + 2), *tier.beside_kernels);
  }
  if (tier.channels) text += fmt::format("{}channels: {}\n", spaces(indent + 2), *tier.channels);
  if (tier.pair_channels) {
    text += fmt::format("{}pair_channels: {}\n", spaces(indent + 2), *tier.pair_channels);
  }
  if (tier.chunk) text += fmt::format("{}chunk: {} B\n", spaces(indent + 2), tier.chunk->value);
  if (tier.ll_chunk) {
    text += fmt::format("{}ll_chunk: {} B\n", spaces(indent + 2), tier.ll_chunk->value);
  }
  if (tier.few_channels) {
    text += fmt::format("{}few_channels: {}\n", spaces(indent + 2), *tier.few_channels);
  }
  text += spaces(indent + 2) + "segments:\n";
  for (const MessageSegment& segment : tier.segments) {
    text += spaces(indent + 4) + "- {";
    if (segment.up_to) text += fmt::format("up_to: {} B, ", segment.up_to->value);
    text += "alpha: " + exact(segment.alpha);
    if (segment.bandwidth) text += ", bandwidth: " + exact(*segment.bandwidth);
    if (segment.channel_bandwidth) {
      text += ", channel_bandwidth: " + exact(*segment.channel_bandwidth);
    }
    text += "}\n";
  }
  if (tier.start.empty()) return text;
  text += spaces(indent + 2) + "start:\n";
  const std::size_t inner = indent + 6;
  for (const StartCost& cost : tier.start) {
    text += fmt::format("{}- launch: {}\n{}per_peer: {}\n", spaces(inner - 2), exact(cost.launch),
                        spaces(inner), exact(cost.per_peer));
    if (cost.up_to) text += fmt::format("{}up_to: {} B\n", spaces(inner), cost.up_to->value);
    if (cost.per_doubling.value > 0.0) {
      text += fmt::format("{}per_doubling: {}\n", spaces(inner), exact(cost.per_doubling));
    }
    if (cost.first_bandwidth) {
      text += fmt::format("{}first_bandwidth: {}\n", spaces(inner), exact(*cost.first_bandwidth));
    }
    text += ramp_text("ramp", cost.ramp, inner) +
            ramp_text("shared_ramp", cost.shared_ramp, inner) +
            ramp_text("socket_ramp", cost.socket_ramp, inner);
  }
  return text;
}

// Kernels ----------------------------------------------------------------------------------------

// The keys of a block of plain values, told to a reader and to a writer alike: `visit(key, value)`
// for those that must be given, `visit(key, value, default)` for the others.
template <class Costs, class Visitor>
void visit_keys(Costs& costs,
                Visitor& visit) requires std::is_same_v<std::remove_const_t<Costs>, CopyKernel> {
  visit("fixed", costs.fixed);
  visit("least", costs.least, true);
  visit("first_row", costs.first_row);
  visit("first_rows", costs.first_rows);
  visit("fill", costs.fill, true);
  visit("fill_tokens", costs.fill_tokens, 1e-3, 1e9);
  visit("token", costs.token, true);
  visit("row", costs.row, true);
  visit("row_floor", costs.row_floor, true);
  visit("bandwidth", costs.bandwidth);
  visit("receive_share", costs.receive_share, 0.0, 10.0);
  visit("token_bandwidth", costs.token_bandwidth);
  visit("pair_gain", costs.pair_gain, 0.01, 1e4);
  visit("port_bandwidth", costs.port_bandwidth);
}
template <class Costs, class Visitor>
void visit_keys(Costs& costs,
                Visitor& visit) requires std::is_same_v<std::remove_const_t<Costs>, PutKernel> {
  visit("fixed", costs.fixed);
  visit("peer", costs.peer, true);
  visit("token_row", costs.token_row, true);
  visit("token", costs.token, true);
  visit("row", costs.row, true);
  visit("port_bandwidth", costs.port_bandwidth);
}

template <class Costs, class Visitor>
void visit_keys(Costs& costs,
                Visitor& visit) requires std::is_same_v<std::remove_const_t<Costs>, DirectKernel> {
  visit("fixed", costs.fixed);
  visit("peer", costs.peer, true);
  visit("token", costs.token, true);
  visit("row", costs.row, true);
  visit("sm_bandwidth", costs.sm_bandwidth);
  visit("sm_port_bandwidth", costs.sm_port_bandwidth);
  visit("quantise_bandwidth", costs.quantise_bandwidth);
  visit("port_bandwidth", costs.port_bandwidth);
  visit("copy_bandwidth", costs.copy_bandwidth);
}

struct KeyReader {
  LayeredMap& map;
  void operator()(const char* key, Seconds& value, bool optional = false) const {
    if (optional && !map.has(key)) {
      (void)map.optional(key);
      return;
    }
    value = map.required(key).as_seconds();
  }
  void operator()(const char* key, Bandwidth& value) const {
    value = positive_bandwidth(map.required(key));
  }
  void operator()(const char* key, std::optional<Bandwidth>& value) const {
    if (const auto given = map.optional(key)) {
      if (!says(*given, "none")) value = positive_bandwidth(*given);
    }
  }
  void operator()(const char* key, double& value, double min, double max) const {
    value = number_or(map, key, min, max, value);
  }
};

struct KeyWriter {
  std::string text;
  void operator()(const char* key, const Seconds& value, bool optional = false) {
    if (!optional || value.value != 0.0) add(key, exact(value));
  }
  void operator()(const char* key, const Bandwidth& value) { add(key, exact(value)); }
  void operator()(const char* key, const std::optional<Bandwidth>& value) {
    if (value) add(key, exact(*value));
  }
  void operator()(const char* key, const double& value, double /*min*/, double /*max*/) {
    add(key, fmt::format("{}", value));
  }

 private:
  void add(const char* key, const std::string& value) {
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", key, value);
  }
};

template <class Kernel>
std::optional<Kernel> read_kernel(LayeredMap& parent, const std::string& key) {
  auto map = parent.block(key);
  if (!map) return std::nullopt;
  Kernel kernel;
  const KeyReader reader{*map};
  visit_keys(kernel, reader);
  map->finish();
  return kernel;
}
template <class Kernel>
Kernel required_kernel(LayeredMap& parent, const std::string& key) {
  auto kernel = read_kernel<Kernel>(parent, key);
  if (!kernel) (void)parent.required(key);
  if (!kernel) throw parent.place().error("\"" + key + "\" as none", "the kernel's costs");
  return *kernel;
}
template <class Kernel>
std::string kernel_line(std::string_view key, const Kernel& kernel) {
  KeyWriter writer;
  visit_keys(kernel, writer);
  return fmt::format("{}{}: {{{}}}\n", spaces(kIndent), key, writer.text);
}

std::uint32_t read_sms(LayeredMap& map) {
  return static_cast<std::uint32_t>(map.required("sms").as_integer(1, 1 << 16));
}

// Readers and writers ----------------------------------------------------------------------------

void read(LayeredMap& /*map*/, IdealParameters& /*parameters*/) {}
void read(LayeredMap& map, NcclParameters& parameters) {
  parameters.scale_up = read_nccl_tier(map, "scale_up");
  parameters.network = read_nccl_tier(map, "network");
}
void read(LayeredMap& map, DeepepNormalParameters& parameters) {
  parameters.sms = read_sms(map);
  if (parameters.sms % 2 != 0) {
    const YamlValue sms = map.required("sms");
    throw sms.error(sms.excerpt(), "an even number: half of them send, half receive");
  }
  if (const auto notify = map.optional("notify")) parameters.notify = notify->as_seconds();
  parameters.dispatch = required_kernel<CopyKernel>(map, "dispatch");
  parameters.combine = required_kernel<CopyKernel>(map, "combine");
  parameters.dispatch_between = read_kernel<CopyKernel>(map, "dispatch_between");
  parameters.combine_between = read_kernel<CopyKernel>(map, "combine_between");
}
void read(LayeredMap& map, DeepepLowLatencyParameters& parameters) {
  parameters.sms = read_sms(map);
  parameters.max_tokens_per_rank =
      static_cast<std::uint32_t>(map.required("max_tokens_per_rank").as_integer(1, 1 << 24));
  parameters.dispatch = required_kernel<PutKernel>(map, "dispatch");
  parameters.combine = required_kernel<PutKernel>(map, "combine");
}
void read(LayeredMap& map, NvlinkOneSidedParameters& parameters) {
  parameters.sms = read_sms(map);
  parameters.dispatch = required_kernel<PutKernel>(map, "dispatch");
  parameters.combine = required_kernel<PutKernel>(map, "combine");
}

void read(LayeredMap& map, DirectParameters& parameters) {
  parameters.sms = read_sms(map);
  if (const auto notify = map.optional("notify")) parameters.notify = notify->as_seconds();
  if (const auto announce = map.optional("announce")) {
    parameters.announce = announce->as_seconds();
  }
  parameters.dispatch = required_kernel<DirectKernel>(map, "dispatch");
  parameters.combine = required_kernel<DirectKernel>(map, "combine");
  parameters.forward = read_kernel<DirectKernel>(map, "forward");
  parameters.gather = read_kernel<DirectKernel>(map, "gather");
}

std::string text_of(const IdealParameters& /*parameters*/) {
  return {};
}
std::string text_of(const NcclParameters& parameters) {
  std::string text;
  if (parameters.scale_up) text += nccl_tier_text("scale_up", *parameters.scale_up, kIndent);
  if (parameters.network) text += nccl_tier_text("network", *parameters.network, kIndent);
  return text;
}

std::string text_of(const DeepepNormalParameters& parameters) {
  std::string text = fmt::format("{}sms: {}\n", spaces(kIndent), parameters.sms);
  if (parameters.notify)
    text += fmt::format("{}notify: {}\n", spaces(kIndent), exact(*parameters.notify));
  text += kernel_line("dispatch", parameters.dispatch) + kernel_line("combine", parameters.combine);
  if (const auto& kernel = parameters.dispatch_between)
    text += kernel_line("dispatch_between", *kernel);
  if (const auto& kernel = parameters.combine_between)
    text += kernel_line("combine_between", *kernel);
  return text;
}
std::string text_of(const DeepepLowLatencyParameters& parameters) {
  return fmt::format("{0}sms: {1}\n{0}max_tokens_per_rank: {2}\n", spaces(kIndent), parameters.sms,
                     parameters.max_tokens_per_rank) +
         kernel_line("dispatch", parameters.dispatch) + kernel_line("combine", parameters.combine);
}
std::string text_of(const NvlinkOneSidedParameters& parameters) {
  return fmt::format("{}sms: {}\n", spaces(kIndent), parameters.sms) +
         kernel_line("dispatch", parameters.dispatch) + kernel_line("combine", parameters.combine);
}

std::string text_of(const DirectParameters& parameters) {
  std::string text = fmt::format("{}sms: {}\n", spaces(kIndent), parameters.sms);
  if (parameters.notify) {
    text += fmt::format("{}notify: {}\n", spaces(kIndent), exact(*parameters.notify));
  }
  if (parameters.announce.value != 0.0) {
    text += fmt::format("{}announce: {}\n", spaces(kIndent), exact(parameters.announce));
  }
  text += kernel_line("dispatch", parameters.dispatch) + kernel_line("combine", parameters.combine);
  if (const auto& kernel = parameters.forward) text += kernel_line("forward", *kernel);
  if (const auto& kernel = parameters.gather) text += kernel_line("gather", *kernel);
  return text;
}

constexpr std::array<std::string_view, std::variant_size_v<TransportParameters>> kNames{
    "ideal", "nccl", "deepep_normal", "deepep_low_latency", "nvlink_one_sided", "direct"};

// One of each kind, in the variant's order.
template <std::size_t... I>
std::vector<TransportParameters> one_of_each(std::index_sequence<I...>) {
  return {TransportParameters(std::in_place_index<I>)...};
}
TransportParameters blank(std::size_t kind) {
  static const std::vector<TransportParameters> kBlanks =
      one_of_each(std::make_index_sequence<std::variant_size_v<TransportParameters>>());
  return kBlanks[kind];
}

std::size_t transport_index(std::string_view name) {
  return static_cast<std::size_t>(std::find(kNames.begin(), kNames.end(), name) - kNames.begin());
}

TransportParameters read_one(LayeredMap& map, std::size_t kind) {
  TransportParameters parameters = blank(kind);
  std::visit([&](auto& alternative) { read(map, alternative); }, parameters);
  map.finish();
  return parameters;
}

std::string text_of_one(const TransportParameters& parameters) {
  const std::string text =
      std::visit([](const auto& alternative) { return text_of(alternative); }, parameters);
  if (text.empty()) return fmt::format("  {}: {{}}\n", transport_name(parameters));
  return fmt::format("  {}:\n{}", transport_name(parameters), text);
}

std::string known_names() {
  return fmt::format("{}", fmt::join(kNames, ", "));
}

// The multiprocessors that a kernel holds; none for transports that hold none.
std::uint32_t sms_of(const TransportParameters& parameters) {
  return std::visit(
      [](const auto& alternative) -> std::uint32_t {
        if constexpr (requires { alternative.sms; }) return alternative.sms;
        return 0;
      },
      parameters);
}

void check_sms(const Cluster& cluster, const TransportParameters& parameters,
               const std::string& where) {
  if (sms_of(parameters) <= cluster.gpu.num_sms) return;
  throw InputError(where, fmt::format("{} multiprocessors (sms)", sms_of(parameters)),
                   fmt::format("at most the {} of a {}", cluster.gpu.num_sms, cluster.gpu.name));
}

// The transport of this name that the topology describes.
TransportParameters described(const Cluster& cluster, const std::string& name) {
  if (transport_index(name) == kNames.size()) {
    throw InputError("transport", fmt::format("\"{}\"", name), "one of " + known_names());
  }
  std::vector<std::string> there;
  for (const TransportParameters& parameters : cluster.transports) {
    if (transport_name(parameters) == name) return parameters;
    there.emplace_back(transport_name(parameters));
  }
  if (name == kNames[0]) return IdealParameters{};
  if (std::find(there.begin(), there.end(), kNames[0]) == there.end()) {
    there.emplace_back(kNames[0]);
  }
  throw InputError(
      "transport",
      fmt::format("\"{}\", which topology {} has no parameters for", name, cluster.name),
      fmt::format("one of {}, or a topology that describes it under \"transports\"",
                  fmt::join(there, ", ")));
}

}  // namespace

std::string_view transport_name(const TransportParameters& parameters) {
  return kNames[parameters.index()];
}

bool counts_rows(const TransportParameters& parameters) {
  return !std::holds_alternative<IdealParameters>(parameters) &&
         !std::holds_alternative<NcclParameters>(parameters);
}

std::vector<std::string> transport_names() {
  return {kNames.begin(), kNames.end()};
}

TransportParameters chosen_transport(const Cluster& cluster, const TransportChoice& choice) {
  TransportParameters parameters = IdealParameters{};
  if (choice.name) {
    parameters = described(cluster, *choice.name);
  } else if (!cluster.transports.empty()) {
    parameters = cluster.transports.front();
  }
  const std::string name =
      fmt::format("transport {} of topology {}", transport_name(parameters), cluster.name);
  if (choice.settings.empty()) {
    check_sms(cluster, parameters, name);
    return parameters;
  }
  // Settings get the checks of the file: they are laid over the parameters' own text.
  constexpr std::string_view kBlock = "transport.";
  std::vector<Override> settings = choice.settings;
  for (Override& setting : settings) {
    setting.key.insert(0, kBlock);
    if (setting.parent.ends_with(kBlock)) {
      setting.parent.resize(setting.parent.size() - kBlock.size());
    }
  }
  std::string text =
      std::visit([](const auto& alternative) { return text_of(alternative); }, parameters);
  text = text.empty() ? "transport: {}\n" : "transport:\n" + text;
  LayeredMap map({parse_yaml(text, name, settings).as_map().required("transport").as_map()});
  parameters = read_one(map, parameters.index());
  check_sms(cluster, parameters, name);
  return parameters;
}

double channels_per_peer(std::uint32_t channels, std::uint32_t num_ranks) {
  std::uint64_t dealt = 1;
  while (2 * dealt * num_ranks <= channels) dealt *= 2;
  return static_cast<double>(dealt);
}

DealtMessage deal_message(const NcclTier& tier, std::uint32_t num_ranks, double bytes) {
  const std::uint32_t channels = tier.channels.value();
  if (!tier.chunk) return {channels_per_peer(channels, num_ranks), bytes};
  constexpr double kLeastPart = 1.0 / 8.0;  // of a chunk
  constexpr double kLargestPart = 32.0;     // chunks
  const double most = tier.pair_channels.value_or(channels);
  double all = most;
  while (all * num_ranks > channels && all > 1.0) all = std::floor(all / 2.0);
  const auto least_parts = [&](Bytes chunk) {
    return std::clamp(std::ceil(bytes / (kLeastPart * static_cast<double>(chunk.value))), 1.0, all);
  };
  const auto& first = tier.segments.front().up_to;
  if (tier.ll_chunk && first && bytes / most <= static_cast<double>(first->value)) {
    return {least_parts(*tier.ll_chunk), bytes / most};
  }
  const double largest = kLargestPart * static_cast<double>(tier.chunk->value);
  double dealt = least_parts(*tier.chunk);
  while (bytes / dealt > largest && 2.0 * dealt <= most) dealt *= 2.0;
  return {dealt, bytes / (tier.ll_chunk ? most : dealt)};
}

std::vector<std::string> transport_warnings(const Cluster& cluster) {
  std::vector<std::string> warnings;
  const auto add = [&](std::string_view block, std::string_view tier) {
    warnings.push_back(
        fmt::format("transport nccl has no costs for \"{}\": its messages take what the links take "
                    "(transports.nccl.{} gives them)",
                    block, tier));
  };
  for (const TransportParameters& parameters : cluster.transports) {
    const auto* nccl = std::get_if<NcclParameters>(&parameters);
    if (nccl == nullptr) continue;
    if (cluster.scale_up && !nccl->scale_up) add("scale_up", "scale_up");
    if (cluster.nic && !nccl->network) add("nic", "network");
  }
  return warnings;
}

std::vector<TransportParameters> read_transports(LayeredMap& map) {
  std::vector<TransportParameters> transports;
  for (const std::string& key : map.keys()) {
    const std::size_t kind = transport_index(key);
    if (kind == kNames.size()) continue;  // finish() says what is wrong with it
    if (auto block = map.block(key)) transports.push_back(read_one(*block, kind));
  }
  for (const std::string_view name : kNames) (void)map.optional(std::string(name));
  map.finish();
  return transports;
}

std::string transports_text(const std::vector<TransportParameters>& transports) {
  if (transports.empty()) return {};
  std::string text = "transports:\n";
  for (const TransportParameters& parameters : transports) text += text_of_one(parameters);
  return text;
}

}  // namespace coterie
