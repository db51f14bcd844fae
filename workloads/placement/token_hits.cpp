#include "workloads/placement/token_hits.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace coterie {

TokenSample::TokenSample(std::span<const ExpertIdx> experts, std::uint32_t num_topk,
                         std::uint32_t num_experts)
    : num_topk_(num_topk) {
  const std::size_t available = num_topk == 0 ? 0 : experts.size() / num_topk;
  num_tokens_ = std::min(available, kMaxTokens);
  chosen_.reserve(num_tokens_ * num_topk_);
  for (std::size_t i = 0; i < num_tokens_; ++i) {
    const auto token = experts.subspan(i * available / num_tokens_ * num_topk_, num_topk_);
    chosen_.insert(chosen_.end(), token.begin(), token.end());
  }
  posting_begin_.assign(num_experts + 1, 0);
  for (const ExpertIdx expert : chosen_) ++posting_begin_[expert + 1u];
  std::partial_sum(posting_begin_.begin(), posting_begin_.end(), posting_begin_.begin());
  postings_.resize(chosen_.size());
  std::vector<std::uint32_t> next(posting_begin_.begin(), posting_begin_.end() - 1);
  for (std::size_t i = 0; i < chosen_.size(); ++i) {
    postings_[next[chosen_[i]]++] = static_cast<std::uint32_t>(i / num_topk_);
  }
}

TokenHits::TokenHits(const TokenSample& sample, std::vector<std::uint32_t> parts,
                     std::uint32_t num_parts)
    : sample_(sample),
      num_experts_(sample.num_experts()),
      num_parts_(num_parts),
      num_topk_(sample.num_topk()),
      parts_(std::move(parts)),
      hits_(std::size_t{num_experts_} * num_parts_, 0),
      alone_(num_experts_, 0),
      left_(std::size_t{num_experts_} * num_experts_, 0),
      part_tokens_(num_parts_, 0) {
  for (std::size_t token = 0; token < sample_.num_tokens(); ++token) {
    count_token(sample_.chosen(token));
  }
}

TokenHits::Members TokenHits::members(const ExpertIdx* chosen, std::uint32_t part,
                                      std::uint32_t except) const {
  Members result;
  for (std::uint32_t j = 0; j < num_topk_; ++j) {
    if (parts_[chosen[j]] != part) continue;
    ++result.count;
    if (chosen[j] != except) result.other = chosen[j];
  }
  return result;
}

// The token hits the part (sign 1), or no longer does (-1).
void TokenHits::count_hit(const ExpertIdx* chosen, std::uint32_t part, std::int32_t sign) {
  fan_out_ += sign;
  part_tokens_[part] += sign;
  for (std::uint32_t j = 0; j < num_topk_; ++j) {
    hits_[std::size_t{chosen[j]} * num_parts_ + part] += sign;
  }
}

// The expert is alone in its part in the token (sign 1), or no longer is (-1).
void TokenHits::count_alone(const ExpertIdx* chosen, ExpertIdx expert, std::int32_t sign) {
  alone_[expert] += sign;
  std::int32_t* const left = left_.data() + std::size_t{expert} * num_experts_;
  for (std::uint32_t j = 0; j < num_topk_; ++j) left[chosen[j]] += sign;
}

void TokenHits::count_token(const ExpertIdx* chosen) {
  for (std::uint32_t i = 0; i < num_topk_; ++i) {
    const std::uint32_t part = parts_[chosen[i]];
    bool first = true;
    for (std::uint32_t j = 0; j < i; ++j) first = first && parts_[chosen[j]] != part;
    if (first) count_hit(chosen, part, 1);
    if (members(chosen, part, chosen[i]).count == 1) count_alone(chosen, chosen[i], 1);
  }
}

// The tables after `expert` of this token moves to `target`. parts_ is still the old one.
void TokenHits::move_in_token(const ExpertIdx* chosen, ExpertIdx expert, std::uint32_t target) {
  const Members left = members(chosen, parts_[expert], expert);
  const Members joined = members(chosen, target, expert);
  if (left.count == 1) {
    count_hit(chosen, parts_[expert], -1);
    count_alone(chosen, expert, -1);
  } else if (left.count == 2) {
    count_alone(chosen, left.other, 1);
  }
  if (joined.count == 0) {
    count_hit(chosen, target, 1);
    count_alone(chosen, expert, 1);
  } else if (joined.count == 1) {
    count_alone(chosen, joined.other, -1);
  }
}

// The tables after two experts of this token trade places: only who is alone changes.
void TokenHits::trade_in_token(const ExpertIdx* chosen, ExpertIdx a, ExpertIdx b) {
  const bool a_alone = members(chosen, parts_[a], a).count == 1;
  const bool b_alone = members(chosen, parts_[b], b).count == 1;
  if (a_alone == b_alone) return;
  count_alone(chosen, a, a_alone ? -1 : 1);
  count_alone(chosen, b, b_alone ? -1 : 1);
}

void TokenHits::swap(std::uint32_t a, std::uint32_t b) {
  const auto expert_a = static_cast<ExpertIdx>(a);
  const auto expert_b = static_cast<ExpertIdx>(b);
  // Merge of the two lists of tokens.
  const auto of_a = sample_.tokens_of(a);
  const auto of_b = sample_.tokens_of(b);
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < of_a.size() || j < of_b.size()) {
    if (i < of_a.size() && j < of_b.size() && of_a[i] == of_b[j]) {
      trade_in_token(sample_.chosen(of_a[i]), expert_a, expert_b);
      ++i;
      ++j;
    } else if (j == of_b.size() || (i < of_a.size() && of_a[i] < of_b[j])) {
      move_in_token(sample_.chosen(of_a[i++]), expert_a, parts_[b]);
    } else {
      move_in_token(sample_.chosen(of_b[j++]), expert_b, parts_[a]);
    }
  }
  std::swap(parts_[a], parts_[b]);
}

}  // namespace coterie
