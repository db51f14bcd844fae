#pragma once
// What nccl-tests (github.com/NVIDIA/nccl-tests) and its relatives print, as measurements.

#include <string>
#include <vector>

#include "sim/calibrate/measurements.hpp"

namespace coterie {

// Whether a text has the lines that every nccl-tests program prints about itself or its ranks.
bool is_nccl_log(const std::string& text);

// The uniform all-to-alls in the output of one or more nccl-tests programs: all blocks of
// alltoall_perf and alltoallv_perf, else those of sendrecv_perf (a rank's whole buffer goes to one
// other: an all-to-all of two). Read are the layouts with and without a root column, behind a
// shell's prompt and behind launchers' prefixes ("[1,0]<stdout>:", "0: "). Left out with a note:
// other operations beside these. Every block is held against itself:
//   ranks        the highest id + 1, each id once (a log of processes that never joined has rank 0
//                several times); lines may be elided ("..."), then the count column tells
//   algbw        size / time
//   busbw        algbw * (n - 1) / n for an all-to-all of n ranks, algbw for a send and receive
//   count        size / (n * bytes of the type), or size / bytes of the type
//   #wrong       0
// Throws InputError with the line for whatever does not hold, and for logs without such a test.
std::vector<AllToAllPoint> read_nccl_log(const std::string& text, const std::string& name,
                                         std::vector<std::string>* notes);

// The same from the report that nccl-tests writes with -J (its versions of 2025 on): one test.
bool is_nccl_report(const std::string& text);
std::vector<AllToAllPoint> read_nccl_report(const std::string& text, const std::string& name);

// The name of a structured output of nccl-tests or rccl-tests that is not read (their tables as CSV
// or as lines of JSON, and reports that others make of their logs), or empty.
std::string unread_nccl_output(const std::string& text);

}  // namespace coterie
