#pragma once
// What the GPU executor keeps in device memory: buffers that the layers of a run use in turn, and
// the tables of each layer that its kernels are driven by.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/phase.hpp"
#include "kernels/cuda.hpp"
#include "kernels/expert_mlp.hpp"
#include "kernels/index.hpp"
#include "kernels/layout.hpp"
#include "kernels/rows.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/executor/layout.hpp"
#include "runtime/executor/shared_experts.hpp"

namespace coterie {

// A buffer that several layers use in turn: grows to the largest request, unless it has been given
// its place in memory that somebody else owns.
template <class T>
class SharedBuffer {
 public:
  void need(std::size_t size) { size_ = std::max(size_, size); }
  // Allocates what was asked for since the last call, if that is more than there is.
  void allocate() {
    if (placed_ == nullptr && size_ > buffer_.size()) {
      buffer_ = kernels::DeviceBuffer<T>();
      buffer_ = kernels::DeviceBuffer<T>(size_);
    }
  }
  // Null: its own memory again.
  void place(T* data) {
    placed_ = data;
    if (placed_ != nullptr) buffer_ = kernels::DeviceBuffer<T>();
  }
  [[nodiscard]] T* data() const { return placed_ != nullptr ? placed_ : buffer_.data(); }

 private:
  std::size_t size_ = 0;
  T* placed_ = nullptr;
  kernels::DeviceBuffer<T> buffer_;
};

// Buffers of one hop; rows of one round follow those of the round before.
struct HopBuffers {
  SharedBuffer<std::byte> send, recv;    // blocks
  SharedBuffer<kernels::Bf16> results;   // by received row
  SharedBuffer<kernels::Bf16> returned;  // by sent row
};

struct RunBuffers {
  HopBuffers hops[2];
  SharedBuffer<kernels::Bf16> expert_in, expert_out;
  SharedBuffer<std::byte> workspace;  // of the index kernels

  void need(const LayerShape& shape, const RankLayout& layout);
  void allocate();
};

// One round of a hop: blocks are numbered from its own first row and copy.
struct RoundTables {
  std::vector<kernels::TransferBlock> host_send, host_recv;
  kernels::DeviceBuffer<kernels::TransferBlock> send_blocks;  // written by the index kernels
  kernels::DeviceBuffer<kernels::TransferBlock> recv_blocks;
  std::byte* send_buffer = nullptr;  // where its send blocks begin
  kernels::SendIndex index{};        // into the tables of the hop
};

// Tables of one hop of one layer.
struct HopTables {
  kernels::DeviceBuffer<std::uint16_t> slot_dest;
  kernels::DeviceBuffer<std::uint32_t> item_rows, row_item, row_mask;
  std::vector<RoundTables> rounds;
  // All received blocks, round after round, numbered through: what the receiver's kernels see.
  kernels::DeviceBuffer<kernels::TransferBlock> all_recv_blocks;
};

// A phase from the first of its operations on a stream to the last.
struct PhaseMarks {
  Phase phase = Phase::kNotify;
  kernels::Event begin, end;
  // What other streams wait for while a graph is captured, where `end` is recorded by its launches.
  kernels::Event captured_end;
};

struct LayerTables {
  kernels::DeviceBuffer<std::uint16_t> token_slots, slot_local;
  kernels::DeviceBuffer<float> token_weights;
  std::vector<HopTables> hops;
  kernels::DeviceBuffer<std::uint32_t> copy_slot, expert_begin;
  kernels::DeviceBuffer<std::uint32_t> counts_out, counts_in;  // [num_ranks][2] rows and copies
  kernels::DeviceBuffer<kernels::Bf16> output;
  std::optional<kernels::ExpertMlp> mlp;
  SharedExperts shared;
  std::vector<PhaseMarks> phases;       // in the order of the layer
  std::vector<kernels::Event> arrived;  // [steps of the plan] the step's messages are there

  [[nodiscard]] PhaseMarks& marks(Phase phase);
};

// `tokens`: the rank's own, [num_tokens][hidden], device memory. The buffers must be allocated.
LayerTables make_layer_tables(const LayerShape& shape, const LayerPlan& plan,
                              const RankLayout& layout, const RunBuffers& buffers,
                              const kernels::Bf16* tokens);

// What was received in one round of a hop, and in all of them.
kernels::ReceivedRows received(const LayerShape& shape, const Hop& hop, const HopTables& tables,
                               std::uint32_t round);
kernels::ReceivedRows received(const LayerShape& shape, const Hop& hop, const HopTables& tables);

// The own rows of a layer of one hop and one round, left among the tokens (kernels/layout.hpp).
kernels::RowsInPlace own_rows_in_place(const RankLayout& layout, const LayerTables& tables,
                                       const kernels::Bf16* tokens);

// The phase expand: the index of what the last hop brought, and its rows in the order of the experts.
// `tokens_in_place`: where a rank's own rows are read, null where they were sent like the others.
void enqueue_expand(const LayerShape& shape, const RankLayout& layout, const LayerTables& tables,
                    const RunBuffers& buffers, const kernels::Bf16* tokens_in_place,
                    cudaStream_t stream);

}  // namespace coterie
