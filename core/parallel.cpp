#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace coterie {

void parallel_for(unsigned num_jobs, std::size_t count, const std::function<void(std::size_t)>& f) {
  std::atomic<std::size_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::exception_ptr error;
  std::size_t error_item = count;
  const auto work = [&] {
    while (!failed) {
      const std::size_t item = next++;
      if (item >= count) return;
      try {
        f(item);
      } catch (...) {
        const std::scoped_lock lock(mutex);
        failed = true;
        if (item < error_item) {
          error_item = item;
          error = std::current_exception();
        }
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    const std::size_t extra = std::min<std::size_t>(std::max(1U, num_jobs), count);
    for (std::size_t i = 1; i < extra; ++i) threads.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace coterie
