#include "sim/calibrate/nccl_log.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>
#include <sstream>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/json.hpp"
#include "core/json_fault.hpp"

namespace coterie {
namespace {

constexpr const char* kExpected = "a log of alltoall_perf, alltoallv_perf or sendrecv_perf";

std::vector<std::string> words(const std::string& line) {
  std::istringstream stream(line);
  std::vector<std::string> out;
  for (std::string word; stream >> word;) out.push_back(word);
  return out;
}

std::optional<double> number(const std::string& text) {
  double value = 0.0;
  const char* end = text.data() + text.size();
  const auto [last, status] = std::from_chars(text.data(), end, value);
  if (status != std::errc{} || last != end || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::optional<std::uint64_t> whole_number(const std::string& text) {
  std::uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [last, status] = std::from_chars(text.data(), end, value);
  if (status != std::errc{} || last != end) return std::nullopt;
  return value;
}

// Half of the last printed digit's place: what rounding may have taken or added.
double rounding(const std::string& text) {
  const std::size_t exponent = text.find_first_of("eE");
  const std::string digits = text.substr(0, exponent);
  const std::size_t point = digits.find('.');
  const auto decimals =
      point == std::string::npos ? 0.0 : static_cast<double>(digits.size() - point - 1);
  const double power =
      exponent == std::string::npos ? 0.0 : number(text.substr(exponent + 1)).value_or(0.0);
  return 0.5 * std::pow(10.0, power - decimals);
}

std::optional<std::uint64_t> type_bytes(const std::string& type) {
  static const std::map<std::string, std::uint64_t> kTypes{
      {"int8", 1},     {"uint8", 1},    {"char", 1}, {"f8e4m3", 1},   {"f8e5m2", 1},
      {"fp8_e4m3", 1}, {"fp8_e5m2", 1}, {"half", 2}, {"bfloat16", 2}, {"float16", 2},
      {"int32", 4},    {"uint32", 4},   {"int", 4},  {"float", 4},    {"int64", 8},
      {"uint64", 8},   {"double", 8}};
  const auto found = kTypes.find(type);
  return found == kTypes.end() ? std::nullopt : std::optional(found->second);
}

// A launcher's marks in front of a line: Open MPI's --tag-output and --timestamp-output, MPICH's
// -prepend-rank, srun's --label, pdsh's host, docker compose's service, kubectl's --timestamps.
std::string without_prefix(std::string line) {
  static const std::regex kPrefix(
      R"(^\s*(\[[^\]]*\]\s*<std(out|err)>\s*:?|\[\d+\](?=\s*[#\d])|\d+:(?=\s))"
      R"(|[A-Za-z][\w.-]*(:|\s+\|)(?=\s+[#\d])|\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)(?=\s)))");
  std::smatch match;
  while (std::regex_search(line, match, kPrefix)) line = match.suffix();
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return line;
}

std::string program_in(const std::string& line) {
  static const std::regex kName(
      "(all_reduce|all_gather|alltoallv?|broadcast|gather|hypercube|reduce_scatter|reduce|scatter|"
      "sendrecv)_perf");
  std::smatch match;
  return std::regex_search(line, match, kName) ? match[1].str() : "";
}

// The line that names the columns.
struct Columns {
  std::size_t num_leading = 0;   // size, count, type, [redop], [root]
  std::size_t num_trailing = 0;  // words of the measured columns
  bool has_redop = false, has_root = false, counts_wrong = false;
};

struct Row {
  std::size_t line = 0;
  std::uint64_t size = 0, count = 0;
  std::string type, redop, root, time, algbw, busbw, wrong, wrong_in_place;
};

// One run of one program.
struct Block {
  std::string program;  // without _perf; empty where the log does not say
  std::string version, device;
  std::map<std::uint32_t, std::uint32_t> group_of_rank;
  bool elided = false;
  bool closed = false;
  std::optional<Columns> columns;
  std::vector<Row> rows;
};

class Parser {
 public:
  explicit Parser(std::string name) : name_(std::move(name)) {}

  void read_line(const std::string& raw, std::size_t line_number) {
    const std::string line = without_prefix(raw);
    const std::vector<std::string> cells = words(line);
    if (cells.empty()) return;
    const bool comment = cells[0].front() == '#';
    const std::string program = program_in(line);
    if (line.find("Collective test concluded") != std::string::npos) {
      block().closed = true;
      return;
    }
    const bool begins = comment && (line.find("nThread") != std::string::npos ||
                                    line.find("Collective test starting") != std::string::npos ||
                                    line.find("nccl-tests version") != std::string::npos ||
                                    line.find("Using devices") != std::string::npos);
    if (begins && (block().closed || !block().rows.empty() || !block().group_of_rank.empty())) {
      blocks_.emplace_back();
    }
    if (!program.empty()) {  // a command before its output, or the program's own statement
      if (!block().rows.empty() || block().closed) blocks_.emplace_back();
      block().program = program;
    }
    if (comment) {
      read_comment(line, cells, line_number);
    } else if (cells[0] == "...") {
      block().elided = true;
    } else {
      read_row(cells, line_number);
    }
  }

  [[nodiscard]] std::vector<Block> finish() && {
    std::erase_if(blocks_, [](const Block& b) { return b.rows.empty(); });
    return std::move(blocks_);
  }

 private:
  Block& block() { return blocks_.back(); }
  [[nodiscard]] std::string place(std::size_t line) const {
    return fmt::format("{}:{}", name_, line);
  }

  void read_comment(const std::string& line, const std::vector<std::string>& cells,
                    std::size_t line_number) {
    static const std::regex kRank(R"(^\s*#\s*Rank\s+(\d+)(?:\s+Group\s+(\d+))?\s.*device)");
    std::smatch match;
    if (std::regex_search(line, match, kRank)) {
      const auto rank = static_cast<std::uint32_t>(std::stoul(match[1].str().substr(0, 7)));
      const auto group = static_cast<std::uint32_t>(
          match[2].matched ? std::stoul(match[2].str().substr(0, 7)) : 0);
      if (!block().group_of_rank.try_emplace(rank, group).second) {
        throw InputError(place(line_number), fmt::format("rank {} twice", rank),
                         "every rank once: processes that never joined (nccl-tests built without "
                         "MPI) measured nothing together");
      }
      const std::size_t bracket = line.rfind(']');
      if (bracket != std::string::npos && bracket + 2 < line.size()) {
        block().device = line.substr(bracket + 2);
      }
      return;
    }
    const std::size_t version = line.find("nccl-library=");
    if (version != std::string::npos) block().version = words(line.substr(version + 13)).front();
    if (cells.size() > 1 && cells[1] == "...") block().elided = true;
    if (line.find("...") != std::string::npos && line.find("Rank") != std::string::npos) {
      block().elided = true;
    }
    read_header(cells, line_number);
    if (line.find("Avg bus bandwidth") != std::string::npos) block().closed = true;
  }

  void read_header(const std::vector<std::string>& cells, std::size_t line_number) {
    const auto begin = std::find(cells.begin(), cells.end(), "size");
    if (begin == cells.end() || std::find(begin, cells.end(), "algbw") == cells.end()) return;
    const std::vector<std::string> names(begin, cells.end());
    const auto time = std::find(names.begin(), names.end(), "time");
    if (time == names.end() || std::find(begin, cells.end(), "cputime") != cells.end()) {
      throw InputError(place(line_number), fmt::format("the columns {}", fmt::join(names, " ")),
                       "a column time (with -C the CPU's time is printed, which is not the "
                       "operation's)");
    }
    Columns columns;
    columns.num_leading = static_cast<std::size_t>(time - names.begin());
    columns.num_trailing = names.size() - columns.num_leading;
    if (names.back() == "timestamp") ++columns.num_trailing;  // printed as date and time
    columns.has_redop = std::find(names.begin(), time, "redop") != time;
    columns.has_root = std::find(names.begin(), time, "root") != time;
    columns.counts_wrong =
        names.size() > columns.num_leading + 3 && names[columns.num_leading + 3] == "#wrong";
    if (columns.num_leading != 3U + (columns.has_redop ? 1 : 0) + (columns.has_root ? 1 : 0) ||
        columns.num_trailing < 4) {
      throw InputError(place(line_number), fmt::format("the columns {}", fmt::join(names, " ")),
                       "size count type [redop] [root] time algbw busbw and errors");
    }
    block().columns = columns;
  }

  // Rows begin with two numbers and a type; other lines are the launcher's.
  void read_row(const std::vector<std::string>& cells, std::size_t line_number) {
    if (cells.size() < 3 || !type_bytes(cells[2]) || !number(cells[0]) || !number(cells[1])) return;
    const auto size = whole_number(cells[0]);
    const auto count = whole_number(cells[1]);
    if (!size || !count) {
      throw InputError(place(line_number), fmt::format("\"{} {}\"", cells[0], cells[1]),
                       "a size and a count, whole numbers of 0 or more");
    }
    if (!block().columns) {
      throw InputError(place(line_number), "a row before the line that names the columns",
                       "\"# size count type ... time algbw busbw\" above it");
    }
    const Columns& columns = *block().columns;
    // Versions without a root column print nothing for an operation that does not reduce.
    const bool no_redop = columns.has_redop && !columns.has_root &&
                          cells.size() + 1 == columns.num_leading + columns.num_trailing;
    const std::size_t leading = columns.num_leading - (no_redop ? 1 : 0);
    if (cells.size() != leading + columns.num_trailing) {
      throw InputError(place(line_number), counted(cells.size(), "cell"),
                       fmt::format("{} as the line of columns says",
                                   columns.num_leading + columns.num_trailing));
    }
    if (*size == 0) return;
    Row row{line_number, *size, *count, cells[2], "", "", "", "", "", "", ""};
    if (columns.has_redop && !no_redop) row.redop = cells[3];
    if (columns.has_root) row.root = cells[leading - 1];
    row.time = cells[leading];
    row.algbw = cells[leading + 1];
    row.busbw = cells[leading + 2];
    if (columns.counts_wrong) row.wrong = cells[leading + 3];
    if (columns.counts_wrong && columns.num_trailing >= 8) row.wrong_in_place = cells[leading + 7];
    block().rows.push_back(row);
  }

  std::string name_;
  std::vector<Block> blocks_{1};
};

// Whether `share` of algbw is busbw, as far as the printed digits tell.
bool bus_share_is(const Row& row, double share) {
  const double algbw = *number(row.algbw);
  const double busbw = *number(row.busbw);
  return std::abs(busbw - share * algbw) <=
         rounding(row.busbw) + share * rounding(row.algbw) + 1e-9;
}

// Ranks of each communicator, from the rank lines; 0 where lines are elided or missing.
std::uint32_t ranks_of(const Block& block, const std::string& name) {
  if (block.group_of_rank.empty() || block.elided) return 0;
  std::map<std::uint32_t, std::uint32_t> sizes;
  for (const auto& [rank, group] : block.group_of_rank) ++sizes[group];
  const std::uint32_t highest = block.group_of_rank.rbegin()->first;
  if (sizes.size() == 1) {
    if (block.group_of_rank.size() != highest + 1) {
      throw InputError(
          name, fmt::format("{} rank lines up to rank {}", block.group_of_rank.size(), highest),
          "a line for every rank, or \"...\" where they are left out");
    }
    return highest + 1;
  }
  for (const auto& [group, size] : sizes) {
    if (size != sizes.begin()->second) {
      throw InputError(
          name, fmt::format("groups of {} and {}", sizes.begin()->second, counted(size, "rank")),
          "groups of equally many ranks");
    }
  }
  return sizes.begin()->second;
}

void check_row(const Row& row, const std::string& name) {
  const std::string place = fmt::format("{}:{}", name, row.line);
  const auto time_us = number(row.time);
  if (!time_us || *time_us <= 0.0) {
    throw InputError(place + ": time", fmt::format("\"{}\"", row.time), "microseconds above zero");
  }
  for (const auto& [cell, column] : {std::pair{&row.algbw, "algbw"}, {&row.busbw, "busbw"}}) {
    if (!number(*cell)) {
      throw InputError(fmt::format("{}: {}", place, column), fmt::format("\"{}\"", *cell), "GB/s");
    }
  }
  const double size = static_cast<double>(row.size);
  const double low = size / (*time_us + rounding(row.time)) * 1e-3 - rounding(row.algbw);
  const double high =
      size / std::max(*time_us - rounding(row.time), 1e-9) * 1e-3 + rounding(row.algbw);
  const double algbw = *number(row.algbw);
  if (algbw < low - 1e-9 || algbw > high + 1e-9) {
    throw InputError(place, fmt::format("algbw {} GB/s", row.algbw),
                     fmt::format("{:.2f}, which {} in {} us are", size / *time_us * 1e-3,
                                 counted(row.size, "byte"), row.time));
  }
  if (!row.wrong.empty() && number(row.wrong).value_or(0.0) > 0.0) {
    throw InputError(place, fmt::format("{} wrong elements", row.wrong),
                     "results that nccl-tests found right");
  }
}

enum class Kind { kAllToAll, kSendRecv, kOther };

struct Verdict {
  Kind kind = Kind::kOther;
  std::uint32_t num_ranks = 0;  // of an all-to-all
  std::string found, expected;  // what speaks against it; of kOther
  std::size_t line = 0;
};

// Ranks that the count column of an all-to-all tells; 0 where it is none.
std::uint32_t ranks_by_count(const Row& row) {
  const std::uint64_t part = row.count * type_bytes(row.type).value_or(0);
  return part > 0 && row.size % part == 0 ? static_cast<std::uint32_t>(row.size / part) : 0;
}

// What operation wrote the block: what the log says or the rows tell, each row held against it.
Verdict judge(const Block& block, const std::string& name) {
  Verdict verdict;
  const bool named = !block.program.empty();
  if (named && block.program != "alltoall" && block.program != "alltoallv" &&
      block.program != "sendrecv") {
    verdict.found = "a log of " + block.program + "_perf";
    verdict.expected = kExpected;
    return verdict;
  }
  std::uint32_t num_ranks = ranks_of(block, name);
  if (num_ranks == 1) {
    throw InputError(name, "a test of one rank alone",
                     "at least two ranks (nccl-tests built without MPI starts every process as "
                     "rank 0 of 1)");
  }
  if (num_ranks == 0 && block.group_of_rank.empty() && !block.elided) {
    throw InputError(fmt::format("{}:{}", name, block.rows.front().line),
                     "a table without \"# Rank ... device\" lines above it",
                     "one for each of at least two ranks");
  }
  if (num_ranks == 0) {  // lines are elided
    num_ranks = ranks_by_count(block.rows.front());
    if (!block.group_of_rank.empty() && block.group_of_rank.rbegin()->first >= num_ranks &&
        num_ranks != 1) {
      throw InputError(name, fmt::format("rank {}", block.group_of_rank.rbegin()->first),
                       fmt::format("ranks below {}, as size / count says", num_ranks));
    }
  }
  const double all_to_all = num_ranks > 0 ? (num_ranks - 1.0) / num_ranks : -1.0;
  bool may_be_all_to_all = !named || block.program != "sendrecv";
  bool may_be_send_receive = !named || block.program == "sendrecv";
  for (const Row& row : block.rows) {
    check_row(row, name);
    verdict.line = row.line;
    if (!row.root.empty() && row.root.front() != '-') {
      verdict.found = "operations with a root";
      verdict.expected = kExpected;
      return verdict;
    }
    if (!row.redop.empty() && row.redop != "none") {
      verdict.found = fmt::format("the reduction \"{}\"", row.redop);
      verdict.expected = kExpected;
      return verdict;
    }
    const std::uint64_t part = row.count * *type_bytes(row.type);
    may_be_all_to_all = may_be_all_to_all && num_ranks >= 2 && bus_share_is(row, all_to_all) &&
                        part * num_ranks == row.size;
    may_be_send_receive = may_be_send_receive && bus_share_is(row, 1.0) && part == row.size;
    // all_gather_perf has the same shares; its in-place results are checked, those of an all-to-all
    // are not (it has none).
    const bool in_place =
        !row.root.empty() && !row.wrong_in_place.empty() && row.wrong_in_place != "N/A" && !named;
    if (may_be_all_to_all && in_place) {
      verdict.found = "checked in-place results, as all_gather_perf has";
      verdict.expected = kExpected;
      return verdict;
    }
    if (!may_be_all_to_all && !may_be_send_receive) {
      verdict.found = fmt::format("busbw / algbw = {} / {} and count {} of {} for {} with {}",
                                  row.busbw, row.algbw, row.count, row.type,
                                  counted(row.size, "byte"), counted(num_ranks, "rank"));
      verdict.expected =
          fmt::format("{:.3f} and size / {} (alltoall_perf), or 1 and size (sendrecv_perf)",
                      std::max(all_to_all, 0.0), num_ranks);
      return verdict;
    }
  }
  if (may_be_all_to_all && may_be_send_receive) {
    throw InputError(name, "bandwidths too small to tell alltoall_perf from sendrecv_perf",
                     "larger sizes, or a log that names its program");
  }
  verdict.kind = may_be_all_to_all ? Kind::kAllToAll : Kind::kSendRecv;
  verdict.num_ranks = num_ranks;
  return verdict;
}

[[noreturn]] void refuse(const Verdict& verdict, const std::string& name) {
  throw InputError(verdict.line > 0 ? fmt::format("{}:{}", name, verdict.line) : name,
                   verdict.found, verdict.expected);
}

// The points of all blocks of the most useful kind.
std::vector<AllToAllPoint> points_of(const std::vector<Block>& blocks, const std::string& name,
                                     std::vector<std::string>* notes) {
  std::vector<Verdict> verdicts;
  std::set<Kind> kinds;
  for (const Block& block : blocks) {
    verdicts.push_back(judge(block, name));
    kinds.insert(verdicts.back().kind);
    if (verdicts.back().kind == Kind::kOther && block.program.starts_with("alltoall")) {
      refuse(verdicts.back(), name);
    }
  }
  if (*kinds.begin() == Kind::kOther) refuse(verdicts.front(), name);
  const Kind kind = *kinds.begin();
  std::vector<AllToAllPoint> points;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const Block& block = blocks[b];
    const Verdict& verdict = verdicts[b];
    if (verdict.kind != kind) {
      if (notes == nullptr) continue;
      const std::string what = verdict.kind == Kind::kOther ? verdict.found : "a send and receive";
      notes->push_back(fmt::format("{}: left out a test of {} ({}): not an all-to-all", name,
                                   counted(block.rows.size(), "size"), what));
      continue;
    }
    for (const Row& row : block.rows) {
      AllToAllPoint point;
      point.device = block.device;
      point.machine = block.device.empty() ? "nccl-tests" : block.device;
      point.version = block.version;
      // In a send and receive every rank's whole buffer goes to one other.
      point.num_ranks = kind == Kind::kAllToAll ? verdict.num_ranks : 2;
      point.bytes_per_rank = static_cast<double>(row.size) * (kind == Kind::kAllToAll ? 1.0 : 2.0);
      point.time_s = *number(row.time) * 1e-6;
      points.push_back(point);
    }
  }
  return points;
}

}  // namespace

bool is_nccl_log(const std::string& text) {
  static const std::regex kMark(
      R"(#\s*(nThread \d+ nGpus|nccl-tests version|Using devices|Collective test starting|Rank\s+\d+ .*device))");
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (line.size() < 4096 && line.find('#') != std::string::npos &&
        std::regex_search(line, kMark)) {
      return true;
    }
  }
  return false;
}

std::vector<AllToAllPoint> read_nccl_log(const std::string& text, const std::string& name,
                                         std::vector<std::string>* notes) {
  Parser parser(name);
  std::istringstream stream(text);
  std::size_t number_of_line = 0;
  for (std::string line; std::getline(stream, line);) parser.read_line(line, ++number_of_line);
  const std::vector<Block> blocks = std::move(parser).finish();
  if (blocks.empty()) throw InputError(name, "no rows of a test", kExpected);
  return points_of(blocks, name, notes);
}

bool is_nccl_report(const std::string& text) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  return first != std::string::npos && text[first] == '{' &&
         text.find("\"nccl_version\"") != std::string::npos &&
         text.find("\"results\"") != std::string::npos &&
         text.find("\"out_of_place\"") != std::string::npos;
}

std::vector<AllToAllPoint> read_nccl_report(const std::string& text, const std::string& name) {
  const nlohmann::json document = parse_json(text, name, "a report of nccl-tests");
  try {
    Block block;
    block.program = program_in(document.at("args").at(0).get<std::string>());
    block.version = fmt::format("{}", document.at("nccl_version").get<std::int64_t>());
    // The report lists the first device of every process only.
    block.elided = true;
    for (const auto& device : document.at("config").at("devices")) {
      block.group_of_rank.emplace(device.at("rank").get<std::uint32_t>(),
                                  device.at("group").get<std::uint32_t>());
      block.device = device.at("device_info").get<std::string>();
    }
    for (const auto& result : document.at("results")) {
      const auto& measured = result.at("out_of_place");
      Row row;
      row.size = result.at("size").get<std::uint64_t>();
      if (row.size == 0) continue;
      row.count = result.at("count").get<std::uint64_t>();
      row.type = result.at("type").get<std::string>();
      row.redop = result.at("redop").get<std::string>();
      row.root = words(result.at("root").get<std::string>()).at(0);
      row.time = fmt::format("{:.6f}", measured.at("time").get<double>());
      row.algbw = fmt::format("{:.6f}", measured.at("alg_bw").get<double>());
      row.busbw = fmt::format("{:.6f}", measured.at("bus_bw").get<double>());
      if (!measured.at("nwrong").is_null()) {
        row.wrong = fmt::format("{}", measured.at("nwrong").get<double>());
      }
      const auto& in_place = result.at("in_place");
      row.wrong_in_place =
          in_place.is_null() || in_place.at("nwrong").is_null() ? "N/A" : "checked";
      row.line = block.rows.size() + 1;
      if (!type_bytes(row.type)) {
        throw InputError(name, fmt::format("type \"{}\"", row.type), "a type of nccl-tests");
      }
      block.rows.push_back(row);
    }
    if (block.rows.empty()) throw InputError(name, "no results", kExpected);
    return points_of({block}, name, nullptr);
  } catch (const nlohmann::json::exception& error) {
    throw InputError(name, fmt::format("another structure ({})", json_fault(error)),
                     "the report that nccl-tests writes with -J");
  } catch (const std::out_of_range&) {
    throw InputError(name, "an empty text", "the report that nccl-tests writes with -J");
  }
}

std::string unread_nccl_output(const std::string& text) {
  const std::string head = text.substr(text.find_first_not_of(" \t\r\n"), 4096);
  const auto has = [&](const char* word) { return head.find(word) != std::string::npos; };
  if (has("nccl-tests structured output") || (head.front() == '{' && has("oop_busbw"))) {
    return "structured output made of nccl-tests' results (JSON with oop_time, oop_busbw)";
  }
  if (head.front() == '{' && has("\"busBw\"") && has("\"inPlace\"")) {
    return "structured output of rccl-tests (a line of JSON per result)";
  }
  if (head.find("busBw") < head.find('\n') && has("inPlace")) {
    return "structured output of rccl-tests (CSV)";
  }
  return "";
}

}  // namespace coterie
