#include "core/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace coterie {

Progress::Progress(std::string label, std::uint64_t total)
    : label_(std::move(label)),
      total_(total),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_print_(start_) {}

Progress::~Progress() {
  if (printed_ && terminal_) std::fputc('\n', stderr);
}

void Progress::advance(std::uint64_t steps) {
  done_ += steps;
  const auto now = Clock::now();
  const auto interval = terminal_ ? std::chrono::milliseconds(200) : std::chrono::seconds(5);
  if (now - start_ < std::chrono::seconds(1) || now - last_print_ < interval) return;
  last_print_ = now;
  print();
}

void Progress::print() {
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  const double rate = static_cast<double>(done_) / elapsed;
  const double left = static_cast<double>(total_ > done_ ? total_ - done_ : 0) / rate;
  const std::string line =
      fmt::format("{} {}/{} ({:.3g}/s, {:.0f} s left)", label_, done_, total_, rate, left);
  std::fputs((terminal_ ? "\r\033[K" + line : line + "\n").c_str(), stderr);
  std::fflush(stderr);
  printed_ = true;
}

}  // namespace coterie
