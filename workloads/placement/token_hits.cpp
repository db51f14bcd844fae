#include "workloads/placement/token_hits.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace coterie {

TokenSample::TokenSample(std::span<const ExpertIdx> experts, std::uint32_t num_topk,
                         std::uint32_t num_experts, std::span<const std::uint32_t> weight)
    : num_topk_(num_topk) {
  const std::size_t available = num_topk == 0 ? 0 : experts.size() / num_topk;
  num_tokens_ = std::min(available, kMaxTokens);
  chosen_.reserve(num_tokens_ * num_topk_);
  for (std::size_t i = 0; i < num_tokens_; ++i) {
    const auto token = experts.subspan(i * available / num_tokens_ * num_topk_, num_topk_);
    chosen_.insert(chosen_.end(), token.begin(), token.end());
    if (weight.empty()) continue;
    weight_.push_back(static_cast<std::int32_t>(weight[i * available / num_tokens_]));
  }
  posting_begin_.assign(num_experts + 1, 0);
  for (const ExpertIdx expert : chosen_) ++posting_begin_[expert + 1u];
  std::partial_sum(posting_begin_.begin(), posting_begin_.end(), posting_begin_.begin());
  postings_.resize(chosen_.size());
  std::vector<std::uint32_t> next(posting_begin_.begin(), posting_begin_.end() - 1);
  load_.assign(num_experts, 0);
  for (std::size_t i = 0; i < chosen_.size(); ++i) {
    const std::size_t token = i / num_topk_;
    postings_[next[chosen_[i]]++] = static_cast<std::uint32_t>(token);
    load_[chosen_[i]] += this->weight(token);
  }
  for (std::size_t token = 0; token < num_tokens_; ++token) total_weight_ += this->weight(token);
}

TokenHits::TokenHits(const TokenSample& sample, std::vector<std::uint32_t> parts,
                     std::uint32_t num_parts)
    : sample_(&sample),
      num_experts_(sample.num_experts()),
      num_parts_(num_parts),
      num_topk_(sample.num_topk()),
      parts_(std::move(parts)),
      hits_(std::size_t{num_experts_} * num_parts_, 0),
      alone_(num_experts_, 0),
      left_(std::size_t{num_experts_} * num_experts_, 0),
      part_tokens_(num_parts_, 0) {
  for (std::size_t token = 0; token < sample.num_tokens(); ++token) count_token(token);
}

bool TokenHits::is_alone(const ExpertIdx* chosen, ExpertIdx expert) const {
  std::uint32_t count = 0;
  for (std::uint32_t j = 0; j < num_topk_; ++j) count += parts_[chosen[j]] == parts_[expert];
  return count == 1;
}

// The token hits the part (`change` is its weight), or no longer does (minus that).
void TokenHits::count_hit(const ExpertIdx* chosen, std::uint32_t part, std::int32_t change) {
  fan_out_ += change;
  part_tokens_[part] += change;
  for (std::uint32_t j = 0; j < num_topk_; ++j) {
    hits_[std::size_t{chosen[j]} * num_parts_ + part] += change;
  }
}

// The expert is alone in its part in the token (`change` is its weight), or no longer is.
void TokenHits::count_alone(const ExpertIdx* chosen, ExpertIdx expert, std::int32_t change) {
  alone_[expert] += change;
  std::int32_t* const left = left_.data() + std::size_t{expert} * num_experts_;
  for (std::uint32_t j = 0; j < num_topk_; ++j) left[chosen[j]] += change;
}

void TokenHits::count_token(std::size_t token) {
  const ExpertIdx* const chosen = sample_->chosen(token);
  const std::int32_t weight = sample_->weight(token);
  for (std::uint32_t i = 0; i < num_topk_; ++i) {
    const std::uint32_t part = parts_[chosen[i]];
    bool first = true;
    for (std::uint32_t j = 0; j < i; ++j) first = first && parts_[chosen[j]] != part;
    if (first) count_hit(chosen, part, weight);
    if (is_alone(chosen, chosen[i])) count_alone(chosen, chosen[i], weight);
  }
}

// The tables after `expert` of this token moves to `target`. parts_ is still the old one.
void TokenHits::move_in_token(std::size_t token, ExpertIdx expert, std::uint32_t target) {
  const ExpertIdx* const chosen = sample_->chosen(token);
  const std::int32_t weight = sample_->weight(token);
  const std::uint32_t from = parts_[expert];
  Members left;  // with the expert itself
  Members joined;
  for (std::uint32_t j = 0; j < num_topk_; ++j) {
    const std::uint32_t part = parts_[chosen[j]];
    if (part == from) {
      ++left.count;
      if (chosen[j] != expert) left.other = chosen[j];
    } else if (part == target) {
      ++joined.count;
      joined.other = chosen[j];
    }
  }
  if (left.count == 1) {
    count_hit(chosen, from, -weight);
    count_alone(chosen, expert, -weight);
  } else if (left.count == 2) {
    count_alone(chosen, left.other, weight);
  }
  if (joined.count == 0) {
    count_hit(chosen, target, weight);
    count_alone(chosen, expert, weight);
  } else if (joined.count == 1) {
    count_alone(chosen, joined.other, -weight);
  }
}

// The tables after two experts of this token trade places: only who is alone changes.
void TokenHits::trade_in_token(std::size_t token, ExpertIdx a, ExpertIdx b) {
  const ExpertIdx* const chosen = sample_->chosen(token);
  const std::int32_t weight = sample_->weight(token);
  const bool a_alone = is_alone(chosen, a);
  const bool b_alone = is_alone(chosen, b);
  if (a_alone == b_alone) return;
  count_alone(chosen, a, a_alone ? -weight : weight);
  count_alone(chosen, b, b_alone ? -weight : weight);
}

void TokenHits::swap(std::uint32_t a, std::uint32_t b) {
  const auto expert_a = static_cast<ExpertIdx>(a);
  const auto expert_b = static_cast<ExpertIdx>(b);
  // Merge of the two lists of tokens.
  const auto of_a = sample_->tokens_of(a);
  const auto of_b = sample_->tokens_of(b);
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < of_a.size() || j < of_b.size()) {
    if (i < of_a.size() && j < of_b.size() && of_a[i] == of_b[j]) {
      trade_in_token(of_a[i], expert_a, expert_b);
      ++i;
      ++j;
    } else if (j == of_b.size() || (i < of_a.size() && of_a[i] < of_b[j])) {
      move_in_token(of_a[i++], expert_a, parts_[b]);
    } else {
      move_in_token(of_b[j++], expert_b, parts_[a]);
    }
  }
  std::swap(parts_[a], parts_[b]);
}

}  // namespace coterie
