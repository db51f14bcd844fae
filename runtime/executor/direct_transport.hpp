#pragma once
// The transport `direct` as the GPU executor uses it: the exchanges of a layer as kernels that write
// into, and read from, the memory of the other ranks (kernels/direct.hpp).
//
// The buffers that others touch, received blocks and results, lie in one region of peer memory per
// rank, the flags in another. At `load` the ranks tell each other where in the regions the blocks of
// each pair lie; from then on nothing passes through the host.
//
// Ranks of one machine are *near* each other and do so. What a rank has for a *far* one, on another
// machine, is put into a block of its own, which the executor sends by NCCL behind the put; results
// come the same way into `returned`, behind the flags and before the pull, which sums them from there.
// Flags join near ranks only: between far ones the messages themselves are the order.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda.hpp"
#include "kernels/direct.hpp"
#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"
#include "runtime/device/communicator.hpp"
#include "runtime/device/peer_memory.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/executor/gpu_tables.hpp"

namespace coterie {

// The channels of flags: one kind of step each, which all ranks carry out equally often.
enum class DirectStep : std::uint8_t {
  kNotify,        // counts, and the barrier before a layer
  kDispatch,      // rows of the first hop
  kForward,       // rows of the second
  kReadyGather,   // results for the second hop's senders stand
  kReadyCombine,  // results for the first hop's senders stand
};
inline constexpr std::uint32_t kNumDirectSteps = 5;
// "the results of the combine".
std::string to_string(DirectStep step);

// Where the buffers of one rank lie in its region of peer memory, in bytes from its beginning.
struct DirectRegion {
  struct Hop {
    std::size_t recv = 0, results = 0;
  };
  Hop hops[2];
  std::size_t num_bytes = 0;
};
// Large enough for each of the layers.
DirectRegion plan_region(const LayerShape& shape, const std::vector<RankLayout>& layouts);

// What this rank tells `peer`: for every layer, every hop that joins the two, and every round of it,
// where in this rank's region the block of that peer's rows lies, and where their results do.
// The peer reads them in the same order.
struct DirectPlace {
  std::uint64_t recv = 0, results = 0;
  friend bool operator==(const DirectPlace&, const DirectPlace&) = default;
};
std::vector<DirectPlace> places_for(const LayerShape& shape, const std::vector<RankLayout>& layouts,
                                    const DirectRegion& region, std::uint32_t peer);

class DirectTransport {
 public:
  // Collective. Throws InputError where the GPU is too old, DeviceError where memory cannot be shared.
  DirectTransport(ControlGroup& group, const RankEnvironment& environment, const GpuShare& share);
  // Ends all waits of kernels that are still under way.
  ~DirectTransport();
  DirectTransport(const DirectTransport&) = delete;
  DirectTransport& operator=(const DirectTransport&) = delete;

  // Collective: makes room for the layers and gives the buffers of `buffers` that others touch their
  // places in peer memory. No work of earlier layers may be under way on any rank.
  void place_buffers(const LayerShape& shape, const std::vector<RankLayout>& layouts,
                     RunBuffers& buffers);
  // Collective, behind the tables of all layers and the buffers that they use (which place_buffers
  // gave): exchanges the places of the blocks.
  void connect(const LayerShape& shape, const std::vector<RankLayout>& layouts,
               const std::vector<LayerTables>& tables, const RunBuffers& buffers,
               const DirectOptions& options);

  // Whether rows to and from a rank go by NCCL; whether any do; and from how many machines they come.
  [[nodiscard]] bool is_far(std::uint32_t rank) const { return !near_[rank]; }
  [[nodiscard]] bool has_far_ranks() const;
  // Throws InputError where a rank is far; `what` cannot be had then.
  void require_one_machine(const std::string& what) const;

  // Whether the own rows of a layer stay among its tokens: one hop, one round.
  [[nodiscard]] static bool keeps_own_rows(const RankLayout& layout) {
    return layout.hops.size() == 1 && layout.num_rounds() == 1;
  }

  // The exchanges with near ranks, as the executor enqueues them.
  void notify(const LayerTables& tables, cudaStream_t stream);
  // A round of the first hop, whose index has been built.
  void dispatch(std::size_t layer_idx, std::uint32_t round, const kernels::Bf16* tokens,
                const kernels::TokenRouting& routing, const kernels::SendIndex& index,
                cudaStream_t stream);
  void forward(std::size_t layer_idx, std::uint32_t round, const kernels::ReceivedRows& received,
               const kernels::SendIndex& index, cudaStream_t stream);
  // Says that this rank's results of a hop stand, and waits until those of its peers do.
  void announce_results(std::size_t layer_idx, std::size_t hop, cudaStream_t stream);
  void gather(std::size_t layer_idx, std::uint32_t round, const kernels::ReceivedRows& received,
              const kernels::SendIndex& index, kernels::Bf16* results, cudaStream_t stream);
  void combine(std::size_t layer_idx, std::uint32_t round, const kernels::TokenRouting& routing,
               const kernels::SendIndex& index, kernels::Bf16* outputs, const kernels::Bf16* addend,
               cudaStream_t stream);

  // Waits until `event` has passed, at most the group's step deadline, in the group's current stage,
  // with `look` beside it (polling.hpp). Throws PeerError with the group's verdict.
  void wait_for(
      const kernels::Event& event, const std::function<void()>& look = [] {});
  // Ends all waits of kernels that are still under way, when an exception unwinds.
  void stop();

  [[nodiscard]] std::uint32_t sms() const { return options_.sms; }
  // For benchmarks: how put and pull use shared memory; zero: as they choose.
  kernels::RingShape put_shape, pull_shape;
  [[nodiscard]] std::byte* own_region_of(std::uint32_t rank) const { return memory_.of(rank); }
  [[nodiscard]] std::size_t region_bytes() const { return region_.num_bytes; }
  void set_sms(std::uint32_t sms) { options_.sms = sms; }

 private:
  // Of one hop of one layer.
  struct HopTargets {
    kernels::DeviceBuffer<std::uint32_t> peers;  // near ranks, without this one
    struct Round {
      kernels::DeviceBuffer<std::byte*> blocks;
      kernels::DeviceBuffer<const kernels::Bf16*> results;
    };
    std::vector<Round> rounds;
  };
  using LayerTargets = std::vector<HopTargets>;

  [[nodiscard]] kernels::FlagChannel channel(
      DirectStep step, const kernels::DeviceBuffer<std::uint32_t>& peers) const;
  [[nodiscard]] const HopTargets& hop(std::size_t layer_idx, std::size_t h) const {
    return layers_[layer_idx][h];
  }
  // Throws the verdict where a kernel gave up waiting.
  void look_at_state();

  ControlGroup& group_;
  std::vector<bool> near_;  // [num_ranks]
  DirectOptions options_;
  LayerShape shape_;
  kernels::WaitState* state_ = nullptr;         // pinned
  kernels::WaitState* device_state_ = nullptr;  // the same, as the device sees it
  PeerMemory flags_;
  PeerMemory memory_;
  kernels::DeviceBuffer<std::byte*> flag_regions_;
  kernels::DeviceBuffer<std::uint32_t> all_peers_;  // near ones
  DirectRegion region_;
  std::vector<LayerTargets> layers_;
  std::vector<bool> own_in_place_;  // parallel to layers_
};

// Collective: the tables of one layer whose steps are measured alone, with its buffers in place.
// `tokens` as for make_layer_tables.
std::vector<LayerTables> load_alone(DirectTransport& transport, const LayerShape& shape,
                                    const LayerPlan& plan, const std::vector<RankLayout>& layouts,
                                    RunBuffers& buffers, const kernels::Bf16* tokens);

}  // namespace coterie
