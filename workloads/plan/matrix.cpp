#include "workloads/plan/matrix.hpp"

#include <charconv>
#include <cmath>
#include <optional>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kMaxRanks = 1u << 20;
constexpr double kPicosecond = 1e-12;
constexpr double kMaxStart = 1e21;  // picoseconds: 31 years, as long as any time may be (units.cpp)

// Walks through the lines of a text and their words, and knows where it is.
class LineReader {
 public:
  struct Word {
    std::string_view text;
    std::size_t line = 0;
    std::size_t column = 0;
  };

  LineReader(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  // The words of the next line that holds any, without comments; false at the end.
  bool next(std::vector<Word>& words) {
    words.clear();
    while (words.empty() && position_ < text_.size()) {
      const std::size_t end = std::min(text_.find('\n', position_), text_.size());
      std::string_view line = text_.substr(position_, end - position_);
      position_ = end + 1;
      ++line_;
      line = line.substr(0, line.find('#'));
      std::size_t at = 0;
      while ((at = line.find_first_not_of(" \t\r,", at)) != std::string_view::npos) {
        const std::size_t stop = std::min(line.find_first_of(" \t\r,", at), line.size());
        words.push_back({line.substr(at, stop - at), line_, at + 1});
        at = stop;
      }
    }
    return !words.empty();
  }

  [[nodiscard]] InputError error(const Word& word, std::string_view expected) const {
    std::string_view text = word.text.substr(0, 40);
    return {fmt::format("{}:{}:{}", name_, word.line, word.column), fmt::format("\"{}\"", text),
            expected};
  }
  [[nodiscard]] InputError error_at_line(std::string_view found, std::string_view expected) const {
    return {fmt::format("{}:{}", name_, line_), found, expected};
  }

 private:
  std::string_view text_;
  std::string name_;
  std::size_t position_ = 0;
  std::size_t line_ = 0;
};
using Words = std::vector<LineReader::Word>;

std::optional<std::int64_t> to_count(std::string_view text, std::int64_t max) {
  std::int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || end != text.data() + text.size() || value < 0 || value > max) {
    return std::nullopt;
  }
  return value;
}

// Sums over a whole matrix stay exact in double and in 64 bits.
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 50;

TrafficMatrix parse_matrix(std::string_view text, const std::string& name) {
  LineReader reader(text, name);
  Words words;
  if (!reader.next(words)) throw InputError(name, "an empty file", "a row of bytes per rank");
  TrafficMatrix traffic;
  if (words.size() > kMaxRanks) {
    throw reader.error_at_line(counted(words.size(), "value"),
                               fmt::format("at most {}", kMaxRanks));
  }
  traffic.num_ranks = static_cast<std::uint32_t>(words.size());
  std::vector<std::int64_t> row(words.size());
  std::uint32_t src = 0;
  do {
    if (src == traffic.num_ranks) {
      throw reader.error(words[0], fmt::format("the end: the {0} rows of a {0} x {0} matrix stand "
                                               "above",
                                               traffic.num_ranks));
    }
    if (words.size() != row.size()) {
      throw reader.error_at_line(counted(words.size(), "value"),
                                 fmt::format("{}, as in the first row", row.size()));
    }
    for (std::size_t i = 0; i < words.size(); ++i) {
      const auto bytes = to_count(words[i].text, kMaxBytes);
      if (!bytes) throw reader.error(words[i], "a whole number of bytes up to 2^50");
      row[i] = *bytes;
    }
    for (std::uint32_t step = 0; step < traffic.num_ranks; ++step) {
      const std::uint32_t dst = (src + step) % traffic.num_ranks;
      if (row[dst] > 0) traffic.entries.push_back({src, dst, row[dst], 0.0});
    }
    ++src;
  } while (reader.next(words));
  if (src != traffic.num_ranks) {
    throw reader.error_at_line(counted(src, "row"),
                               fmt::format("{}, as many as columns", traffic.num_ranks));
  }
  return traffic;
}

// "Nodes 16": the count of a header line.
std::int64_t header_count(const LineReader& reader, const Words& words, std::string_view key,
                          std::int64_t min, std::int64_t max) {
  const std::string expected = fmt::format("\"{} n\" with n from {} to {}", key, min, max);
  if (words[0].text != key) throw reader.error(words[0], expected);
  if (words.size() != 2) {
    throw reader.error_at_line(fmt::format("{} words", words.size()), expected);
  }
  const auto value = to_count(words[1].text, max);
  if (!value || *value < min) throw reader.error(words[1], expected);
  return *value;
}

// "3->5 id 7 start 0 size 1000", the pairs after the first word in any order.
TrafficEntry parse_connection(const LineReader& reader, const Words& words,
                              std::uint32_t num_ranks) {
  const std::size_t arrow = words[0].text.find("->");
  const std::string ranks = fmt::format("SRC->DST with ranks below {}", num_ranks);
  if (arrow == std::string_view::npos) throw reader.error(words[0], ranks);
  const auto src = to_count(words[0].text.substr(0, arrow), num_ranks - 1);
  const auto dst = to_count(words[0].text.substr(arrow + 2), num_ranks - 1);
  if (!src || !dst) throw reader.error(words[0], ranks);
  TrafficEntry entry{static_cast<std::uint32_t>(*src), static_cast<std::uint32_t>(*dst), 0, 0.0};
  bool started = false;
  for (std::size_t i = 1; i < words.size(); i += 2) {
    const std::string_view key = words[i].text;
    if (key != "id" && key != "start" && key != "size" && key != "prio") {
      throw reader.error(words[i], key.find("trigger") != std::string_view::npos
                                       ? "id, start or size: triggers are not supported"
                                       : "id, start or size");
    }
    if (i + 1 == words.size()) throw reader.error(words[i], "a value after it");
    const LineReader::Word& value = words[i + 1];
    if (key == "start") {
      double start = 0.0;
      const auto [end, status] =
          std::from_chars(value.text.data(), value.text.data() + value.text.size(), start);
      if (status != std::errc{} || end != value.text.data() + value.text.size() ||
          !(start >= 0.0 && start <= kMaxStart)) {
        throw reader.error(value, "a start in picoseconds, from 0 to 1e21");
      }
      entry.start_s = start * kPicosecond;
      started = true;
    } else {
      const auto number = to_count(value.text, kMaxBytes);
      if (!number || (key != "prio" && *number == 0)) {
        throw reader.error(value, key == "size" ? "a whole number of bytes from 1 to 2^50"
                                                : "a whole number above 0");
      }
      if (key == "size") entry.bytes = *number;
    }
  }
  if (entry.bytes == 0) throw reader.error_at_line("a connection without size", "\"size BYTES\"");
  if (!started) throw reader.error_at_line("a connection without start", "\"start PICOSECONDS\"");
  return entry;
}

TrafficMatrix parse_htsim(std::string_view text, const std::string& name) {
  LineReader reader(text, name);
  Words words;
  if (!reader.next(words)) throw InputError(name, "an empty file", "\"Nodes n\"");
  TrafficMatrix traffic;
  traffic.num_ranks =
      static_cast<std::uint32_t>(header_count(reader, words, "Nodes", 1, kMaxRanks));
  if (!reader.next(words)) throw reader.error_at_line("the end of the file", "\"Connections m\"");
  const auto num_connections = static_cast<std::uint64_t>(
      header_count(reader, words, "Connections", 0, std::int64_t{1} << 40));
  bool more = reader.next(words);
  while (more && (words[0].text == "Triggers" || words[0].text == "Failures")) {
    header_count(reader, words, words[0].text, 0, 0);
    more = reader.next(words);
  }
  for (; more; more = reader.next(words)) {
    if (traffic.entries.size() == num_connections) {
      throw reader.error(words[0], fmt::format("the end: the {} connections of the header stand "
                                               "above",
                                               num_connections));
    }
    traffic.entries.push_back(parse_connection(reader, words, traffic.num_ranks));
  }
  if (traffic.entries.size() != num_connections) {
    throw reader.error_at_line(fmt::format("{} connections", traffic.entries.size()),
                               fmt::format("{}, as the header says", num_connections));
  }
  return traffic;
}

}  // namespace

TrafficMatrix parse_traffic(std::string_view text, const std::string& name, MatrixFormat format) {
  return format == MatrixFormat::kMatrix ? parse_matrix(text, name) : parse_htsim(text, name);
}

TrafficMatrix read_traffic(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  LineReader reader(text, path.string());
  Words words;
  const bool htsim = reader.next(words) && words[0].text == "Nodes";
  return parse_traffic(text, path.string(), htsim ? MatrixFormat::kHtsim : MatrixFormat::kMatrix);
}

TrafficMatrix stage_traffic(const LayerPlan& plan, std::size_t stage_idx, Direction direction,
                            const PayloadSizes& sizes) {
  if (stage_idx >= plan.stages.size()) {
    throw InputError("stage", fmt::format("{}", stage_idx),
                     fmt::format("less than {}, the stages of a {} plan", plan.stages.size(),
                                 to_string(plan.policy)));
  }
  const Stage& stage = plan.stages[stage_idx];
  TrafficMatrix traffic;
  traffic.num_ranks = plan.num_ranks;
  traffic.entries.reserve(stage.num_transfers());
  for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
    if (direction == Direction::kDispatch) {
      traffic.entries.push_back(
          {stage.src[i], stage.dst[i], dispatch_bytes(stage, i, sizes).value, 0.0});
    } else {
      traffic.entries.push_back(
          {stage.dst[i], stage.src[i], combine_bytes(stage, i, sizes).value, 0.0});
    }
  }
  return traffic;
}

std::string format_matrix(const TrafficMatrix& traffic, std::int64_t unit) {
  const std::size_t n = traffic.num_ranks;
  std::vector<std::vector<const TrafficEntry*>> by_src(n);
  for (const TrafficEntry& entry : traffic.entries) by_src[entry.src].push_back(&entry);
  std::string out;
  std::vector<std::int64_t> row(n);
  for (std::size_t src = 0; src < n; ++src) {
    std::fill(row.begin(), row.end(), 0);
    for (const TrafficEntry* entry : by_src[src]) row[entry->dst] += entry->bytes;
    for (std::size_t dst = 0; dst < n; ++dst) {
      if (dst > 0) out += ' ';
      if (row[dst] % unit == 0) {
        fmt::format_to(std::back_inserter(out), "{}", row[dst] / unit);
      } else {  // exact: units are powers of two
        fmt::format_to(std::back_inserter(out), "{}",
                       static_cast<double>(row[dst]) / static_cast<double>(unit));
      }
    }
    out += '\n';
  }
  return out;
}

std::string format_htsim(const TrafficMatrix& traffic) {
  std::size_t num_connections = 0;
  std::string lines;
  for (const TrafficEntry& entry : traffic.entries) {
    if (entry.src == entry.dst) continue;
    ++num_connections;
    // htsim refuses the id 0.
    fmt::format_to(std::back_inserter(lines), "{}->{} id {} start {} size {}\n", entry.src,
                   entry.dst, num_connections, std::llround(entry.start_s / kPicosecond),
                   entry.bytes);
  }
  return fmt::format("Nodes {}\nConnections {}\n{}", traffic.num_ranks, num_connections, lines);
}

namespace {

// The rank blocks of a GOAL file. Every message has its own tag, so that it matches one receive.
class GoalWriter {
 public:
  explicit GoalWriter(std::uint32_t num_ranks) : blocks_(num_ranks), num_labels_(num_ranks) {}

  // Both return the operation's label on its rank.
  std::uint32_t send(std::uint32_t src, std::uint32_t dst, std::int64_t bytes, std::uint64_t tag) {
    return add(src, fmt::format("send {}b to {} tag {}", bytes, dst, tag));
  }
  std::uint32_t receive(std::uint32_t src, std::uint32_t dst, std::int64_t bytes,
                        std::uint64_t tag) {
    return add(dst, fmt::format("recv {}b from {} tag {}", bytes, src, tag));
  }
  void require(std::uint32_t rank, std::uint32_t label, std::uint32_t earlier) {
    fmt::format_to(std::back_inserter(blocks_[rank]), "l{} requires l{}\n", label, earlier);
  }
  [[nodiscard]] std::string finish() const {
    std::string out = fmt::format("num_ranks {}\n", blocks_.size());
    for (std::size_t rank = 0; rank < blocks_.size(); ++rank) {
      fmt::format_to(std::back_inserter(out), "\nrank {} {{\n{}}}\n", rank, blocks_[rank]);
    }
    return out;
  }

 private:
  std::uint32_t add(std::uint32_t rank, const std::string& operation) {
    const std::uint32_t label = ++num_labels_[rank];
    fmt::format_to(std::back_inserter(blocks_[rank]), "l{}: {}\n", label, operation);
    return label;
  }

  std::vector<std::string> blocks_;
  std::vector<std::uint32_t> num_labels_;
};

}  // namespace

std::string format_goal(const LayerPlan& plan, Direction direction, const PayloadSizes& sizes) {
  GoalWriter goal(plan.num_ranks);
  std::uint64_t tag = 0;
  constexpr std::uint32_t kNone = 0;
  if (direction == Direction::kDispatch) {
    std::vector<std::uint32_t> arrived;  // label of each stage-0 receive on the relay
    for (std::size_t s = 0; s < plan.stages.size(); ++s) {
      const Stage& stage = plan.stages[s];
      std::vector<std::uint32_t> receives(stage.num_transfers(), kNone);
      for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
        if (stage.src[i] == stage.dst[i]) continue;
        const std::int64_t bytes = dispatch_bytes(stage, i, sizes).value;
        const std::uint32_t label = goal.send(stage.src[i], stage.dst[i], bytes, tag);
        receives[i] = goal.receive(stage.src[i], stage.dst[i], bytes, tag++);
        if (s > 0 && arrived[stage.parent[i]] != kNone) {
          goal.require(stage.src[i], label, arrived[stage.parent[i]]);
        }
      }
      arrived = std::move(receives);
    }
    return goal.finish();
  }
  // Combine: the stages backwards, every transfer in the other direction. A relay answers once all
  // results that belong to the same stage-0 transfer are there.
  std::vector<std::vector<std::uint32_t>> gathered(plan.stages[0].num_transfers());
  for (std::size_t s = plan.stages.size(); s-- > 0;) {
    const Stage& stage = plan.stages[s];
    for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
      if (stage.src[i] == stage.dst[i]) continue;
      const std::int64_t bytes = combine_bytes(stage, i, sizes).value;
      const std::uint32_t label = goal.send(stage.dst[i], stage.src[i], bytes, tag);
      const std::uint32_t receive = goal.receive(stage.dst[i], stage.src[i], bytes, tag++);
      if (s > 0) {
        gathered[stage.parent[i]].push_back(receive);
      } else {
        for (const std::uint32_t earlier : gathered[i]) goal.require(stage.dst[i], label, earlier);
      }
    }
  }
  return goal.finish();
}

}  // namespace coterie
