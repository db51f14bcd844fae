#pragma once
// Memory for columns of hundreds of megabytes.

#include <sys/mman.h>

#include <cstdint>
#include <vector>

namespace coterie {

// `column.reserve(size)`, with huge pages where the system grants them on request: writing rows to
// a thousand places at once otherwise waits for address translation and page faults most of the
// time. Without them all is the same but slower.
template <class T>
void reserve_large(std::vector<T>& column, std::size_t size) {
  column.reserve(size);
  constexpr std::uintptr_t kHugePage = std::uintptr_t{1} << 21;
  const auto begin = reinterpret_cast<std::uintptr_t>(column.data());
  const std::uintptr_t first = (begin + kHugePage - 1) & ~(kHugePage - 1);
  const std::uintptr_t last = (begin + size * sizeof(T)) & ~(kHugePage - 1);
  if (first < last) {
    // Advice only: a refusal changes nothing that matters here.
    static_cast<void>(::madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE));
  }
}

}  // namespace coterie
