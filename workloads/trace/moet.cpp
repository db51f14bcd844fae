#include "workloads/trace/moet.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/trace/record_file.hpp"
#include "workloads/trace/trace.pb.h"

namespace coterie {
namespace {

// The file: records (record_file.hpp), the first of them the header, the last the footer.
constexpr RecordFileKind kTraceFile{
    std::string_view("MOETRC\x00\x01", 8), "trace",
    "a .moet trace (`coterie trace import` and `generate` write them)"};
// Ids and weights per chunk: small enough to stay in the cache between checksum, parser and copy.
constexpr std::uint64_t kChunkBytes = std::uint64_t{1} << 20;
// With kMaxTopk and the 32 bits of a chunk's tokens, every product of sizes stays below 2^64.
constexpr int kMaxLayers = 1 << 16;
static_assert(kMaxTopk <= 1U << 12);

// ---------------------------------------------------------------- writing

void write_record(std::ostream& out, const moet::Record& record) {
  coterie::write_record(out, record.SerializeAsString());
}

moet::Record header_record(const Trace& trace) {
  moet::Record record;
  moet::Header& header = *record.mutable_header();
  std::visit(
      [&](const auto& t) {
        header.set_model(t.model);
        header.set_origin(t.origin);
        header.set_num_experts(t.num_experts);
        header.set_num_topk(t.num_topk);
        header.mutable_layers()->Assign(t.layers.begin(), t.layers.end());
      },
      trace);
  return record;
}

void write_footer(std::ostream& out, std::uint64_t num_tokens, std::uint64_t num_sequences,
                  std::uint64_t num_records) {
  moet::Record record;
  moet::Footer& footer = *record.mutable_footer();
  footer.set_num_tokens(num_tokens);
  footer.set_num_sequences(num_sequences);
  footer.set_num_records(num_records);
  write_record(out, record);
}

void write_routing(std::ostream& out, const Routing& routing) {
  const std::uint64_t num_tokens = routing.num_tokens();
  const std::size_t k = routing.num_topk;
  const std::size_t num_layers = routing.num_layers();
  const std::size_t id_bytes = routing.num_experts <= 256 ? 1 : 2;
  const bool weighted = !routing.weights.empty();

  moet::Record record = header_record(routing);
  record.mutable_header()->set_id_bytes(static_cast<std::uint32_t>(id_bytes));
  record.mutable_header()->set_has_weights(weighted);
  record.mutable_header()->set_num_tokens(num_tokens);
  write_record(out, record);

  const std::uint64_t token_bytes = num_layers * k * (id_bytes + (weighted ? sizeof(float) : 0));
  const std::uint64_t chunk_tokens = std::max<std::uint64_t>(1, kChunkBytes / token_bytes);
  std::uint64_t num_chunks = 0;
  std::size_t sequence = 0;
  for (std::uint64_t first = 0; first < num_tokens; first += chunk_tokens) {
    const std::uint64_t count = std::min(chunk_tokens, num_tokens - first);
    moet::Chunk& chunk = *record.mutable_chunk();
    chunk.set_first_token(first);
    chunk.set_num_tokens(static_cast<std::uint32_t>(count));
    chunk.clear_sequence_begin();
    for (; sequence < routing.num_sequences() && routing.sequence_begin[sequence] < first + count;
         ++sequence) {
      chunk.add_sequence_begin(routing.sequence_begin[sequence]);
    }
    std::string& ids = *chunk.mutable_experts();
    std::string& weights = *chunk.mutable_weights();
    const std::size_t row = count * k;
    ids.resize(num_layers * row * id_bytes);
    weights.resize(weighted ? num_layers * row * sizeof(float) : 0);
    for (std::size_t layer_idx = 0; layer_idx < num_layers; ++layer_idx) {
      const std::size_t from = (layer_idx * num_tokens + first) * k;
      if (id_bytes == 2) {
        std::memcpy(ids.data() + layer_idx * row * 2, routing.experts.data() + from, row * 2);
      } else {
        char* to = ids.data() + layer_idx * row;
        for (std::size_t i = 0; i < row; ++i) {
          to[i] = static_cast<char>(routing.experts[from + i]);
        }
      }
      if (weighted) {
        std::memcpy(weights.data() + layer_idx * row * sizeof(float), routing.weights.data() + from,
                    row * sizeof(float));
      }
    }
    write_record(out, record);
    ++num_chunks;
  }
  write_footer(out, num_tokens, routing.num_sequences(), num_chunks);
}

void write_counts(std::ostream& out, const ExpertCounts& counts) {
  moet::Record record = header_record(counts);
  record.mutable_header()->set_counts_only(true);
  write_record(out, record);
  for (std::size_t layer_idx = 0; layer_idx < counts.layers.size(); ++layer_idx) {
    moet::Counts& layer = *record.mutable_counts();
    layer.set_layer(counts.layers[layer_idx]);
    const auto begin =
        counts.counts.begin() + static_cast<std::ptrdiff_t>(layer_idx * counts.num_experts);
    layer.mutable_counts()->Assign(begin, begin + counts.num_experts);
    write_record(out, record);
  }
  write_footer(out, 0, 0, counts.layers.size());
}

// ---------------------------------------------------------------- reading

class RecordReader {
 public:
  explicit RecordReader(const std::filesystem::path& path) : file_(path, kTraceFile) {}

  const moet::Record& next() {
    const std::string_view message = file_.next();
    if (!record_.ParseFromArray(message.data(), static_cast<int>(message.size()))) {
      throw error("a record that is no Protobuf message of this format", "a trace record");
    }
    return record_;
  }

  [[nodiscard]] bool at_end() const { return file_.at_end(); }
  [[nodiscard]] std::uint64_t position() const { return file_.position(); }
  void seek(std::uint64_t position) { file_.seek(position); }
  [[nodiscard]] std::uint64_t file_size() const { return file_.file_size(); }
  // A fault of the record that was read last.
  [[nodiscard]] InputError error(std::string_view found, std::string_view expected) const {
    return file_.error(found, expected);
  }

 private:
  RecordFileReader file_;
  moet::Record record_;
};

moet::Header read_header(RecordReader& reader) {
  const moet::Record& record = reader.next();
  if (!record.has_header()) throw reader.error("no header", "the header as the first record");
  const moet::Header& header = record.header();
  if (header.num_experts() == 0 || header.num_experts() > kMaxExperts) {
    throw reader.error(counted(header.num_experts(), "expert"),
                       fmt::format("1 to {}", kMaxExperts));
  }
  if (header.layers().empty() || header.layers_size() > kMaxLayers) {
    throw reader.error(counted(header.layers_size(), "layer"), fmt::format("1 to {}", kMaxLayers));
  }
  if (header.counts_only()) return header;
  if (header.num_topk() == 0 || header.num_topk() > std::min(kMaxTopk, header.num_experts())) {
    throw reader.error(
        fmt::format("top-{} of {}", header.num_topk(), counted(header.num_experts(), "expert")),
        fmt::format("1 to {}", std::min(kMaxTopk, header.num_experts())));
  }
  if (header.id_bytes() != 1 && header.id_bytes() != 2) {
    throw reader.error(fmt::format("{} per expert id", counted(header.id_bytes(), "byte")),
                       "1 or 2");
  }
  return header;
}

template <class T>
void describe(T& trace, const moet::Header& header) {
  trace.model = header.model();
  trace.origin = header.origin();
  trace.num_experts = header.num_experts();
  trace.num_topk = header.num_topk();
  trace.layers.assign(header.layers().begin(), header.layers().end());
}

// Checks a chunk against the header and what came before it.
void check_chunk(const RecordReader& reader, const moet::Header& header, const moet::Chunk& chunk,
                 std::uint64_t tokens_before) {
  if (chunk.first_token() != tokens_before) {
    throw reader.error(fmt::format("a chunk that begins with token {}", chunk.first_token()),
                       fmt::format("token {}", tokens_before));
  }
  const std::uint64_t num_ids =
      static_cast<std::uint64_t>(header.layers_size()) * chunk.num_tokens() * header.num_topk();
  if (chunk.num_tokens() == 0 || chunk.experts().size() != num_ids * header.id_bytes()) {
    throw reader.error(
        fmt::format("{} of expert ids for {}", counted(chunk.experts().size(), "byte"),
                    counted(chunk.num_tokens(), "token")),
        fmt::format("{} (layers x tokens x top-k x {})", num_ids * header.id_bytes(),
                    header.id_bytes()));
  }
  const std::uint64_t weight_bytes = header.has_weights() ? num_ids * sizeof(float) : 0;
  if (chunk.weights().size() != weight_bytes) {
    throw reader.error(fmt::format("{} of router weights", counted(chunk.weights().size(), "byte")),
                       fmt::format("{}", weight_bytes));
  }
}

// Tokens in the whole file: the header's word, if the file can hold as many, else a pass over it.
std::uint64_t count_tokens(RecordReader& reader, const moet::Header& header) {
  if (header.has_num_tokens()) {
    const std::uint64_t token_bytes =
        static_cast<std::uint64_t>(header.layers_size()) * header.num_topk() * header.id_bytes();
    if (header.num_tokens() > reader.file_size() / token_bytes) {
      throw reader.error(
          fmt::format("{} announced", counted(header.num_tokens(), "token")),
          fmt::format("what a file of {} can hold", counted(reader.file_size(), "byte")));
    }
    return header.num_tokens();
  }
  const std::uint64_t first_chunk = reader.position();
  std::uint64_t tokens = 0;
  while (true) {
    const moet::Record& record = reader.next();
    if (!record.has_chunk()) break;
    check_chunk(reader, header, record.chunk(), tokens);
    tokens += record.chunk().num_tokens();
  }
  reader.seek(first_chunk);
  return tokens;
}

void copy_chunk(Routing& routing, std::uint64_t num_tokens, const moet::Header& header,
                const moet::Chunk& chunk) {
  const std::size_t row = static_cast<std::size_t>(chunk.num_tokens()) * routing.num_topk;
  for (std::size_t layer_idx = 0; layer_idx < routing.num_layers(); ++layer_idx) {
    const std::size_t to = (layer_idx * num_tokens + chunk.first_token()) * routing.num_topk;
    if (header.id_bytes() == 2) {
      std::memcpy(routing.experts.data() + to, chunk.experts().data() + layer_idx * row * 2,
                  row * 2);
    } else {
      const auto* from =
          reinterpret_cast<const unsigned char*>(chunk.experts().data()) + layer_idx * row;
      std::copy(from, from + row, routing.experts.begin() + static_cast<std::ptrdiff_t>(to));
    }
    if (header.has_weights()) {
      std::memcpy(routing.weights.data() + to,
                  chunk.weights().data() + layer_idx * row * sizeof(float), row * sizeof(float));
    }
  }
}

void check_footer(const RecordReader& reader, const moet::Record& record, std::uint64_t num_tokens,
                  std::uint64_t num_sequences, std::uint64_t num_records) {
  if (!record.has_footer()) throw reader.error("a record of another kind", "a chunk or the footer");
  const moet::Footer& footer = record.footer();
  if (footer.num_tokens() != num_tokens || footer.num_sequences() != num_sequences ||
      footer.num_records() != num_records) {
    throw reader.error(
        fmt::format("a footer for {}, {} and {}", counted(footer.num_tokens(), "token"),
                    counted(footer.num_sequences(), "sequence"),
                    counted(footer.num_records(), "record")),
        fmt::format("{}, {} and {}, as were read", counted(num_tokens, "token"),
                    counted(num_sequences, "sequence"), counted(num_records, "record")));
  }
  if (!reader.at_end()) throw reader.error("further bytes after the footer", "the end of the file");
}

Routing read_tokens(RecordReader& reader, const moet::Header& header) {
  Routing routing;
  describe(routing, header);
  const std::uint64_t num_tokens = count_tokens(reader, header);
  const std::size_t num_ids = routing.num_layers() * num_tokens * routing.num_topk;
  routing.experts.resize(num_ids);
  if (header.has_weights()) routing.weights.resize(num_ids);

  std::uint64_t tokens = 0;
  std::uint64_t num_chunks = 0;
  while (true) {
    const moet::Record& record = reader.next();
    if (!record.has_chunk()) {
      check_footer(reader, record, tokens, routing.sequence_begin.size(), num_chunks);
      break;
    }
    const moet::Chunk& chunk = record.chunk();
    check_chunk(reader, header, chunk, tokens);
    if (chunk.num_tokens() > num_tokens - tokens) {
      throw reader.error(fmt::format("token {}", tokens + chunk.num_tokens() - 1),
                         fmt::format("{}, as the header says", counted(num_tokens, "token")));
    }
    for (const std::uint64_t begin : chunk.sequence_begin()) {
      const bool ascending =
          routing.sequence_begin.empty() ? begin == 0 : begin > routing.sequence_begin.back();
      if (!ascending || begin < tokens || begin >= tokens + chunk.num_tokens()) {
        throw reader.error(fmt::format("a sequence that begins at token {}", begin),
                           "ascending begins inside the chunk, the first at token 0");
      }
      routing.sequence_begin.push_back(begin);
    }
    copy_chunk(routing, num_tokens, header, chunk);
    tokens += chunk.num_tokens();
    ++num_chunks;
  }
  if (tokens != num_tokens) {
    throw reader.error(counted(tokens, "token"), fmt::format("{}, as the header says", num_tokens));
  }
  routing.sequence_begin.push_back(num_tokens);
  return routing;
}

ExpertCounts read_counts(RecordReader& reader, const moet::Header& header) {
  ExpertCounts counts;
  describe(counts, header);
  for (const std::uint32_t layer : counts.layers) {
    const moet::Record& record = reader.next();
    if (!record.has_counts() || record.counts().layer() != layer ||
        std::cmp_not_equal(record.counts().counts_size(), counts.num_experts)) {
      throw reader.error("another record",
                         fmt::format("{} counts of layer {}", counts.num_experts, layer));
    }
    counts.counts.insert(counts.counts.end(), record.counts().counts().begin(),
                         record.counts().counts().end());
  }
  const moet::Record& footer = reader.next();
  check_footer(reader, footer, 0, 0, counts.layers.size());
  return counts;
}

}  // namespace

Trace read_moet(const std::filesystem::path& path) {
  RecordReader reader(path);
  const moet::Header header = read_header(reader);
  Trace trace = header.counts_only() ? Trace(read_counts(reader, header))
                                     : Trace(read_tokens(reader, header));
  const auto problems = std::visit([](const auto& t) { return check(t); }, trace);
  if (!problems.empty()) {
    throw InputError(fmt::format("{}: {}", path.string(), problems.front()));
  }
  return trace;
}

void write_moet(const std::filesystem::path& path, const Trace& trace) {
  const auto problems = std::visit([](const auto& t) { return check(t); }, trace);
  if (!problems.empty()) {
    throw InputError(fmt::format("{}: not written: {}", path.string(), problems.front()));
  }
  write_file(path, [&](std::ostream& out) {
    write_record_file_magic(out, kTraceFile);
    std::visit(
        [&](const auto& t) {
          if constexpr (std::is_same_v<std::decay_t<decltype(t)>, Routing>) {
            write_routing(out, t);
          } else {
            write_counts(out, t);
          }
        },
        trace);
  });
}

Routing read_routing(const std::filesystem::path& path) {
  Trace trace = read_moet(path);
  if (auto* routing = std::get_if<Routing>(&trace)) return std::move(*routing);
  throw InputError(
      path.string(), "only expert counts",
      "a trace with the experts of every token (counts serve `load_balanced` placement "
      "and `trace info` alone)");
}

}  // namespace coterie
