#include "core/memo.hpp"

namespace coterie {

std::size_t Memo::num_bytes() const {
  const std::scoped_lock lock(mutex_);
  return num_bytes_;
}

std::shared_ptr<const void> Memo::find(const std::string& key, const std::type_info& type) {
  const std::scoped_lock lock(mutex_);
  const auto found = entries_.find(key);
  if (found == entries_.end() || *found->second.type != type) return nullptr;
  uses_.splice(uses_.begin(), uses_, found->second.use);
  return found->second.value;
}

void Memo::keep(const std::string& key, const std::type_info& type,
                std::shared_ptr<const void> value, std::size_t num_bytes) {
  const std::scoped_lock lock(mutex_);
  if (num_bytes > max_bytes_) return;
  const auto [place, is_new] = entries_.try_emplace(key);
  Entry& entry = place->second;
  if (is_new) {
    uses_.push_front(key);
    entry.use = uses_.begin();
  } else {
    num_bytes_ -= entry.num_bytes;
    uses_.splice(uses_.begin(), uses_, entry.use);
  }
  entry.value = std::move(value);
  entry.type = &type;
  entry.num_bytes = num_bytes;
  num_bytes_ += num_bytes;
  while (num_bytes_ > max_bytes_) {
    const auto oldest = entries_.find(uses_.back());
    num_bytes_ -= oldest->second.num_bytes;
    entries_.erase(oldest);
    uses_.pop_back();
  }
}

}  // namespace coterie
