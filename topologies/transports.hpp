#pragma once
// What transports cost on one machine: the `transports` block of a topology file. A transport is a
// way to move a plan's rows over the hardware (NCCL's send and receive, a kernel of a dispatch
// library); these are its parameters there, typed per transport. How they become operations is
// told in sim/transports/.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/units.hpp"
#include "core/yaml.hpp"

namespace coterie {

class LayeredMap;
struct Cluster;

// `ideal`: the wires alone. No parameters.
struct IdealParameters {};

// Cost of one message of up to `up_to` bytes (the last segment has no limit): a fixed time before
// its first byte moves, and the highest rate a single transfer reaches, or one channel of it (see
// NcclTier). Segments are what protocol switches (NCCL's LL, LL128, Simple) look like from outside.
struct MessageSegment {
  std::optional<Bytes> up_to;
  Seconds alpha;
  std::optional<Bandwidth> bandwidth, channel_bandwidth;
};

// What a rank spends before the first of its sends of a phase (dispatch, combine, ...) leaves: the
// launch of the communication kernel, its set-up per destination, and the time that a transfer
// needs to reach the links' rate. The start cost for messages of up to `up_to` bytes (the rank's
// largest of the phase) is
//   max(0, launch + per_peer * (destinations - 1) + per_doubling * log2((destinations + 1) / 2)
//            + max(ramp(rank's volume) + max(0, dealt - volume / rate) + first,
//                  shared_ramp(shared volume), socket_ramp(volume between sockets), single)
//            - max(what the links alone take, single, dealt))
// where `single` is the largest message at its segment's bandwidth, `dealt` half of what a pair moves
// there and back at its channels', `rate` what the rank reaches on its link, and a ramp says how long a
// volume takes beyond the launch: linear between its points, from zero at zero, and at the links'
// rate after the last. An empty ramp is the links' rate throughout. `first` is what the first chunk of
// every channel costs beyond its part of the stream (NcclTier; zero without a first_bandwidth): nobody
// copies it out before it has come in, so that with a first chunk of q bytes on a channel of the largest
// message, and Q bytes of first chunks on all of the rank's channels in use
//   first = q / channel_bandwidth + Q / first_bandwidth - max(q / channel_bandwidth, Q / rate)
// Under a rank_total_bandwidth (of the links or of the transport) a rank's volume is half of what it sends
// and receives: as much as in an exchange of equal parts.
struct RampPoint {
  Bytes volume;
  Seconds time;
};
struct StartCost {
  std::optional<Bytes> up_to;
  Seconds launch;
  Seconds per_peer;
  std::vector<RampPoint> ramp;         // bytes that the rank sends in the phase
  std::vector<RampPoint> shared_ramp;  // bytes over the shared link of the rank's socket
  std::vector<RampPoint> socket_ramp;  // bytes between the sockets of the domain, both directions
  // Every rank waits for the last of those that it exchanges with: that grows with the logarithm of
  // their number.
  Seconds per_doubling{};
  std::optional<Bandwidth> first_bandwidth{};  // of first chunks
};

// `nccl`: grouped sends and receives, one message per pair.
struct NcclTier {
  std::vector<MessageSegment> segments{MessageSegment{}};  // ascending; never empty
  std::vector<StartCost> start;                            // ascending; empty: none
  // What ranks deal to their peers (channels_per_peer); a channel_bandwidth needs them. A channel moves
  // it each way in an exchange of equal parts: the direction of more bytes gets more of twice it.
  std::optional<std::uint32_t> channels;
  // Of these, the most of one pair of ranks (absent: all), and the largest part that is moved at once.
  // With a chunk a message's channels depend on its size too, and so does what `up_to` of segments and
  // starts counts (deal_message).
  std::optional<std::uint32_t> pair_channels;
  std::optional<Bytes> chunk;
  // The same of messages of the first segment, where they are dealt by a chunk of their own: NCCL's LL
  // before 2.29.
  std::optional<Bytes> ll_chunk;
  // How many times as long what joins the sockets takes (or, where nothing does, the shared link) while
  // a rank's largest message has fewer than pair_channels: less is on its way at once. At least 1.
  std::optional<double> few_channels;
  // What a rank's messages reach together, each direction; absent: what the links carry.
  std::optional<Bandwidth> rank_bandwidth;
  // The same of both directions together, where the kernel's blocks move what comes and what goes.
  std::optional<Bandwidth> rank_total_bandwidth;
  // What two ranks exchange over the channels of their connection, each direction and both together;
  // absent: what a rank reaches.
  std::optional<Bandwidth> pair_bandwidth, pair_total_bandwidth;
  // How many times as long an exchange takes while kernels that move rows have one of its GPUs'
  // memory, on another stream; at least 1, absent: as long as alone.
  std::optional<double> beside_kernels;
};

// The channels over which two of `num_ranks` ranks exchange: the largest power of two of which
// num_ranks times as many are no more than `channels`; at least one.
[[nodiscard]] double channels_per_peer(std::uint32_t channels, std::uint32_t num_ranks);

// How NCCL deals a message to channels (addP2pToPlan of its src/enqueue.cc).
struct DealtMessage {
  double channels = 1.0;
  double protocol_size = 0.0;  // bytes, by which segments and starts are told apart
};

// A message of `bytes` has as many of pair_channels as num_ranks ranks can all have, or fewer, so that
// each has an eighth of a chunk; twice as many, up to pair_channels, as long as each has more than 32
// chunks. Its protocol goes by the part of one channel. With an ll_chunk it goes by the part that all of
// pair_channels would have, and messages of the first segment are dealt by that chunk. Without a chunk
// there are channels_per_peer, and `bytes` decide. The tier has channels.
[[nodiscard]] DealtMessage deal_message(const NcclTier& tier, std::uint32_t num_ranks,
                                        double bytes);

struct NcclParameters {
  // Absent: messages of the tier cost what the links take.
  std::optional<NcclTier> scale_up, network;
};

// A kernel that copies rows with a part of the GPU's multiprocessors: some of them send, the others
// receive. Two multiprocessors, one of each, are a *channel*; the tokens of a rank are dealt to its
// channels. With n tokens and r rows per channel, rows of b bytes, and f rows per token, a rank
//
//   starts   fixed + b / first_row + f * b / first_rows + fill * (1 - exp(-n / fill_tokens))
//   sends    n * token + r * row(b)        with row(b) = max(row_floor, row + b / bandwidth)
//   receives receive_share * r' * row(b) + n' * b / token_bandwidth
//
// where r' rows come in, and the last term counts the n' tokens whose results are added up (combine).
// To one destination alone it sends r" rows in n * token + r" * row(b) * P / pair_gain: the warps are
// dealt to P destinations. What goes to other GPUs is limited by port_bandwidth (of a GPU) as well;
// of kernels that work in two hops, what goes to other nodes. No exchange takes less than `least`:
// a host that starts kernels one by one starts the next no sooner, however short they are.
struct CopyKernel {
  Seconds fixed;
  Seconds least;
  std::optional<Bandwidth> first_row;   // absent: no time
  std::optional<Bandwidth> first_rows;  // likewise
  Seconds fill;
  double fill_tokens = 1.0;
  Seconds token;
  Seconds row;
  Seconds row_floor;
  Bandwidth bandwidth;
  double receive_share = 1.0;
  std::optional<Bandwidth> token_bandwidth;  // absent: nothing is added up
  double pair_gain = 1.0;
  std::optional<Bandwidth> port_bandwidth;  // absent: the links'
};

// `deepep_normal`: DeepEP's normal kernels. Rows that stay on their rank are copied like others.
struct DeepepNormalParameters {
  std::uint32_t sms = 24;         // of the kernel; even
  std::optional<Seconds> notify;  // exchange of counts before a dispatch; absent: the overhead's
  CopyKernel dispatch, combine;
  // The kernels that cross nodes, in two hops; absent: as inside a node.
  std::optional<CopyKernel> dispatch_between, combine_between;
};

// A kernel that puts rows into the receiver's memory: a rank with P peers, f rows per token to other
// ranks and T tokens in all (one that pulls: its tokens wait for their rows while others' come)
//
//   starts   fixed + P * peer + f * token_row (one that pulls: without the last term)
//   sends    max(T * token / multiprocessors, rows * row, bytes over links / port_bandwidth)
struct PutKernel {
  Seconds fixed;
  Seconds peer;
  Seconds token_row;
  Seconds token;  // on one multiprocessor
  Seconds row;    // 1 / message rate of a rank
  Bandwidth port_bandwidth;
};

// `deepep_low_latency`: one put per (token, expert), nothing de-duplicated or forwarded.
struct DeepepLowLatencyParameters {
  std::uint32_t sms = 1;
  std::uint32_t max_tokens_per_rank = 1;  // what its buffers hold
  PutKernel dispatch, combine;
};

// `nvlink_one_sided`: one put per (token, rank); combine pulls, for f * token_row or longer.
struct NvlinkOneSidedParameters {
  std::uint32_t sms = 1;
  PutKernel dispatch, combine;
};

// `direct`: the runtime's own one-sided kernels (kernels/direct.hpp). A put (dispatch) or pull (combine) of
// a rank with P peers, T items (tokens, or rows that a first hop brought) and r rows
//
//   starts   fixed + P * peer
//   moves    (T * token + r * row + bytes of items and of rows within the GPU / sm_bandwidth
//             + bytes of rows from or to other GPUs / sm_port_bandwidth
//             + bytes of quantised items / quantise_bandwidth) / multiprocessors
//
// The bytes of items are read once each, and a pull's are written. The rows for other GPUs of all
// ranks of a GPU take at least their bytes / port_bandwidth in each direction of its port, those
// that stay on the GPU at least their bytes / copy_bandwidth.
struct DirectKernel {
  Seconds fixed;
  Seconds peer;
  Seconds token, row;  // of one multiprocessor
  Bandwidth sm_bandwidth;
  std::optional<Bandwidth> sm_port_bandwidth;   // absent: sm_bandwidth
  std::optional<Bandwidth> quantise_bandwidth;  // absent: quantising takes no time
  Bandwidth port_bandwidth;
  std::optional<Bandwidth> copy_bandwidth;  // absent: half of what the memory reaches
};
struct DirectParameters {
  std::uint32_t sms = 16;
  std::optional<Seconds> notify;  // exchange of counts before a dispatch; absent: the overhead's
  // From when the last rank has results for a pull until all know: a kernel that exchanges flags.
  Seconds announce;
  DirectKernel dispatch, combine;
  // Of the second hop, whose kernels read what a first hop brought: rows to pass on, results to sum. They share
  // the ports and copies of the two above, at whose rates these go. Absent: as the two above.
  std::optional<DirectKernel> forward = std::nullopt, gather = std::nullopt;
};

// In the order in which the names are listed.
using TransportParameters =
    std::variant<IdealParameters, NcclParameters, DeepepNormalParameters,
                 DeepepLowLatencyParameters, NvlinkOneSidedParameters, DirectParameters>;

// "nccl".
std::string_view transport_name(const TransportParameters& parameters);
// All that there are, in the variant's order.
std::vector<std::string> transport_names();

// Whether messages must say of how many rows they consist: costs depend on it.
bool counts_rows(const TransportParameters& parameters);

// What an experiment, or a command's options, says of the transport.
struct TransportChoice {
  std::optional<std::string> name;  // absent: the topology's first, else `ideal`
  // Parameters that replace the topology's, by their dotted key below the transport ("sms",
  // "network.segments").
  std::vector<Override> settings;
};

// The parameters of a chosen transport on a cluster, with the settings in place. `ideal` needs
// none. Throws InputError for a name that no transport has, for one that the topology has no
// parameters for, and for settings that do not fit (more multiprocessors than the GPU has among
// them).
TransportParameters chosen_transport(const Cluster& cluster, const TransportChoice& choice);

// What a reader of the topology should know: tiers of the hardware that a described transport has
// no costs for, whose messages take the links' time alone. One sentence each.
std::vector<std::string> transport_warnings(const Cluster& cluster);

// Reads the `transports` block, in the order of its keys: those of the topmost layer first.
std::vector<TransportParameters> read_transports(LayeredMap& map);
// The block as YAML text; empty where there are none.
std::string transports_text(const std::vector<TransportParameters>& transports);

}  // namespace coterie
