#pragma once
// Progress of long work on stderr: "planning 12/26 (3.1/s, 5 s left)", rewritten in place on a
// terminal and at most every few seconds elsewhere. Silent for work shorter than a second.

#include <chrono>
#include <cstdint>
#include <string>

namespace coterie {

class Progress {
 public:
  Progress(std::string label, std::uint64_t total);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(std::uint64_t steps = 1);

 private:
  using Clock = std::chrono::steady_clock;
  void print();

  std::string label_;
  std::uint64_t total_;
  std::uint64_t done_ = 0;
  bool terminal_;
  bool printed_ = false;
  Clock::time_point start_;
  Clock::time_point last_print_;
};

}  // namespace coterie
