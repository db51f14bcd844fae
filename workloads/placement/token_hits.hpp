#pragma once
// Which parts the tokens hit, and what swaps of experts change of it: the tables behind the local
// searches. Parts are ranks, or nodes.
//
// What a swap of experts a (in part A) and b (in part B) changes is read off three tables:
//   hits[e][P]   tokens of e that hit part P
//   alone[e]     tokens of e in whose choice e is the only expert of its part
//   left[e][f]   those of them that chose f as well
// A token of a (not b) hits B newly unless it hit B before, and leaves A if a was alone there; a
// token of both keeps its parts. Hence the tokens that hit A change by
//   (load[b] - hits[b][A]) - (alone[a] - left[a][b])
// and those that hit B likewise. A token with both is in hits[b][A], so only the alone terms need
// correcting. Evaluating a swap is O(1); applying one updates the tables for the tokens of a and b,
// O(k^2) each.

#include <cstdint>
#include <span>
#include <vector>

#include "workloads/trace/routing.hpp"

namespace coterie {

// The tokens that a search looks at; longer training parts are thinned out evenly. A swap costs time
// in proportion, and the sampling error of a mean fan-out over so many tokens is below 0.5 percent.
class TokenSample {
 public:
  static constexpr std::size_t kMaxTokens = 1 << 16;

  // `experts` [num_tokens][num_topk]; `weight` [num_tokens] for how many tokens each stands, empty
  // where for one. Weights sum to less than 2^31.
  TokenSample(std::span<const ExpertIdx> experts, std::uint32_t num_topk, std::uint32_t num_experts,
              std::span<const std::uint32_t> weight = {});

  [[nodiscard]] std::size_t num_tokens() const { return num_tokens_; }
  // What the tokens stand for in all.
  [[nodiscard]] std::int64_t total_weight() const { return total_weight_; }
  [[nodiscard]] std::int32_t weight(std::size_t token) const {
    return weight_.empty() ? 1 : weight_[token];
  }
  [[nodiscard]] std::uint32_t num_topk() const { return num_topk_; }
  [[nodiscard]] std::uint32_t num_experts() const {
    return static_cast<std::uint32_t>(posting_begin_.size() - 1);
  }
  [[nodiscard]] const ExpertIdx* chosen(std::size_t token) const {
    return chosen_.data() + token * num_topk_;
  }
  // The tokens that chose the expert, ascending.
  [[nodiscard]] std::span<const std::uint32_t> tokens_of(std::uint32_t expert) const {
    return std::span(postings_).subspan(posting_begin_[expert],
                                        posting_begin_[expert + 1] - posting_begin_[expert]);
  }
  [[nodiscard]] std::int32_t load(std::uint32_t expert) const { return load_[expert]; }

 private:
  std::uint32_t num_topk_;
  std::size_t num_tokens_ = 0;
  std::int64_t total_weight_ = 0;
  std::vector<ExpertIdx> chosen_;             // [num_tokens][num_topk]
  std::vector<std::int32_t> weight_;          // [num_tokens] or empty
  std::vector<std::int32_t> load_;            // [num_experts]
  std::vector<std::uint32_t> posting_begin_;  // [num_experts + 1]
  std::vector<std::uint32_t> postings_;
};

// The tables of one partition, which can be copied. Holds a reference to the sample.
class TokenHits {
 public:
  // `parts` [num_experts] is the part of every expert.
  TokenHits(const TokenSample& sample, std::vector<std::uint32_t> parts, std::uint32_t num_parts);

  [[nodiscard]] const std::vector<std::uint32_t>& parts() const { return parts_; }
  // Distinct parts summed over the tokens, each as often as it stands for.
  [[nodiscard]] std::int64_t fan_out() const { return fan_out_; }
  // [num_parts] tokens that hit the part; they sum to the fan-out.
  [[nodiscard]] const std::vector<std::int64_t>& part_tokens() const { return part_tokens_; }

  // What a swap of experts of different parts adds to the tokens that hit the part of a, and that
  // of b.
  struct Change {
    std::int32_t at_a = 0, at_b = 0;
  };
  [[nodiscard]] Change swap_change(std::uint32_t a, std::uint32_t b) const {
    return {sample_->load(b) - hits_[std::size_t{b} * num_parts_ + parts_[a]] - alone_[a] +
                left_[std::size_t{a} * num_experts_ + b],
            sample_->load(a) - hits_[std::size_t{a} * num_parts_ + parts_[b]] - alone_[b] +
                left_[std::size_t{b} * num_experts_ + a]};
  }
  void swap(std::uint32_t a, std::uint32_t b);

 private:
  // A token's experts in one part: their number, and one of them other than the one that moves.
  struct Members {
    std::uint32_t count = 0;
    ExpertIdx other = 0;
  };
  // Whether no other expert of the token stands in the expert's part.
  [[nodiscard]] bool is_alone(const ExpertIdx* chosen, ExpertIdx expert) const;
  void count_hit(const ExpertIdx* chosen, std::uint32_t part, std::int32_t change);
  void count_alone(const ExpertIdx* chosen, ExpertIdx expert, std::int32_t change);
  void count_token(std::size_t token);
  void move_in_token(std::size_t token, ExpertIdx expert, std::uint32_t target);
  void trade_in_token(std::size_t token, ExpertIdx a, ExpertIdx b);

  const TokenSample* sample_;
  std::uint32_t num_experts_;
  std::uint32_t num_parts_;
  std::uint32_t num_topk_;
  std::vector<std::uint32_t> parts_;
  std::vector<std::int32_t> hits_;         // [num_experts][num_parts]
  std::vector<std::int32_t> alone_;        // [num_experts]
  std::vector<std::int32_t> left_;         // [num_experts][num_experts]; diagonal = alone_
  std::vector<std::int64_t> part_tokens_;  // [num_parts]
  std::int64_t fan_out_ = 0;
};

}  // namespace coterie
