// Items in processes that live on: each answered once whatever becomes of the workers.

#include "core/worker_pool.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/error.hpp"

namespace coterie {
namespace {

struct Outcome {
  std::vector<std::string> results;  // [num_items] what was returned, or "code: sentence"
  int num_settled = 0;
};

Outcome run(unsigned num_jobs, std::size_t count, double timeout_s,
            const std::function<std::string(std::size_t)>& body) {
  Outcome out;
  std::map<std::size_t, std::string> found;
  PoolWork work;
  work.name = [](std::size_t item) { return fmt::format("item {}", item); };
  work.body = body;
  work.done = [&](std::size_t item, WorkResult result) {
    std::string text;
    try {
      text = result.take();
    } catch (const Error& error) {
      text = fmt::format("{}: {}", static_cast<int>(error.exit_code()), error.what());
    }
    EXPECT_TRUE(found.emplace(item, text).second) << "item " << item << " was done twice";
  };
  work.settle = [&] { ++out.num_settled; };
  run_in_workers(num_jobs, count, timeout_s, work);
  EXPECT_EQ(found.size(), count);
  for (auto& [item, text] : found) out.results.push_back(std::move(text));
  return out;
}

TEST(WorkerPool, AnswersEveryItemInFewProcesses) {
  const auto body = [](std::size_t) { return std::to_string(::getpid()); };
  const Outcome out = run(3, 300, 0.0, body);
  const std::set<std::string> workers(out.results.begin(), out.results.end());
  EXPECT_LE(workers.size(), 3U);
  EXPECT_FALSE(workers.contains(std::to_string(::getpid())));
  EXPECT_GE(out.num_settled, 1);
  EXPECT_LE(out.num_settled, 300);
  EXPECT_TRUE(run(2, 0, 0.0, body).results.empty());
}

// A worker may keep what it computed; larger answers than a socket holds at once arrive whole.
TEST(WorkerPool, WorkersKeepTheirMemory) {
  int calls = 0;  // each worker's own
  const Outcome out = run(1, 5, 0.0, [&](std::size_t item) {
    return std::to_string(++calls) + std::string(item == 3 ? std::size_t{1} << 21U : 0, '.');
  });
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(out.results[2], "3");
  EXPECT_EQ(out.results[3].size(), (std::size_t{1} << 21U) + 1);
  EXPECT_EQ(out.results[4], "5");
}

// Failures of every kind harm the item alone; those that wait behind it are done by others.
TEST(WorkerPool, AFailureHarmsOneItem) {
  const auto body = [](std::size_t item) -> std::string {
    if (item == 40) throw InputError("x: found 1, expected 2");
    if (item == 50) {
      std::fputs("[0.1] [root/CRITICAL] no such host\nmore\n", stderr);
      std::abort();
    }
    if (item == 60) std::_Exit(7);
    std::fputs("said by another item\n", stderr);
    return "ok";
  };
  const Outcome out = run(2, 100, 0.0, body);
  for (std::size_t item = 0; item < 100; ++item) {
    const std::string expected =
        item == 40   ? "2: x: found 1, expected 2"
        : item == 50 ? "1: item 50: its process was ended by signal 6 (Aborted): no such host"
        : item == 60 ? "1: item 60: its process exited with status 7 and without a result"
                     : "ok";
    EXPECT_EQ(out.results[item], expected);
  }
}

TEST(WorkerPool, EndsAWorkerThatOverstays) {
  const auto body = [](std::size_t item) -> std::string {
    while (item == 30) ::pause();
    return "ok";
  };
  const Outcome out = run(1, 40, 0.5, body);
  EXPECT_EQ(out.results[29], "ok");
  EXPECT_EQ(out.results[30], "1: item 30: not done after 0.5 s; stopped");
  EXPECT_EQ(out.results[31], "ok");
}

// What the caller cannot keep ends the work, and is the caller's own error.
TEST(WorkerPool, PassesOnWhatTheCallerThrows) {
  PoolWork work;
  work.name = [](std::size_t) { return std::string("item"); };
  work.body = [](std::size_t) { return std::string("ok"); };
  work.done = [](std::size_t, WorkResult) {};
  work.settle = [] { throw InputError("the disk is full"); };
  EXPECT_THROW(run_in_workers(2, 10, 0.0, work), InputError);
}

}  // namespace
}  // namespace coterie
