// The control group with its ranks as threads of the test: exchanges, and who is named when.

#include "runtime/control/group.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "runtime/control/channel.hpp"

namespace coterie {
namespace {

using testing::HasSubstr;

// Runs `body` on every rank in a thread of its own; what each rank's group threw, if anything.
std::vector<std::string> run_ranks(std::uint32_t num_ranks, const GroupOptions& options,
                                   const std::function<void(ControlGroup&)>& body,
                                   std::uint32_t num_started) {
  Descriptor listener = listen_on("127.0.0.1", 0);
  const std::uint16_t port = bound_port(listener);
  std::vector<std::string> errors(num_started);
  std::vector<std::thread> threads;
  for (std::uint32_t rank = 0; rank < num_started; ++rank) {
    RankEnvironment environment{"test",      rank, num_ranks, rank, num_ranks,
                                "127.0.0.1", port, "job",     {}};
    if (rank == 0) environment.listen_fd = listener.release();
    threads.emplace_back([&errors, &options, &body, environment] {
      try {
        ControlGroup group(environment, options);
        run_in_group(group, [&] { body(group); });
      } catch (const std::exception& error) {
        errors[environment.rank] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

GroupOptions quick() {
  GroupOptions options;
  options.rendezvous_s = 1.0;
  options.step_s = 1.0;
  options.silence_s = 2.0;
  options.grace_s = 2.0;
  return options;
}

TEST(ControlGroup, ExchangesDeliverToEachRankWhatWasMeantForIt) {
  const auto errors = run_ranks(
      5, quick(),
      [](ControlGroup& group) {
        for (int round = 0; round < 20; ++round) {
          std::vector<std::string> to_each;
          for (std::uint32_t to = 0; to < 5; ++to) {
            to_each.push_back(fmt::format("{}->{} {}", group.rank(), to, round));
          }
          const auto from_each = group.exchange(fmt::format("round {}", round), to_each);
          for (std::uint32_t from = 0; from < 5; ++from) {
            EXPECT_EQ(from_each[from], fmt::format("{}->{} {}", from, group.rank(), round));
          }
        }
        EXPECT_EQ(group.broadcast("id", group.rank() == 0 ? "the id" : "ignored"), "the id");
        EXPECT_EQ(group.gather("all", std::to_string(group.rank())).size(),
                  group.rank() == 0 ? 5U : 0U);
        group.finish();
      },
      5);
  EXPECT_THAT(errors, testing::Each(std::string()));
}

TEST(ControlGroup, LargeMessagesPass) {
  const std::string large(std::size_t{3} << 20, 'x');
  const auto errors = run_ranks(
      3, quick(),
      [&](ControlGroup& group) {
        for (const std::string& piece : group.all_gather("large", large)) EXPECT_EQ(piece, large);
        group.finish();
      },
      3);
  EXPECT_THAT(errors, testing::Each(std::string()));
}

TEST(ControlGroup, ARankThatNeverJoinsIsNamed) {
  const auto errors = run_ranks(
      4, quick(), [](ControlGroup&) {}, 3);
  for (const std::string& error : errors) {
    EXPECT_THAT(error, HasSubstr("rank 3 did not join the rendezvous within 1 s"));
  }
}

TEST(ControlGroup, ARankThatLeavesIsNamed) {
  const auto errors = run_ranks(
      3, quick(),
      [](ControlGroup& group) {
        group.barrier("first");
        if (group.rank() == 1) return;  // its group goes without a word
        group.barrier("second");
      },
      3);
  EXPECT_EQ(errors[1], "");
  for (const std::size_t rank : {0, 2}) {
    EXPECT_THAT(errors[rank], HasSubstr("rank 1 died"));
    EXPECT_THAT(errors[rank], HasSubstr("\"second\""));
  }
}

TEST(ControlGroup, ARankThatFailsTellsWhy) {
  const auto errors = run_ranks(
      3, quick(),
      [](ControlGroup& group) {
        group.barrier("first");
        if (group.rank() == 2) throw DeviceError("out of memory");
        group.barrier("second");
      },
      3);
  for (const std::string& error : errors) {
    EXPECT_THAT(error, testing::AllOf(HasSubstr("rank 2 failed"), HasSubstr("out of memory")));
  }
}

TEST(ControlGroup, ARankThatHangsIsNamedWithWhatWasWaitedFor) {
  const auto errors = run_ranks(
      3, quick(),
      [](ControlGroup& group) {
        group.barrier("first");
        if (group.rank() == 1) {
          group.set_stage("a long computation");
          std::this_thread::sleep_for(std::chrono::seconds(2));
          group.check();
          return;
        }
        group.barrier("second");
      },
      3);
  for (const std::string& error : errors) {
    EXPECT_THAT(error, testing::AllOf(HasSubstr("rank 1 hangs in \"a long computation\""),
                                      HasSubstr("\"second\""), HasSubstr("1 s")));
  }
}

// A rank whose device does not finish asks who is behind: the one that passed fewest stages.
TEST(ControlGroup, TheRankThatIsBehindIsNamedForADeviceThatDoesNotFinish) {
  const auto errors = run_ranks(
      3, quick(),
      [](ControlGroup& group) {
        group.barrier("first");
        if (group.rank() == 2) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1500));
          group.check();
          return;
        }
        group.set_stage("dispatch of layer 4");
        std::this_thread::sleep_for(std::chrono::milliseconds(600));
        if (group.rank() == 1) group.report_stuck(0.6);
        std::this_thread::sleep_for(std::chrono::milliseconds(600));
        group.check();
      },
      3);
  for (const std::string& error : errors) {
    EXPECT_THAT(error, testing::AllOf(HasSubstr("rank 2 hangs in \"first\""),
                                      HasSubstr("rank 1 waited 0.6 s"),
                                      HasSubstr("\"dispatch of layer 4\"")));
  }
}

// A main thread that is caught in a driver call cannot look at its deadline: the I/O thread does.
TEST(ControlGroup, AWatchedStageHasADeadlineWithoutTheMainThread) {
  const auto errors = run_ranks(
      3, quick(),
      [](ControlGroup& group) {
        group.barrier("first");
        if (group.rank() != 1) group.watch_stage("launch of dispatch of layer 4");
        std::this_thread::sleep_for(std::chrono::milliseconds(3000));
        group.check();
      },
      3);
  for (const std::string& error : errors) {
    EXPECT_THAT(error, testing::AllOf(HasSubstr("rank 1 hangs in \"first\""),
                                      HasSubstr("\"launch of dispatch of layer 4\"")));
  }
}

TEST(ControlGroup, RanksAtDifferentStepsAreAnError) {
  const auto errors = run_ranks(
      2, quick(), [](ControlGroup& group) { group.barrier(group.rank() == 0 ? "here" : "there"); },
      2);
  for (const std::string& error : errors) {
    EXPECT_THAT(error, testing::AllOf(HasSubstr("\"here\""), HasSubstr("\"there\"")));
  }
}

// A stranger that connects and talks another protocol does not disturb the group.
TEST(ControlGroup, StrangersAreTurnedAway) {
  Descriptor listener = listen_on("127.0.0.1", 0);
  const std::uint16_t port = bound_port(listener);
  std::string reason;
  Channel stranger(try_connect("127.0.0.1", port, 1.0, reason));
  ASSERT_TRUE(stranger.open()) << reason;
  stranger.queue(77, "GET / HTTP/1.1");
  stranger.send_some();
  RankEnvironment environment{"test", 0, 1, 0, 1, "127.0.0.1", port, "job", {}};
  environment.listen_fd = listener.release();
  ControlGroup group(environment, quick());
  group.barrier("alone");
  group.finish();
}

TEST(Packer, RoundTripAndTruncation) {
  const std::string bytes =
      Packer().number(std::uint32_t{7}).text("words").numbers(std::vector<double>{1.5, 2.5}).take();
  Unpacker unpacker(bytes);
  EXPECT_EQ(unpacker.number<std::uint32_t>(), 7U);
  EXPECT_EQ(unpacker.text(), "words");
  EXPECT_EQ(unpacker.numbers<double>(), (std::vector<double>{1.5, 2.5}));
  Unpacker cut(std::string_view(bytes).substr(0, 12));
  cut.number<std::uint32_t>();
  EXPECT_THROW((void)cut.text(), DeviceError);
}

}  // namespace
}  // namespace coterie
