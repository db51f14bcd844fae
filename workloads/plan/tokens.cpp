// Dealing a trace's sequences to the ranks of an EP group.

#include <numeric>

#include "core/error.hpp"
#include "workloads/plan/tokens.hpp"

namespace coterie {
namespace {

// The order in which one rank is dealt sequences, endless.
class SequenceWalk {
 public:
  // Round robin: rank, rank + P, rank + 2P, ... modulo S. That walk closes after S / gcd(P, S)
  // sequences; it then moves on by one, so that a rank sees the whole trace before it repeats.
  static SequenceWalk round_robin(std::uint64_t num_sequences, std::uint64_t num_ranks,
                                  std::uint64_t rank) {
    return {num_sequences, rank % num_sequences, num_ranks % num_sequences,
            num_sequences / std::gcd(num_sequences, num_ranks)};
  }
  static SequenceWalk in_order(std::uint64_t num_sequences, std::uint64_t first) {
    return {num_sequences, first % num_sequences, 1, num_sequences};
  }

  std::uint64_t next() {
    const std::uint64_t result = position_;
    position_ = (position_ + stride_) % num_sequences_;
    if (++steps_ == period_) {
      steps_ = 0;
      position_ = (position_ + (period_ < num_sequences_ ? 1 : 0)) % num_sequences_;
    }
    return result;
  }

 private:
  SequenceWalk(std::uint64_t num_sequences, std::uint64_t position, std::uint64_t stride,
               std::uint64_t period)
      : num_sequences_(num_sequences), position_(position), stride_(stride), period_(period) {}

  std::uint64_t num_sequences_;
  std::uint64_t position_;
  std::uint64_t stride_;
  std::uint64_t period_;
  std::uint64_t steps_ = 0;
};

}  // namespace

RankTokens deal_tokens(const Routing& routing, std::uint32_t num_ranks,
                       std::optional<std::uint32_t> tokens_per_rank, SequenceDeal deal,
                       std::uint64_t first_sequence) {
  if (num_ranks == 0) throw InputError("number of ranks: found 0, expected at least 1");
  if (routing.num_tokens() == 0) {
    throw InputError(
        fmt::format("{}: found no tokens in the evaluated part, expected at least one sequence",
                    routing.origin.empty() ? "trace" : routing.origin));
  }
  const std::uint64_t num_sequences = routing.num_sequences();
  // First of the sequences that a rank is dealt in order.
  const auto share_begin = [&](std::uint64_t rank) { return num_sequences * rank / num_ranks; };

  RankTokens tokens;
  tokens.token_begin.reserve(num_ranks + 1);
  tokens.token_begin.push_back(0);
  tokens.trace_token.reserve(tokens_per_rank ? std::uint64_t{*tokens_per_rank} * num_ranks
                                             : routing.num_tokens());
  const auto give = [&](std::uint64_t sequence, std::uint64_t limit) {
    sequence = (sequence + first_sequence) % num_sequences;
    const std::uint64_t begin = routing.sequence_begin[sequence];
    const std::uint64_t length = std::min(limit, routing.sequence_begin[sequence + 1] - begin);
    for (std::uint64_t i = 0; i < length; ++i) tokens.trace_token.push_back(begin + i);
    return length;
  };

  for (std::uint64_t rank = 0; rank < num_ranks; ++rank) {
    if (tokens_per_rank) {
      SequenceWalk walk = deal == SequenceDeal::kRoundRobin
                              ? SequenceWalk::round_robin(num_sequences, num_ranks, rank)
                              : SequenceWalk::in_order(num_sequences, share_begin(rank));
      for (std::uint64_t wanted = *tokens_per_rank; wanted > 0;) {
        wanted -= give(walk.next(), wanted);
      }
    } else if (deal == SequenceDeal::kRoundRobin) {
      for (std::uint64_t i = rank; i < num_sequences; i += num_ranks) {
        give(i, routing.num_tokens());
      }
    } else {
      for (std::uint64_t i = share_begin(rank); i < share_begin(rank + 1); ++i) {
        give(i, routing.num_tokens());
      }
    }
    tokens.token_begin.push_back(tokens.trace_token.size());
  }
  return tokens;
}

}  // namespace coterie
