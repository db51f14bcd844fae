// Tables of choices or counts. The header says what the columns are; a header or a combination of
// columns that is not listed here is refused, never guessed at.
//
//   layer, experts          one line per (token, layer), ids separated by spaces, best first; a
//                           file without a header is read so
//   layer, expert           one line per (token, layer, rank of choice): --num-topk says how many
//                           lines are a token (what evaluation callbacks of llama.cpp print)
//   token, layer, experts   the same two with the token's number, in any order of lines
//   token, layer, expert
//   layer_id, expert_id, count   counts, as SGLang's first recorder dumped them
//   expert_id, count             counts of one layer, which --layers names
//
// A layer's lines in order are its tokens in order; one file is one sequence.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <set>
#include <string_view>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/excerpt.hpp"
#include "core/file.hpp"
#include "workloads/trace/importers/assemble.hpp"
#include "workloads/trace/importers/formats.hpp"
#include "workloads/trace/importers/rows.hpp"

namespace coterie {
namespace {

enum class Column : std::uint8_t { kToken, kLayer, kExpert, kExperts, kCount };

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";  // in front of spreadsheets' exports

// Names under which columns are found in the wild, in any case.
std::optional<Column> column_of(std::string_view cell) {
  std::string name(cell);
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  struct Name {
    std::string_view name;
    Column column;
  };
  static constexpr std::array<Name, 14> kNames{{{"token", Column::kToken},
                                                {"token_idx", Column::kToken},
                                                {"token_index", Column::kToken},
                                                {"layer", Column::kLayer},
                                                {"layer_id", Column::kLayer},
                                                {"layer_idx", Column::kLayer},
                                                {"expert", Column::kExpert},
                                                {"expert_id", Column::kExpert},
                                                {"expert_idx", Column::kExpert},
                                                {"experts", Column::kExperts},
                                                {"expert_ids", Column::kExperts},
                                                {"topk_ids", Column::kExperts},
                                                {"count", Column::kCount},
                                                {"counts", Column::kCount}}};
  for (const Name& known : kNames) {
    if (known.name == name) return known.column;
  }
  return std::nullopt;
}

constexpr std::string_view kKnown =
    "a header of layer,experts; layer,expert; token,layer,experts; token,layer,expert; "
    "layer_id,expert_id,count or expert_id,count";

std::string_view trim(std::string_view text, std::string_view unwanted) {
  const std::size_t begin = text.find_first_not_of(unwanted);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(unwanted) - begin + 1);
}

// The cells of a line; quotes around a cell are taken off.
std::vector<std::string_view> cells_of(std::string_view line, const std::string& where) {
  std::vector<std::string_view> cells;
  for (std::size_t begin = 0;;) {
    std::size_t end = std::string_view::npos;
    const std::size_t text = line.find_first_not_of(" \t", begin);
    if (text != std::string_view::npos && line[text] == '"') {
      const std::size_t close = line.find('"', text + 1);
      if (close == std::string_view::npos) {
        throw InputError(where, "a quote that is not closed", "a quote at the end of the cell");
      }
      end = line.find(',', close);
    } else {
      end = line.find(',', begin);
    }
    cells.push_back(trim(line.substr(begin, end - begin), " \t\r\""));
    if (end == std::string_view::npos) return cells;
    begin = end + 1;
  }
}

template <class T>
T parse_integer(std::string_view text, const std::string& where, std::string_view expected) {
  T value{};
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || end != text.data() + text.size()) {
    throw InputError(where, fmt::format("\"{}\"", text), expected);
  }
  return value;
}

std::vector<std::int64_t> parse_ids(std::string_view text, const std::string& where) {
  std::vector<std::int64_t> ids;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find_first_of(" \t"), text.size());
    ids.push_back(parse_integer<std::int64_t>(text.substr(0, end), where, "an expert id"));
    text = trim(text.substr(end), " \t");
  }
  return ids;
}

// What the columns of a header are. Throws for names that are not known.
std::vector<Column> parse_header(const std::vector<std::string_view>& cells,
                                 const std::string& where) {
  std::vector<Column> columns;
  for (const std::string_view cell : cells) {
    const auto column = column_of(cell);
    if (!column) {
      throw InputError(where, fmt::format("a column \"{}\"", cell), kKnown);
    }
    if (std::find(columns.begin(), columns.end(), *column) != columns.end()) {
      throw InputError(where, "the columns " + excerpt(fmt::format("{}", fmt::join(cells, ","))),
                       kKnown);
    }
    columns.push_back(*column);
  }
  std::vector<Column> sorted = columns;
  std::sort(sorted.begin(), sorted.end());
  static const std::set<std::vector<Column>> kKinds{
      {Column::kLayer, Column::kExperts},
      {Column::kLayer, Column::kExpert},
      {Column::kToken, Column::kLayer, Column::kExperts},
      {Column::kToken, Column::kLayer, Column::kExpert},
      {Column::kLayer, Column::kExpert, Column::kCount},
      {Column::kExpert, Column::kCount}};
  if (!kKinds.contains(sorted)) {
    throw InputError(where, "the columns " + excerpt(fmt::format("{}", fmt::join(cells, ","))),
                     kKnown);
  }
  return columns;
}

std::optional<std::uint32_t> topk_of(const ImportOptions& options) {
  if (options.num_topk) return options.num_topk;
  if (options.model) return options.model->num_topk;
  return std::nullopt;
}

class CsvReader {
 public:
  CsvReader(std::string name, const ImportOptions& options)
      : name_(std::move(name)), options_(options) {}

  void read_line(std::string_view line, std::uint64_t number) {
    const std::string where = fmt::format("{}: line {}", name_, number);
    const auto cells = cells_of(line, where);
    if (columns_.empty()) {
      const bool header =
          line.find_first_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") <
          line.find_first_of("0123456789");
      columns_ = header ? parse_header(cells, where)
                        : std::vector<Column>{Column::kLayer, Column::kExperts};
      has_header_ = header;
      if (header) return;
    }
    if (cells.size() != columns_.size()) {
      throw InputError(
          where, fmt::format("{} (\"{}\")", counted(cells.size(), "cell"), line.substr(0, 60)),
          has_header_ ? fmt::format("{} as the header has", columns_.size())
                      : "layer,\"space separated ids\"");
    }
    if (has(Column::kCount)) {
      add_count(cells, where);
    } else {
      add_choice(cells, where);
    }
  }

  Imported finish() {
    if (has(Column::kCount)) return finish_counts();
    return has(Column::kExpert) ? finish_single() : finish_lists();
  }

 private:
  [[nodiscard]] bool has(Column column) const {
    return std::find(columns_.begin(), columns_.end(), column) != columns_.end();
  }
  [[nodiscard]] std::string_view cell(const std::vector<std::string_view>& cells,
                                      Column column) const {
    const auto found = std::find(columns_.begin(), columns_.end(), column);
    return cells[static_cast<std::size_t>(found - columns_.begin())];
  }
  [[nodiscard]] std::uint32_t layer(const std::vector<std::string_view>& cells,
                                    const std::string& where) const {
    return parse_integer<std::uint32_t>(cell(cells, Column::kLayer), where, "a layer number");
  }

  // Lines of choices. With one expert per line, lines wait until a token's are complete.
  void add_choice(const std::vector<std::string_view>& cells, const std::string& where) {
    const std::uint32_t number = layer(cells, where);
    std::optional<std::uint64_t> token;
    if (has(Column::kToken)) {
      token = parse_integer<std::uint64_t>(cell(cells, Column::kToken), where, "a token's number");
    }
    if (has(Column::kExperts)) {
      const auto ids = parse_ids(cell(cells, Column::kExperts), where);
      all_single_ = all_single_ && ids.size() == 1;
      table_.add(0, token ? *token : num_tokens_[number]++, number, ids, {}, where);
      return;
    }
    const auto id =
        parse_integer<std::int64_t>(cell(cells, Column::kExpert), where, "an expert id");
    if (token) {
      by_token_[{*token, number}].push_back(id);
      return;
    }
    const auto num_topk = topk_of(options_);
    if (!num_topk) {
      throw InputError(where, "one expert per line, which does not say how many lines are a token",
                       "--num-topk or --model to say how many experts a token has");
    }
    auto& waiting = waiting_[number];
    waiting.push_back(id);
    if (waiting.size() < *num_topk) return;
    table_.add(0, num_tokens_[number]++, number, waiting, {}, where);
    waiting.clear();
  }

  Imported finish_single() {
    for (const auto& [number, ids] : waiting_) {
      if (ids.empty()) continue;
      throw InputError(fmt::format("{}: layer {}", name_, number),
                       fmt::format("{} choices after the last whole token", ids.size()),
                       fmt::format("{} per token", *topk_of(options_)));
    }
    for (const auto& [at, ids] : by_token_) {
      table_.add(0, at.first, at.second, ids, {},
                 fmt::format("{}: token {}, layer {}", name_, at.first, at.second));
    }
    return finish_table();
  }

  // Without a header a column of single ids may be one choice of several.
  Imported finish_lists() {
    const auto num_topk = topk_of(options_);
    if (!has_header_ && all_single_ && table_.num_rows() > 0 && num_topk != 1U) {
      throw InputError(name_,
                       "one expert per line and no header to say whether that is all of a token's "
                       "choice",
                       "--num-topk 1, or a header layer,expert and --num-topk");
    }
    return finish_table();
  }

  Imported finish_table() {
    Imported imported = table_.finish(resolve_num_experts({}, options_, name_), options_, name_);
    imported.notes.emplace_back(
        "a table of choices does not name requests: all tokens count as one sequence, and whether "
        "other files hold the same prompt cannot be known");
    return imported;
  }

  void add_count(const std::vector<std::string_view>& cells, const std::string& where) {
    std::uint32_t number = 0;
    if (has(Column::kLayer)) {
      number = layer(cells, where);
    } else if (options_.layers.size() == 1) {
      number = options_.layers.front();
    } else {
      throw InputError(where, "counts without a layer (expert_id,count)",
                       "--layers with the number of the one layer they are of; counts summed over "
                       "layers are of no use");
    }
    const auto expert =
        parse_integer<std::uint32_t>(cell(cells, Column::kExpert), where, "an expert id");
    const auto count =
        parse_integer<std::uint64_t>(cell(cells, Column::kCount), where, "a count from 0");
    if (expert >= kMaxExperts) {
      throw InputError(where, fmt::format("expert {}", expert),
                       fmt::format("an id from 0 to {}", kMaxExperts - 1));
    }
    if (!counts_[number].try_emplace(expert, count).second) {
      throw InputError(where, fmt::format("expert {} of layer {} twice", expert, number),
                       "each once");
    }
  }

  // Every layer must list the same experts 0 to E - 1, or the options must give their number:
  // recorders leave out experts that nobody chose.
  Imported finish_counts() {
    std::optional<std::uint32_t> recorded;
    bool complete = !counts_.empty();
    for (const auto& [number, row] : counts_) {
      const std::uint32_t size = row.rbegin()->first + 1;
      complete = complete && row.size() == size && (!recorded || *recorded == size);
      recorded = size;
    }
    ExpertCounts counts;
    const bool given = options_.num_experts || options_.model;
    counts.num_experts =
        resolve_num_experts(complete && !given ? recorded : std::nullopt, options_, name_);
    if (topk_of(options_)) counts.num_topk = *topk_of(options_);
    for (const auto& [number, row] : counts_) {
      const std::uint32_t largest = row.rbegin()->first;
      if (largest >= counts.num_experts) {
        throw InputError(fmt::format("{}: layer {}", name_, number),
                         fmt::format("expert {}", largest),
                         fmt::format("an id below {}", counts.num_experts));
      }
      counts.layers.push_back(number);
      const std::size_t begin = counts.counts.size();
      counts.counts.resize(begin + counts.num_experts, 0);
      for (const auto& [expert, count] : row) counts.counts[begin + expert] = count;
    }
    if (counts.layers.empty()) throw InputError(name_, "no counts", "at least one line of them");
    Imported imported;
    imported.trace = std::move(counts);
    return imported;
  }

  std::string name_;
  const ImportOptions& options_;
  std::vector<Column> columns_;
  bool has_header_ = false;
  bool all_single_ = true;
  RowTable table_;
  std::map<std::uint32_t, std::uint64_t> num_tokens_;           // so far, per layer
  std::map<std::uint32_t, std::vector<std::int64_t>> waiting_;  // a token's first choices
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::vector<std::int64_t>> by_token_;
  std::map<std::uint32_t, std::map<std::uint32_t, std::uint64_t>> counts_;  // layer, expert
};

}  // namespace

bool is_csv(const FileHead& head) {
  std::string_view line = std::string_view(head.text).substr(0, head.text.find('\n'));
  if (line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  if (line.find('"') != std::string_view::npos) {  // layer,"1 2 3"
    return line.find_first_not_of("0123456789, \t\r\"") == std::string_view::npos;
  }
  for (std::size_t begin = 0, end = 0; end != std::string_view::npos; begin = end + 1) {
    end = line.find(',', begin);
    if (!column_of(trim(line.substr(begin, end - begin), " \t\r"))) return false;
  }
  return true;
}

Imported import_csv(const std::filesystem::path& path, const ImportOptions& options) {
  LineFile in(path);
  CsvReader reader(path.string(), options);
  std::string line;
  while (in.next(line)) {
    const std::uint64_t number = in.number();
    std::string_view text = line;
    if (number == 1 && text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
    text = trim(text, " \t\r");
    if (!text.empty()) reader.read_line(text, number);
  }
  return reader.finish();
}

}  // namespace coterie
