#pragma once
// What the probe measures, as plain data: a function of the number of ranks and of how they share
// their GPUs, so that every rank makes the same plan and a test can read it without a GPU.

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/grouped_gemm.hpp"
#include "kernels/layout.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie {

// The parts of a probe in the order in which they are measured. A part is measured whole.
enum class ProbePart : std::uint8_t {
  kCommunication,
  kNotify,
  kKernels,
  kExpertMlp,
  kOverlap,
  kDirect
};
inline constexpr ProbePart kProbeParts[] = {ProbePart::kCommunication, ProbePart::kNotify,
                                            ProbePart::kKernels,       ProbePart::kExpertMlp,
                                            ProbePart::kOverlap,       ProbePart::kDirect};
// communication, notify, kernels, expert_mlp, overlap, direct
std::string to_string(ProbePart part);
// The inverse; throws InputError for other names.
ProbePart probe_part(const std::string& name);

// The largest message per pair that is measured unless another is asked for: over NVLink as large as those
// of large layers.
inline constexpr std::uint64_t kLeastMaxBytes = std::uint64_t{64} << 20;
inline constexpr std::uint64_t kNvlinkMaxBytes = std::uint64_t{256} << 20;

struct ProbeSetting {
  std::uint32_t num_ranks = 1;
  std::uint32_t num_local_ranks = 1;
  std::uint32_t ranks_per_gpu = 1;
  std::uint64_t max_bytes = kLeastMaxBytes;  // per pair
  bool fp8_products = false;                 // kernels::grouped_gemm_available()
  bool direct = false;                       // whether the transport direct can run
};

// One exchange. The patterns, with B = num_bytes and ranks numbered from 0:
//
//   sendrecv        0 -> 1 and back, the others idle; the time is half of a round trip
//   sendrecv_nodes  the same between rank 0 and the first rank of the second node
//   alltoall        every rank sends B to every other
//   all_to_one      every other rank sends B to rank 0
//   one_to_all      rank 0 sends B to every other rank
//   shift           rank r sends B to rank r + 1 modulo the number of ranks
//   hot_pair        alltoall in which 0 -> 1 carries kHotFactor * B
enum class Pattern : std::uint8_t {
  kSendRecv,
  kSendRecvNodes,
  kAllToAll,
  kAllToOne,
  kOneToAll,
  kShift,
  kHotPair
};
std::string to_string(Pattern pattern);
inline constexpr std::uint32_t kHotFactor = 4;

struct CommunicationCase {
  std::string transport;  // nccl
  Pattern pattern = Pattern::kAllToAll;
  std::uint64_t num_bytes = 0;
};

// Bytes that `src` sends to `dst`; for the two ping-pongs those of the way out.
std::uint64_t pattern_bytes(const CommunicationCase& entry, std::uint32_t num_ranks,
                            std::uint32_t num_local_ranks, std::uint32_t src, std::uint32_t dst);

// Tokens of one rank and the rows that they make: `rows_per_token` destinations of num_dests each,
// among which the topk copies are spread as evenly as can be; or a row of its own for every copy.
struct KernelCase {
  std::uint32_t hidden = 0;
  kernels::RowType type = kernels::RowType::kBf16;
  std::uint32_t num_tokens = 0;
  std::uint32_t num_topk = 0;
  std::uint32_t rows_per_token = 0;
  std::uint32_t num_dests = 0;
  bool row_per_copy = false;
  bool among_streams = false;    // SampleLimits
  std::uint32_t num_rounds = 1;  // > 1: of the kernels only those that a dispatch runs once a round
};

enum class ExpertLoad : std::uint8_t {
  kBalanced,
  kSkewed,  // expert e of a rank has rows in proportion to 1 / (e + 1)
  kMixed,   // between half of the mean and one and a half, in no order
};
std::string to_string(ExpertLoad load);

struct MlpCase {
  bool shared = false;  // the shared experts: one expert, `rows_per_expert` tokens
  std::uint32_t hidden = 0;
  std::uint32_t intermediate = 0;
  kernels::GemmType type = kernels::GemmType::kBf16;
  std::uint32_t num_experts = 0;
  ExpertLoad load = ExpertLoad::kBalanced;
  std::uint32_t rows_per_expert = 0;  // the mean
  bool among_streams = false;         // SampleLimits
};
// Rows of every expert; they sum to num_experts * rows_per_expert.
std::vector<std::uint32_t> expert_rows(const MlpCase& entry);

// An all-to-all and other work that start together on two streams.
struct OverlapCase {
  enum class Work : std::uint8_t {
    kProduct,  // BF16, size cubed
    kCopy,     // of `size` bytes of device memory
  };
  std::uint64_t num_bytes = 0;  // per pair
  Work work = Work::kProduct;
  std::uint64_t size = 0;
};

// Which ranks of its pattern a rank of a direct case sends to: those that share its GPU, those of
// other GPUs, or both. Neighbours share a GPU (GpuShare).
enum class DirectScope : std::uint8_t { kOwnGpu, kOtherGpus, kAll };
// own_gpu, other_gpus, all
std::string to_string(DirectScope scope);

// A layer's exchanges over the transport `direct`. With S the ranks of the scope without the rank
// itself, ascending from the rank's successor on (modulo the number of ranks), and n tokens of every
// rank that sends:
//
//   alltoall    token t goes to S[t f], S[t f + 1], ... S[t f + f - 1], modulo |S|; f = rows_per_token
//   all_to_one  every token of every rank goes to rank 0, whose own number of tokens is zero
//   one_to_all  rank 0's tokens go to its S in turn, the others have none
//   shift       every token goes to S[0]
//   hot_pair    alltoall with one row per token; of rank 0, S[0] gets kHotFactor times as many rows
//               as each of the others
//
// A plan of the policy `hierarchical` has two hops: to the rank of the same place on the node that the
// token goes to, and from there to the ranks of that node. A node is a GPU with its ranks; where each rank
// has a GPU of its own it is half of the ranks.
struct DirectCase {
  Pattern pattern = Pattern::kAllToAll;
  DirectScope scope = DirectScope::kAll;
  DispatchPolicy policy = DispatchPolicy::kDedup;
  std::uint32_t hidden = 0;
  kernels::RowType type = kernels::RowType::kBf16;
  std::uint32_t num_tokens = 0;
  std::uint32_t rows_per_token = 1;
};
// How many multiprocessors the kernels of a direct case may use, one measurement each.
inline constexpr std::uint32_t kDirectSms[] = {8, 16, 24};
inline constexpr std::uint32_t kDirectTopk = 8;
inline constexpr std::uint32_t kDirectLocalExperts = 8;

// The tokens of a rank, and where one of them goes.
std::uint32_t direct_tokens(const DirectCase& entry, std::uint32_t num_ranks,
                            std::uint32_t ranks_per_gpu, std::uint32_t rank);
std::vector<std::uint32_t> direct_destinations(const DirectCase& entry, std::uint32_t num_ranks,
                                               std::uint32_t ranks_per_gpu, std::uint32_t rank,
                                               std::uint32_t token);
// The ranks of a node in plans of two hops; zero where there is no second hop to be had.
std::uint32_t direct_ranks_per_node(std::uint32_t num_ranks, std::uint32_t ranks_per_gpu);
// The whole layer as the planner makes it: kDirectLocalExperts experts per rank; a token's
// kDirectTopk copies are dealt to its destinations in turn.
LayerPlan make_direct_plan(const DirectCase& entry, std::uint32_t num_ranks,
                           std::uint32_t ranks_per_gpu);

struct ProbePlan {
  std::vector<CommunicationCase> communication;
  bool notify = false;
  std::vector<KernelCase> kernels;
  std::vector<MlpCase> expert_mlp;
  std::vector<OverlapCase> overlap;
  std::vector<DirectCase> direct;

  // Parts that are not empty: a single rank exchanges nothing.
  [[nodiscard]] std::vector<ProbePart> parts() const;
};
ProbePlan plan_probe(const ProbeSetting& setting);

// The sizes of a curve: 1 B and every fourth multiple (1, 4, 16, ...) up to `max_bytes`.
std::vector<std::uint64_t> curve_sizes(std::uint64_t max_bytes);

// A routing drawn for a case, and what the kernels need to be driven by it. Destination d hosts
// experts_per_dest experts from d * experts_per_dest on.
struct ProbeRouting {
  std::uint32_t num_experts = 0;
  std::uint32_t experts_per_dest = 0;
  std::vector<std::uint16_t> experts;       // [num_tokens][num_topk], distinct per token
  std::vector<float> weights;               // the same shape, 1/k
  std::vector<std::uint16_t> expert_dest;   // [num_experts]
  std::vector<std::uint16_t> expert_local;  // [num_experts] position on its destination
  std::vector<std::uint16_t> second_dest;   // [num_experts] destination of a second hop
  std::vector<kernels::BlockCounts> first;  // [num_dests] rows and copies of the first hop
  // The same where every row of the first hop is passed on; empty where rows hold one copy each.
  std::vector<kernels::BlockCounts> second;
};
ProbeRouting make_probe_routing(const KernelCase& entry, std::uint64_t seed);

}  // namespace coterie
