// Plan files: what plan.proto says, in the framing that trace files have too.

#include <algorithm>
#include <cstring>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "workloads/plan/plan.pb.h"
#include "workloads/plan/plan_file.hpp"
#include "workloads/trace/record_file.hpp"

namespace coterie {
namespace {

constexpr RecordFileKind kPlanFile{std::string_view("MOEPLN\x00\x02", 8), "plan",
                                   "a dispatch plan (`coterie plan build` writes them)"};
constexpr std::uint32_t kMaxRounds = 1U << 20;
// Sums over a whole stage stay exact in 64 bits and in double.
constexpr std::uint64_t kMaxStageBytes = std::uint64_t{1} << 60;
constexpr std::size_t kChunk = std::size_t{1} << 18;  // transfers, rows or expert ids per record

// ------------------------------------------------------------ writing

template <class T>
void pack(std::span<const T> column, std::size_t first, std::size_t count, std::string& out) {
  out.assign(reinterpret_cast<const char*>(column.data() + first), count * sizeof(T));
}

class PlanWriter {
 public:
  explicit PlanWriter(std::ostream& out) : out_(out) {}

  void write(const DispatchPlan& plan) {
    write_record_file_magic(out_, kPlanFile);
    plan::Record record;
    plan::Header& header = *record.mutable_header();
    header.set_model(plan.model);
    header.set_hidden(plan.hidden);
    header.set_dispatch_payload(to_string(plan.dispatch_payload));
    header.set_combine_payload(to_string(plan.combine_payload));
    header.set_num_layers(static_cast<std::uint32_t>(plan.layers.size()));
    put(record);
    for (const LayerPlan& layer : plan.layers) write_layer(layer);
    const std::uint64_t num_records = num_records_;
    plan::Footer& footer = *record.mutable_footer();
    footer.set_num_layers(static_cast<std::uint32_t>(plan.layers.size()));
    footer.set_num_records(num_records);
    put(record);
  }

 private:
  void put(const plan::Record& record) {
    write_record(out_, record.SerializeAsString());
    ++num_records_;
  }

  void write_layer(const LayerPlan& layer) {
    plan::Record record;
    plan::Layer& out = *record.mutable_layer();
    out.set_policy(to_string(layer.policy));
    out.set_layer(layer.layer);
    out.set_num_ranks(layer.num_ranks);
    out.set_ranks_per_node(layer.ranks_per_node);
    out.set_num_experts(layer.num_experts);
    out.set_num_topk(layer.num_topk);
    out.set_num_rounds(layer.num_rounds);
    out.set_exact(layer.exact);
    out.set_has_rows(layer.has_rows());
    out.set_has_weights(!layer.weights.empty());
    out.mutable_token_begin()->Assign(layer.token_begin.begin(), layer.token_begin.end());
    out.mutable_rank_expert_begin()->Assign(layer.rank_expert_begin.begin(),
                                            layer.rank_expert_begin.end());
    pack(std::span(layer.rank_experts), 0, layer.rank_experts.size(), *out.mutable_rank_experts());
    out.mutable_rank_expert_tokens()->Assign(layer.rank_expert_tokens.begin(),
                                             layer.rank_expert_tokens.end());
    for (const Stage& stage : layer.stages) {
      out.add_hop(to_string(stage.hop));
      out.add_phase_out(to_string(stage.out));
      out.add_phase_back(to_string(stage.back));
      out.add_num_transfers(stage.num_transfers());
      out.add_num_rows(stage.row_token.size());
    }
    put(record);
    for (std::size_t first = 0; first < layer.experts.size(); first += kChunk) {
      const std::size_t count = std::min(kChunk, layer.experts.size() - first);
      plan::Tokens& tokens = *record.mutable_tokens();
      pack(std::span(layer.experts), first, count, *tokens.mutable_experts());
      if (!layer.weights.empty()) {
        pack(std::span(layer.weights), first, count, *tokens.mutable_weights());
      }
      put(record);
    }
    for (std::size_t s = 0; s < layer.stages.size(); ++s) write_stage(layer.stages[s], s);
  }

  void write_stage(const Stage& stage, std::size_t s) {
    plan::Record record;
    for (std::size_t first = 0; first < stage.num_transfers(); first += kChunk) {
      const std::size_t count = std::min(kChunk, stage.num_transfers() - first);
      plan::Transfers& out = *record.mutable_transfers();
      out.set_stage(static_cast<std::uint32_t>(s));
      pack(std::span(stage.src), first, count, *out.mutable_src());
      pack(std::span(stage.dst), first, count, *out.mutable_dst());
      pack(std::span(stage.round), first, count, *out.mutable_round());
      pack(std::span(stage.answer_order), first, count, *out.mutable_answer_order());
      pack(std::span(stage.num_rows), first, count, *out.mutable_num_rows());
      pack(std::span(stage.num_copies), first, count, *out.mutable_num_copies());
      if (!stage.parent.empty()) {
        pack(std::span(stage.parent), first, count, *out.mutable_parent());
      }
      if (!stage.row_begin.empty()) {
        pack(std::span(stage.row_begin), first + 1, count, *out.mutable_row_end());
      }
      put(record);
    }
    for (std::size_t first = 0; first < stage.row_token.size(); first += kChunk) {
      const std::size_t count = std::min(kChunk, stage.row_token.size() - first);
      plan::Rows& out = *record.mutable_rows();
      out.set_stage(static_cast<std::uint32_t>(s));
      pack(std::span(stage.row_token), first, count, *out.mutable_token());
      pack(std::span(stage.row_mask), first, count, *out.mutable_mask());
      put(record);
    }
  }

  std::ostream& out_;
  std::uint64_t num_records_ = 0;
};

// ------------------------------------------------------------ reading

// Reads a plan so that whoever uses it may index with what it holds. That it serves every expert is
// the checker's business.
class PlanReader {
 public:
  explicit PlanReader(const std::filesystem::path& path) : file_(path, kPlanFile) {}

  DispatchPlan read() {
    DispatchPlan result;
    next();
    if (!record_.has_header()) throw file_.error("no header", "the header as the first record");
    const plan::Header header = record_.header();
    result.model = header.model();
    result.hidden = header.hidden();
    hidden_ = header.hidden();
    result.dispatch_payload = payload(header.dispatch_payload());
    result.combine_payload = payload(header.combine_payload());
    if (result.hidden == 0 || result.hidden > (1u << 24)) {
      throw file_.error(fmt::format("hidden size {}", result.hidden), "1 to 16777216");
    }
    for (std::uint32_t i = 0; i < header.num_layers(); ++i) result.layers.push_back(read_layer());
    next();
    if (!record_.has_footer()) throw file_.error("a record of another kind", "the footer");
    if (record_.footer().num_layers() != header.num_layers() ||
        record_.footer().num_records() + 1 != num_records_) {
      throw file_.error(
          fmt::format("a footer for {} and {}", counted(record_.footer().num_layers(), "layer"),
                      counted(record_.footer().num_records(), "record")),
          fmt::format("{} and {}, as were read", counted(header.num_layers(), "layer"),
                      counted(num_records_ - 1, "record")));
    }
    if (!file_.at_end()) {
      throw file_.error("further bytes after the footer", "the end of the file");
    }
    return result;
  }

 private:
  void next() {
    const std::string_view message = file_.next();
    ++num_records_;
    if (!record_.ParseFromArray(message.data(), static_cast<int>(message.size()))) {
      throw file_.error("a record that is no Protobuf message of this format", "a plan record");
    }
  }

  PayloadType payload(const std::string& name) {
    if (const auto type = parse_payload(name)) return *type;
    throw file_.error(fmt::format("payload \"{}\"", name), "bf16 or fp8");
  }

  HopKind hop(const std::string& name) {
    for (const HopKind hop : {HopKind::kGroup, HopKind::kRail, HopKind::kNode}) {
      if (name == to_string(hop)) return hop;
    }
    throw file_.error(fmt::format("hop \"{}\"", name), "group, rail or node");
  }

  Phase phase(const std::string& name) {
    if (const auto phase = parse_phase(name)) return *phase;
    throw file_.error(fmt::format("phase \"{}\"", name), "a phase of transfers");
  }

  // Appends a packed column; its length must be `count` where given.
  template <class T>
  std::size_t append(const std::string& bytes, std::vector<T>& column,
                     std::optional<std::size_t> count = std::nullopt) {
    const std::size_t n = bytes.size() / sizeof(T);
    if (bytes.size() % sizeof(T) != 0 || (count && n != *count)) {
      throw file_.error(fmt::format("a column of {}", counted(bytes.size(), "byte")),
                        count ? fmt::format("{}", *count * sizeof(T))
                              : fmt::format("a multiple of {}", sizeof(T)));
    }
    const std::size_t before = column.size();
    column.resize(before + n);
    if (n > 0) std::memcpy(column.data() + before, bytes.data(), bytes.size());
    return n;
  }

  template <class T>
  void check_begins(const std::vector<T>& begins, std::size_t num, std::string_view what) {
    if (begins.size() != num + 1 || begins.front() != 0 ||
        !std::is_sorted(begins.begin(), begins.end())) {
      throw file_.error(fmt::format("{} that do not ascend from 0 or are not {}", what, num + 1),
                        fmt::format("ascending begins of {}", counted(num, "rank")));
    }
  }

  template <class T>
  void check_below(const std::vector<T>& ids, std::uint64_t limit, std::string_view what) {
    for (const T id : ids) {
      if (id >= limit)
        throw file_.error(fmt::format("{} {}", what, id), fmt::format("below {}", limit));
    }
  }

  // Rows, or copies, of the widest payload and their metadata.
  void check_volume(const std::vector<std::uint32_t>& counts, std::string_view what) {
    const std::uint64_t limit = kMaxStageBytes / (4 * std::uint64_t{hidden_} + 64);
    std::uint64_t total = 0;
    for (const std::uint32_t count : counts) total += count;
    if (total > limit) {
      throw file_.error(fmt::format("{} {} in one stage", total, what),
                        fmt::format("at most {} of hidden size {}", limit, hidden_));
    }
  }

  LayerPlan read_layer() {
    next();
    if (!record_.has_layer()) throw file_.error("a record of another kind", "a layer");
    const plan::Layer in = record_.layer();
    LayerPlan layer;
    const auto policy = parse_policy(in.policy());
    if (!policy) {
      throw file_.error(fmt::format("policy \"{}\"", in.policy()),
                        "standard, dedup or hierarchical");
    }
    layer.policy = *policy;
    layer.layer = in.layer();
    layer.num_ranks = in.num_ranks();
    layer.ranks_per_node = in.ranks_per_node();
    layer.num_experts = in.num_experts();
    layer.num_topk = in.num_topk();
    layer.exact = in.exact();
    layer.num_rounds = in.num_rounds();
    if (layer.num_rounds == 0 || layer.num_rounds > kMaxRounds) {
      throw file_.error(fmt::format("{} rounds", layer.num_rounds),
                        fmt::format("1 to {}", kMaxRounds));
    }
    if (layer.num_ranks == 0 || layer.ranks_per_node == 0 ||
        layer.num_ranks % layer.ranks_per_node != 0) {
      throw file_.error(
          fmt::format("{} and {} per node", counted(layer.num_ranks, "rank"), layer.ranks_per_node),
          "whole nodes of ranks");
    }
    if (layer.num_experts > kMaxExperts || layer.num_topk == 0 || layer.num_topk > kMaxTopk) {
      throw file_.error(
          fmt::format("top-{} of {}", layer.num_topk, counted(layer.num_experts, "expert")),
          fmt::format("top-1 to {} of at most {}", kMaxTopk, kMaxExperts));
    }
    layer.token_begin.assign(in.token_begin().begin(), in.token_begin().end());
    check_begins(layer.token_begin, layer.num_ranks, "token begins");
    layer.rank_expert_begin.assign(in.rank_expert_begin().begin(), in.rank_expert_begin().end());
    check_begins(layer.rank_expert_begin, layer.num_ranks, "begins of hosted experts");
    append(in.rank_experts(), layer.rank_experts, layer.rank_expert_begin.back());
    check_below(layer.rank_experts, layer.num_experts, "hosted expert");
    layer.rank_expert_tokens.assign(in.rank_expert_tokens().begin(), in.rank_expert_tokens().end());
    if (layer.rank_expert_tokens.size() != layer.rank_experts.size()) {
      throw file_.error(fmt::format("{} loads", layer.rank_expert_tokens.size()),
                        fmt::format("{}, as hosted experts", layer.rank_experts.size()));
    }
    const int num_stages = layer.policy == DispatchPolicy::kHierarchical ? 2 : 1;
    if (in.num_transfers_size() != num_stages || in.num_rows_size() != num_stages ||
        in.hop_size() != num_stages || in.phase_out_size() != num_stages ||
        in.phase_back_size() != num_stages) {
      throw file_.error(fmt::format("{} stages", in.num_transfers_size()),
                        fmt::format("{}, as a {} plan has", num_stages, in.policy()));
    }
    if (in.has_rows()) read_tokens(layer, in.has_weights());
    for (int s = 0; s < num_stages; ++s) {
      Stage stage = read_stage(layer, static_cast<std::uint32_t>(s), in.num_transfers(s),
                               in.has_rows(), in.num_rows(s));
      stage.hop = hop(in.hop(s));
      stage.out = phase(in.phase_out(s));
      stage.back = phase(in.phase_back(s));
      layer.stages.push_back(std::move(stage));
    }
    return layer;
  }

  void read_tokens(LayerPlan& layer, bool has_weights) {
    if (layer.num_tokens() > file_.file_size()) {
      throw file_.error(
          fmt::format("{} announced", counted(layer.num_tokens(), "token")),
          fmt::format("what a file of {} can hold", counted(file_.file_size(), "byte")));
    }
    const std::size_t wanted = layer.num_tokens() * layer.num_topk;
    while (layer.experts.size() < wanted) {
      next();
      if (!record_.has_tokens()) throw file_.error("a record of another kind", "tokens");
      const std::size_t n = append(record_.tokens().experts(), layer.experts);
      append(record_.tokens().weights(), layer.weights, has_weights ? n : 0);
      if (n == 0 || layer.experts.size() > wanted) {
        throw file_.error(fmt::format("{} expert ids", layer.experts.size()),
                          fmt::format("{}, as the layer says", wanted));
      }
    }
    check_below(layer.experts, layer.num_experts, "expert");
  }

  Stage read_stage(const LayerPlan& layer, std::uint32_t s, std::uint64_t num_transfers,
                   bool has_rows, std::uint64_t num_rows) {
    Stage stage;
    if (has_rows) stage.row_begin.push_back(0);
    while (stage.src.size() < num_transfers) {
      next();
      if (!record_.has_transfers() || record_.transfers().stage() != s) {
        throw file_.error("a record of another kind", fmt::format("transfers of stage {}", s));
      }
      const plan::Transfers& in = record_.transfers();
      const std::size_t n = append(in.src(), stage.src);
      append(in.dst(), stage.dst, n);
      append(in.round(), stage.round, n);
      append(in.answer_order(), stage.answer_order, n);
      append(in.num_rows(), stage.num_rows, n);
      append(in.num_copies(), stage.num_copies, n);
      append(in.parent(), stage.parent, s > 0 ? n : 0);
      append(in.row_end(), stage.row_begin, has_rows ? n : 0);
      if (n == 0 || stage.src.size() > num_transfers) {
        throw file_.error(fmt::format("{} transfers", stage.src.size()),
                          fmt::format("{}, as the layer says", num_transfers));
      }
    }
    check_below(stage.src, layer.num_ranks, "source rank");
    check_below(stage.dst, layer.num_ranks, "destination rank");
    check_below(stage.round, layer.num_rounds, "round");
    check_below(stage.answer_order, num_transfers, "answered transfer");
    check_volume(stage.num_rows, "rows");
    check_volume(stage.num_copies, "copies");
    if (s > 0) check_below(stage.parent, layer.stages[0].num_transfers(), "parent transfer");
    if (!has_rows) return stage;
    while (stage.row_token.size() < num_rows) {
      next();
      if (!record_.has_rows() || record_.rows().stage() != s) {
        throw file_.error("a record of another kind", fmt::format("rows of stage {}", s));
      }
      const std::size_t n = append(record_.rows().token(), stage.row_token);
      append(record_.rows().mask(), stage.row_mask, n);
      if (n == 0 || stage.row_token.size() > num_rows) {
        throw file_.error(counted(stage.row_token.size(), "row"),
                          fmt::format("{}, as the layer says", num_rows));
      }
    }
    if (stage.row_begin.back() != num_rows ||
        !std::is_sorted(stage.row_begin.begin(), stage.row_begin.end())) {
      throw file_.error(fmt::format("transfers that end at row {}", stage.row_begin.back()),
                        fmt::format("ascending ends up to {}", num_rows));
    }
    check_below(stage.row_token, layer.num_tokens(), "token");
    return stage;
  }

  RecordFileReader file_;
  plan::Record record_;
  std::uint64_t num_records_ = 0;
  std::uint32_t hidden_ = 0;
};

}  // namespace

void write_plan(const std::filesystem::path& path, const DispatchPlan& plan) {
  write_file(path, [&](std::ostream& out) { PlanWriter(out).write(plan); });
}

DispatchPlan read_plan(const std::filesystem::path& path) {
  return PlanReader(path).read();
}

}  // namespace coterie
