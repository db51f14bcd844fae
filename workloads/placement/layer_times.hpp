#pragma once
// What a placement is judged by where time counts: the predicted time of a layer, and rates by which
// a search can follow it swap by swap. Whoever predicts times fills these (the simulator does, from
// the programs that its engines execute); the strategies here know neither links nor transports.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "workloads/placement/fan_out_bound.hpp"
#include "workloads/placement/placement.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

// The time of a layer as a function of what a placement decides, with tokens that start on every
// rank alike (which sequences a rank will be dealt says nothing of what it was dealt in training):
//   X[r]  rows that rank r serves: tokens that have an expert there, or (token, expert) copies
//   N[n]  tokens that have an expert in node n
//   L[e]  tokens of expert e
// A rank that serves r has waited for its rows, computes, and sends its results:
//   time = fixed_s + source_row_s * rows sent per rank
//          + max over r of (out[r] + row_s X[r] + turns[r] + back[r])
//   turns[r] = sum over the ranks q of r's GPU of (turn_row_s X[q] + sum over q's experts of
//              expert_s(L[e]))
// The kernels of ranks that share a GPU take turns, and a rank that ends last has waited for all of
// them; on a GPU of its own a rank waits for nobody. Each direction takes as long as the most loaded of what the rows of r cross: what they alone
// cross (own), and what rows of others cross too (channels).
struct LayerCost {
  // A link or resource that the rows of several ranks share: base_s + sum over nodes of
  // row_s[n] * (X summed over the ranks of n) + relay_s[n] * N[n]. Rows of the nodes with a rate
  // cross it.
  struct Channel {
    double base_s = 0.0;
    std::vector<double> row_s;    // [num_nodes]
    std::vector<double> relay_s;  // [num_nodes]; empty unless rows are relayed
  };
  struct Direction {
    // What only the rows of one rank cross: base + rate * X[r].
    std::vector<double> own_base_s, own_row_s;  // [num_ranks]
    std::vector<Channel> channels;
  };
  std::uint32_t num_ranks = 1;
  std::uint32_t ranks_per_node = 1;
  std::uint32_t ranks_per_gpu = 1;  // neighbours, from rank 0 on
  // X counts (token, expert) pairs: nothing is de-duplicated.
  bool rows_are_copies = false;
  // Hierarchical dispatch: a row per token and node travels to a relay there, which passes it on in
  // so many rounds; the two hops overlap but for one round.
  bool relayed = false;
  std::uint32_t num_rounds = 1;
  Direction out, back;
  double row_s = 0.0;       // of the serving rank's kernels, what passes beside those of others
  double turn_row_s = 0.0;  // likewise, what takes turns with them
  std::function<double(double)> expert_s;  // seconds of one expert's tokens, all kernels
  double source_row_s = 0.0;               // per row that a rank sends, N if relayed
  double fixed_s = 0.0;
  double group_tokens = 0.0;  // of all ranks: what X, N and L sum over

  [[nodiscard]] std::uint32_t num_nodes() const {
    return (num_ranks + ranks_per_node - 1) / ranks_per_node;
  }
};

// Predicts layers of one kind on one machine. Thread-safe.
class LayerTimes {
 public:
  LayerTimes() = default;
  virtual ~LayerTimes() = default;
  LayerTimes(const LayerTimes&) = delete;
  LayerTimes& operator=(const LayerTimes&) = delete;

  [[nodiscard]] virtual const LayerCost& cost() const = 0;
  // Mean seconds of the layer over steps, for which the routing's tokens are dealt to the ranks. A
  // routing of one step with few sequences is dealt from several of them on, so that little depends on
  // who gets which.
  [[nodiscard]] virtual double predict_s(const Routing& routing, std::size_t layer_idx,
                                         const LayerPlacement& placement,
                                         ReplicaChoice choice) const = 0;
  // [num_tokens] how often such steps have each token: what is worth learning from. A step sees the
  // beginning of the sequences that it is dealt, which need not be like the rest.
  [[nodiscard]] virtual std::vector<std::uint64_t> occurrences(const Routing& routing) const = 0;
  // What mean over the same steps no placement of the layer can be below, seconds. `part_capacity` are
  // the slots of the fullest rank, `num_replicas` those of all ranks beyond one per expert.
  [[nodiscard]] virtual double bound_s(const Routing& routing, std::size_t layer_idx,
                                       std::uint32_t part_capacity, std::uint32_t num_replicas,
                                       BoundEffort effort) const = 0;
  // Names everything that the times depend on besides the routing and the placement.
  [[nodiscard]] virtual const std::string& key() const = 0;
};

}  // namespace coterie
