#pragma once
// A loop over independent items on several threads.

#include <cstddef>
#include <functional>

namespace coterie {

// Calls f(0) ... f(count - 1), at most `num_jobs` at once, in no particular order. If calls throw,
// no further ones start and the exception of the lowest item that threw is rethrown.
void parallel_for(unsigned num_jobs, std::size_t count, const std::function<void(std::size_t)>& f);

}  // namespace coterie
