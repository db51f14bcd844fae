#pragma once
// What collectives (all-reduce, reduce-scatter, all-gather) of NCCL cost on one machine: the
// `collectives` block of a topology file. How they become operations is told in
// sim/step/collectives.hpp.
//
// A collective of n GPUs over a buffer of S bytes (all-reduce: what is reduced; reduce-scatter: what
// goes in; all-gather: what comes out) takes
//
//   route latency + launch + hops + setup(protocol) + own(S, n) / copy_bandwidth + wire(S, n) / bandwidth(protocol)
//
// with the protocol and the algorithm that make it least, as NCCL's tuner chooses by its own
// estimates. `hops` counts the steps of the longest chain, each at `hop` inside a scale-up domain and
// at the protocol's `network_hop` between nodes; `own` is the part of the buffer that a GPU moves to
// itself, in its own memory.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/units.hpp"

namespace coterie {

class LayeredMap;

// One of NCCL's protocols (LL, LL128, Simple). LL sends a flag with every 4 bytes and needs no
// synchronisation, Simple fills the links but synchronises per chunk.
struct CollectiveProtocol {
  std::string name;
  Seconds setup;        // beyond the launch, once
  Seconds network_hop;  // one step of a chain between nodes
  Bandwidth bandwidth;  // what a GPU sends inside a scale-up domain, each direction
};

// All-reduce by multicast in the scale-up switches (NVLS): every GPU sends and receives
// S * (1 + 1/n) whatever n is.
struct MulticastCosts {
  std::uint32_t min_gpus = 8;  // of one domain in the group
  Seconds setup;
  Bandwidth bandwidth;
};

struct CollectiveParameters {
  Seconds launch;
  Seconds hop;
  std::optional<Bandwidth> copy_bandwidth;    // absent: own parts cost nothing
  std::vector<CollectiveProtocol> protocols;  // never empty
  std::optional<MulticastCosts> multicast;
  std::uint32_t sms = 0;  // multiprocessors that the kernel holds
};

// Reads the block. Throws InputError.
CollectiveParameters read_collectives(LayeredMap& map);
// The block as YAML text.
std::string collectives_text(const CollectiveParameters& parameters);

}  // namespace coterie
