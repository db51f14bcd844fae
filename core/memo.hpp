#pragma once
// Results kept in memory by what they were computed from, for programs that compute the same things
// many times. What was not asked for longest is forgotten once all together are too large.

#include <cstddef>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <typeinfo>
#include <utility>

namespace coterie {

// Thread-safe. Two threads that miss the same key at once both compute; one result is kept.
class Memo {
 public:
  explicit Memo(std::size_t max_bytes) : max_bytes_(max_bytes) {}

  // The value of `key`, from memory or from `make`. The key must name everything that decides the
  // value. `num_bytes` estimates a value's size. What `make` throws is passed on and not kept.
  template <class Make, class NumBytes>
  auto get(const std::string& key, const Make& make, const NumBytes& num_bytes) {
    using T = decltype(make());
    if (std::shared_ptr<const void> known = find(key, typeid(T))) {
      return std::static_pointer_cast<const T>(std::move(known));
    }
    auto value = std::make_shared<const T>(make());
    keep(key, typeid(T), value, num_bytes(*value));
    return value;
  }

  [[nodiscard]] std::size_t num_bytes() const;

 private:
  struct Entry {
    std::shared_ptr<const void> value;
    const std::type_info* type = nullptr;
    std::size_t num_bytes = 0;
    std::list<std::string>::iterator use;
  };
  std::shared_ptr<const void> find(const std::string& key, const std::type_info& type);
  void keep(const std::string& key, const std::type_info& type, std::shared_ptr<const void> value,
            std::size_t num_bytes);

  std::size_t max_bytes_;
  std::size_t num_bytes_ = 0;
  std::map<std::string, Entry> entries_;
  std::list<std::string> uses_;  // keys, the latest first
  mutable std::mutex mutex_;
};

// The value as `memo` has it, or computed where there is none.
template <class Make, class NumBytes>
auto remember(Memo* memo, const std::string& key, const Make& make, const NumBytes& num_bytes) {
  using T = decltype(make());
  return memo != nullptr ? memo->get(key, make, num_bytes) : std::make_shared<const T>(make());
}

}  // namespace coterie
