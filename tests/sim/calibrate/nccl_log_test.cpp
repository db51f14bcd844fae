// Logs as nccl-tests prints them: NVIDIA/nccl-tests 0fdb00a, src/util.cu (writeDeviceReport,
// writeBenchmarkLinePreamble, writeBenchmarkLineBody, writeResultHeader, JSON), src/alltoall.cu,
// src/sendrecv.cu and src/all_reduce.cu (shares of busbw), and the layout without a root column of
// NVIDIA/nccl-tests 07ac716, src/alltoall.cu (print_header, print_line_header). Times are made up;
// bandwidths follow from them as in those sources.

#include "sim/calibrate/nccl_log.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "core/error.hpp"

namespace coterie {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// What one program prints.
struct Printed {
  std::string program = "alltoall";  // without _perf
  std::uint32_t num_ranks = 4;
  bool named = true;  // the lines of versions from 2.17 on
  bool old = false;   // no root column, "error" in place of "#wrong"
  std::string redop = "none";
  std::string root = "-1";
  std::string in_place_wrong = "N/A";
  double time_us = 20.0;           // of 1 MiB; doubles with the size
  std::uint32_t listed_ranks = 0;  // 0: all; else the others are elided
};

double bus_share(const std::string& program, double n) {
  if (program == "all_reduce") return 2.0 * (n - 1.0) / n;
  return program == "sendrecv" ? 1.0 : (n - 1.0) / n;
}

std::string row(const Printed& test, std::uint64_t size, double time_us) {
  const bool parts = test.program == "alltoall" || test.program == "all_gather" ||
                     test.program == "reduce_scatter";
  const std::uint64_t count = size / 4 / (parts ? test.num_ranks : 1);
  const double algbw = static_cast<double>(size) / time_us * 1e-3;
  const double busbw = algbw * bus_share(test.program, test.num_ranks);
  if (test.old) {
    return fmt::format(
        "{:12}  {:12}  {:>6}  {:>6}  {:7.2f}  {:6.2f}  {:6.2f}  {:>5}  {:7.2f}  {:6.2f}  {:6.2f}  "
        "{:>5}\n",
        size, count, "float", test.redop == "none" ? "" : test.redop, time_us, algbw, busbw,
        "0e+00", time_us, algbw, busbw, "1e+00");
  }
  return fmt::format(
      "{:12}  {:12}  {:>8}  {:>6}  {:>6}  {:7.2f}  {:6.2f}  {:6.2f}  {:>6}  {:7.2f}  {:6.2f}  "
      "{:6.2f}  {:>6}\n",
      size, count, "float", test.redop, test.root, time_us, algbw, busbw, 0, time_us, algbw, busbw,
      test.in_place_wrong);
}

std::string log_of(const Printed& test, int num_sizes = 3) {
  std::string text;
  if (test.named) {
    text += "# nccl-tests version 2.17.8 nccl-headers=22809 nccl-library=22809\n";
    text += "# Collective test starting: " + test.program + "_perf\n";
  }
  text += fmt::format("# nThread 1 nGpus {} minBytes 1048576 maxBytes 4194304 step: 2(factor)\n#\n",
                      test.num_ranks);
  text += "# Using devices\n";
  const std::uint32_t listed = test.listed_ranks > 0 ? test.listed_ranks : test.num_ranks;
  for (std::uint32_t rank = 0; rank < listed; ++rank) {
    text += fmt::format("#  Rank {:2} {}Pid {:6} on       host device {:2} [{}] NVIDIA H200\n",
                        rank, test.old ? "" : "Group  0 ", 7, rank, "0000:19:00");
  }
  if (listed < test.num_ranks) text += "...\n";
  text += test.old
              ? "#\n#       size         count    type   redop     time   algbw   busbw  error "
                "    time   algbw   busbw  error\n"
              : "#\n#       size         count      type   redop    root     time   algbw   "
                "busbw  #wrong     time   algbw   busbw  #wrong \n";
  text += "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)\n";
  for (int i = 0; i < num_sizes; ++i) {
    text += row(test, 1048576ULL << i, test.time_us * (1 << i));
  }
  text += "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 30.0 \n#\n";
  if (test.named) text += "# Collective test concluded: " + test.program + "_perf\n";
  return text;
}

std::string prefixed(const std::string& text, const std::string& prefix) {
  std::string out;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin) + 1;
    out += prefix + text.substr(begin, end - begin);
    begin = end;
  }
  return out;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

std::vector<AllToAllPoint> read(const std::string& text,
                                std::vector<std::string>* notes = nullptr) {
  return parse_alltoall(text, "log", notes);
}

std::string log_refusal(const std::string& text) {
  try {
    (void)read(text);
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

// 1, 2 and 4 MiB over 4 ranks in 20, 40 and 80 us.
void expect_whole(const std::string& text) {
  const auto points = read(text);
  ASSERT_EQ(points.size(), 3U) << text;
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(points[i].num_ranks, 4U);
    EXPECT_EQ(points[i].bytes_per_rank, static_cast<double>(1048576ULL << i));
    EXPECT_DOUBLE_EQ(points[i].time_s, 20e-6 * static_cast<double>(1 << i));
    EXPECT_EQ(points[i].device, "NVIDIA H200");
  }
}

TEST(NcclLog, ReadsBothLayoutsWithAndWithoutTheProgramsName) {
  for (const bool old : {false, true}) {
    for (const bool named : {false, true}) {
      Printed test;
      test.old = old;
      test.named = named;
      expect_whole(log_of(test));
    }
  }
}

TEST(NcclLog, ReadsBehindPromptsAndLaunchersPrefixes) {
  const std::string log = log_of({});
  expect_whole("user@host:~$ ./build/alltoall_perf -b 1M -e 4M -f 2 -g 4\n" + log);
  expect_whole("mpirun -np 4 ./build/alltoall_perf -b 1M\n" + log_of({.named = false}));
  for (const char* prefix :
       {"[1,0]<stdout>:", "  [1,0]<stdout>: ", "[1,mpirank:0,algo-1]<stdout>:", "0: ", " 0: ",
        "[0] ", "node7: ", "worker-0  | ", "2026-01-02T10:00:00.123456789Z ",
        "node7: 2026-01-02T10:00:00+01:00 "}) {
    expect_whole(prefixed(log, prefix));
  }
  expect_whole(prefixed(log, "") + "8 GPUs were found\n");
}

TEST(NcclLog, EveryTestOfALogHasStateOfItsOwn) {
  Printed eight;
  eight.num_ranks = 8;
  const auto both = read(log_of({}) + log_of(eight));
  ASSERT_EQ(both.size(), 6U);
  EXPECT_EQ(both[2].num_ranks, 4U);
  EXPECT_EQ(both[3].num_ranks, 8U);
  // Other operations are left out and named.
  Printed reduce;
  reduce.program = "all_reduce";
  reduce.redop = "sum";
  reduce.in_place_wrong = "0";
  Printed exchange;
  exchange.program = "sendrecv";
  for (const bool named : {true, false}) {
    reduce.named = exchange.named = named;
    std::vector<std::string> notes;
    const auto points = read(log_of(reduce) + log_of({}) + log_of(exchange), &notes);
    EXPECT_THAT(points, SizeIs(3));
    EXPECT_EQ(points.at(0).num_ranks, 4U);
    EXPECT_THAT(notes, ElementsAre(HasSubstr("left out a test of 3 sizes (" +
                                             std::string(named ? "a log of all_reduce_perf"
                                                               : "the reduction \"sum\"")),
                                   HasSubstr("(a send and receive)")));
  }
}

// In sendrecv_perf a rank's whole buffer goes to one other; in an all-to-all of two ranks half.
TEST(NcclLog, TellsSendRecvFromAllToAll) {
  Printed exchange;
  exchange.program = "sendrecv";
  exchange.num_ranks = 2;
  Printed all_to_all;
  all_to_all.num_ranks = 2;
  for (const bool named : {true, false}) {
    exchange.named = all_to_all.named = named;
    EXPECT_EQ(read(log_of(exchange)).at(0).message(), 1048576.0);
    EXPECT_EQ(read(log_of(all_to_all)).at(0).message(), 524288.0);
  }
  Printed slow;
  // 0.01 GB/s of both bandwidths fit both operations; the count column does not
  slow.num_ranks = 2;
  slow.named = false;
  slow.time_us = 1e5;
  EXPECT_EQ(read(log_of(slow)).at(0).num_ranks, 2U);
}

TEST(NcclLog, ElidedRanksAreCountedByTheCountColumn) {
  Printed test;
  test.num_ranks = 16;
  test.listed_ranks = 13;
  EXPECT_EQ(read(log_of(test)).at(0).num_ranks, 16U);
  // A line that is missing without a mark is not.
  EXPECT_THAT(log_refusal(replaced(log_of({}), "#  Rank  1", "#  Rang  1")),
              HasSubstr("found 3 rank lines up to rank 3, expected a line for every rank"));
  // Nor ids beyond what the count says.
  EXPECT_THAT(log_refusal(replaced(log_of(test), "#  Rank 12", "#  Rank 99")),
              HasSubstr("found rank 99, expected ranks below 16, as size / count says"));
}

TEST(NcclLog, RefusesOtherOperations) {
  const auto refused = [](const std::string& program, const std::string& redop, bool named) {
    Printed test;
    test.program = program;
    test.redop = redop;
    test.named = named;
    test.in_place_wrong = "0";
    return log_refusal(log_of(test));
  };
  EXPECT_EQ(refused("all_reduce", "sum", true),
            "log: found a log of all_reduce_perf, expected a log of alltoall_perf, alltoallv_perf "
            "or sendrecv_perf");
  EXPECT_THAT(refused("all_reduce", "sum", false), HasSubstr("the reduction \"sum\""));
  // Its shares of bandwidth are an all-to-all's.
  EXPECT_THAT(refused("reduce_scatter", "sum", false), HasSubstr("the reduction \"sum\""));
  EXPECT_THAT(refused("all_gather", "none", false), HasSubstr("as all_gather_perf has"));
  Printed rooted;
  rooted.named = false;
  rooted.root = "0";
  EXPECT_THAT(log_refusal(log_of(rooted)), HasSubstr("operations with a root"));
}

TEST(NcclLog, HoldsEveryRowAgainstItself) {
  const std::string log = log_of({});
  // 52.43 GB/s over 4 ranks: a bus bandwidth of 39.32.
  EXPECT_THAT(log_refusal(replaced(log, "39.32", "45.88")),
              AllOf(HasSubstr("busbw / algbw = 45.88 / 52.43"), HasSubstr("with 4 ranks"),
                    HasSubstr("expected 0.750 and size / 4 (alltoall_perf)")));
  EXPECT_THAT(log_refusal(replaced(log, "52.43", "54.43")),
              HasSubstr("found algbw 54.43 GB/s, expected 52.43, which 1048576 bytes in 20.00 us"));
  EXPECT_THAT(log_refusal(replaced(log, " 65536", " 32768")), HasSubstr("count 32768 of float"));
  EXPECT_THAT(log_refusal(replaced(log, "  20.00", "   0.00")),
              HasSubstr("microseconds above zero"));
  EXPECT_THAT(log_refusal(replaced(log, " 1048576         65536", "-1048576         65536")),
              HasSubstr("found \"-1048576 65536\", expected a size and a count, whole numbers of 0 "
                        "or more"));
  EXPECT_THAT(log_refusal(replaced(log, "      0    20.00", "      7    20.00")),
              HasSubstr("found 7 wrong elements"));
  // The ranks that the lines name must be those of the table.
  EXPECT_THAT(log_refusal(replaced(log,
                                   "#  Rank  3 Group  0 Pid      7 on       host device  3 "
                                   "[0000:19:00] NVIDIA H200\n",
                                   "")),
              HasSubstr("with 3 ranks"));
}

TEST(NcclLog, NamesWhatIsMissing) {
  const std::string log = log_of({});
  EXPECT_THAT(log_refusal(replaced(log, "#  Rank  1", "#  Rank  0")),
              HasSubstr("found rank 0 twice, expected every rank once: processes that never joined "
                        "(nccl-tests built without MPI)"));
  Printed alone;
  alone.num_ranks = 1;
  EXPECT_THAT(log_refusal(log_of(alone)), HasSubstr("found a test of one rank alone"));
  EXPECT_THAT(log_refusal(replaced(log, "#       size ", "#       sice ")),
              HasSubstr("found a row before the line that names the columns"));
  EXPECT_THAT(log_refusal(replaced(log, "   time ", "cputime ")),
              HasSubstr("expected a column time (with -C the CPU's time is printed"));
  EXPECT_THAT(log_refusal(replaced(log, "     0    20.00", "     0")),
              HasSubstr("found 12 cells, expected 13 as the line of columns says"));
  // A log that was cut off in its last row.
  EXPECT_THAT(log_refusal(log.substr(0, log.rfind("float") + 5)),
              HasSubstr("found 3 cells, expected 13 as the line of columns says"));
  EXPECT_THAT(log_refusal(log_of({}, 0)), HasSubstr("found no rows of a test"));
}

// The keys of jsonOutputInit, writeDeviceReport and writeBenchmarkLineBody. 2 processes of 2 GPUs:
// the report lists the first device of each.
TEST(NcclLog, ReadsTheReportOfNcclTests) {
  const auto device = [](int rank) {
    return fmt::format(R"({{"rank":{},"group":0,"pid":7,"hostname":"h","device":{},
      "device_hex":"0000:19:00","device_info":"NVIDIA H200"}})",
                       rank, rank);
  };
  const auto side = [](double time_us, double size, bool checked) {
    return fmt::format(R"({{"time":{:f},"alg_bw":{:f},"bus_bw":{:f},"nwrong":{}}})", time_us,
                       size / time_us * 1e-3, size / time_us * 0.75e-3,
                       checked ? "0.000000" : "null");
  };
  const std::string report =
      R"({"version":2,"start_time":"t","args":["./build/alltoall_perf","-J","x"],"env":[],
          "nccl_version":22809,"config":{"nthreads":1,"ngpus":2,"devices":[)" +
      device(0) + "," + device(2) + R"(]},"results":[{"size":1048576,"count":65536,"type":"float",
          "redop":"none","root":"    -1","out_of_place":)" +
      side(20.0, 1048576, true) + R"(,"in_place":)" + side(20.0, 1048576, false) +
      R"(,"actual_iterations":20,"experiment_name":"AlltoAll"}],"errors":[],"end_time":"t"})";
  const auto points = read(report);
  ASSERT_EQ(points.size(), 1U);
  EXPECT_EQ(points[0].num_ranks, 4U);
  EXPECT_EQ(points[0].bytes_per_rank, 1048576.0);
  EXPECT_DOUBLE_EQ(points[0].time_s, 20e-6);
  EXPECT_EQ(points[0].version, "22809");
  EXPECT_EQ(log_refusal(replaced(report, "alltoall_perf", "all_reduce_perf")),
            "log: found a log of all_reduce_perf, expected a log of alltoall_perf, alltoallv_perf "
            "or sendrecv_perf");
  EXPECT_THAT(log_refusal(replaced(report, "\"count\":65536", "\"count\":32768")),
              HasSubstr("found busbw / algbw"));
  EXPECT_THAT(log_refusal(replaced(report, "\"size\":1048576,", "")),
              HasSubstr("expected the report that nccl-tests writes with -J"));
}

TEST(NcclLog, RefusesOtherStructuredOutputByName) {
  EXPECT_THAT(log_refusal("numCycle,name,size,type,redop,inPlace,time,algBw,busBw,#wrong\n"),
              HasSubstr("found structured output of rccl-tests (CSV)"));
  EXPECT_THAT(
      log_refusal(R"({"#wrong":"0","algBw":0.05,"busBw":0.04,"inPlace":0,"name":"AlltoAll"})"),
      HasSubstr("found structured output of rccl-tests (a line of JSON per result)"));
  EXPECT_THAT(log_refusal(R"({"benchmark": [{"1024": {"oop_time": 1, "oop_busbw": 2}}]})"),
              HasSubstr("found structured output made of nccl-tests' results"));
}

}  // namespace
}  // namespace coterie
