// Malformed inputs: each is refused with exit code 2 and the expected sentence; "F" stands for the
// file's path.

#include <gtest/gtest.h>

#include <string>

#include "core/error.hpp"
#include "tests/workloads/trace/fixtures.hpp"
#include "tests/workloads/trace/sample.hpp"
#include "workloads/trace/importer.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

using namespace testing;

struct Malformed {
  const char* name;
  const char* format;  // "moet" for the project's own
  std::string content;
  std::string sentence;
  std::uint32_t num_experts = 8;  // 0: not given
};

void PrintTo(const Malformed& malformed, std::ostream* out) {
  *out << malformed.name;
}

std::string replace_all(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at)) {
    text.replace(at, from.size(), to);
    at += to.size();
  }
  return text;
}

class MalformedInput : public ::testing::TestWithParam<Malformed> {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("coterie_malformed_" + std::string(GetParam().name) + std::to_string(::getpid()));
    make_folder(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

TEST_P(MalformedInput, IsRefusedWithOneSentence) {
  const Malformed& bad = GetParam();
  const std::filesystem::path path = folder_ / "bad";
  write_file(path, bad.content);
  ImportOptions options;
  if (bad.num_experts > 0) options.num_experts = bad.num_experts;
  try {
    if (std::string(bad.format) == "moet") {
      read_moet(path);
    } else {
      const std::vector<std::filesystem::path> inputs{path};
      import_traces(inputs, bad.format, options);
    }
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_EQ(replace_all(error.what(), path.string(), "F"), bad.sentence);
    EXPECT_EQ(error.exit_code(), ExitCode::kBadInput);
  }
}

// A sound .moet file of 7 tokens, made once.
std::string sound_moet() {
  static const std::string kContent = [] {
    const auto path = std::filesystem::temp_directory_path() /
                      ("coterie_sound_" + std::to_string(::getpid()) + ".moet");
    write_moet(path, random_routing(8, 2, {0, 1}, {3, 4}, false));
    std::string content = read_file(path);
    std::filesystem::remove(path);
    return content;
  }();
  return kContent;
}
std::string with_byte(std::string content, std::size_t at, char byte) {
  content[at] = byte;
  return content;
}
// A record as the format frames it: length, bytes, checksum.
std::string record(const std::string& bytes) {
  return std::string(1, static_cast<char>(bytes.size())) + bytes +
         raw(crc32_of(std::as_bytes(std::span(bytes))));
}
const std::string kMagic("MOETRC\x00\x01", 8);
// A header of 8 experts, top-2, layer 0, one byte per id, and the announced number of tokens.
std::string moet_header(const std::string& announced) {
  return record("\x0a" + std::string(1, static_cast<char>(11 + announced.size())) +
                std::string("\x18\x08\x20\x02\x2a\x01\x00\x30\x01\x38\x00", 11) + announced);
}

std::string varint(std::uint64_t value) {
  std::string out;
  for (; value > 0x7f; value >>= 7) out += static_cast<char>((value & 0x7fU) | 0x80U);
  return out + static_cast<char>(value);
}
// A header of 8 experts and top-2 with so many layers, all of them number 0.
std::string many_layers(std::size_t count) {
  const std::string header =
      "\x18\x08\x20\x02\x2a" + varint(count) + std::string(count, '\0') + "\x30\x01";
  const std::string message = "\x0a" + varint(header.size()) + header;
  return varint(message.size()) + message + raw(crc32_of(std::as_bytes(std::span(message))));
}

std::string npz(const std::string& experts) {
  return zip({{"routed_experts.npy", experts}});
}
// The archive whose directory says that its one member has so many bytes (APPNOTE 4.3.12).
std::string claiming(std::string archive, std::uint32_t size) {
  return archive.replace(archive.find("PK\x01\x02") + 24, 4, raw(size));
}
std::string ids_npy(const std::vector<std::int32_t>& ids, const std::string& shape) {
  return npy("<i4", shape, raw(ids));
}
std::string stat_file(const std::string& value, const std::string& storage) {
  return torch_file(p_dict({{"logical_count", value}}), {storage});
}
const std::string kPkl = "F: member dump/data.pkl: byte ";
const std::string kPickleOnly = ", expected a pickle of tensors, lists and dicts";

std::vector<Malformed> moet_cases() {
  const std::string sound = sound_moet();
  return {
      {"moet_empty", "moet", "",
       "F: found a file of another kind, expected a .moet trace (`coterie trace import` and "
       "`generate` write them)"},
      {"moet_foreign", "moet", "PK\x03\x04 and so on",
       "F: found a file of another kind, expected a .moet trace (`coterie trace import` and "
       "`generate` write them)"},
      {"moet_version", "moet", with_byte(sound, 7, '\x07'),
       "F: found version 7 of the trace format, expected version 1"},
      {"moet_no_footer", "moet", kMagic + moet_header(""),
       "F: record at byte 26: found the end of the file (a truncated file), expected a further "
       "record or the footer"},
      {"moet_cut_in_record", "moet", kMagic + moet_header("").substr(0, 10),
       "F: record at byte 8: found a record of 17 bytes of which 9 are there (a truncated file), "
       "expected a whole record"},
      {"moet_hostile_length", "moet", kMagic + std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8),
       "F: record at byte 8: found a record of 72057594037927935 bytes, expected at most "
       "268435456"},
      // 134,234,113 layers, as a header of one layer and the packed bytes of the others would be:
      // 65,537 suffice to be refused.
      {"moet_hostile_layers", "moet", kMagic + many_layers(65537),
       "F: record at byte 8: found 65537 layers, expected 1 to 65536"},
      {"moet_hostile_tokens", "moet",
       kMagic + moet_header(std::string("\x40\xff\xff\xff\xff\xff\xff\x7f", 8)),
       "F: record at byte 8: found 562949953421311 tokens announced, expected what a file of 34 "
       "bytes can hold"},
      {"moet_chunk_too_small", "moet",
       kMagic + moet_header("") + record(std::string("\x12\x06\x10\x03\x22\x02\x01\x02", 8)),
       "F: record at byte 26: found 2 bytes of expert ids for 3 tokens, expected 6 (layers x "
       "tokens x top-k x 1)"},
      {"moet_expert_out_of_range", "moet",
       kMagic + moet_header("") +
           record(std::string("\x12\x09\x10\x01\x1a\x01\x00\x22\x02\x01\x09", 11)) +
           record(std::string("\x22\x06\x08\x01\x10\x01\x18\x01", 8)),
       "F: layer 0, token 0: found expert 9, expected an id below 8"},
      {"moet_duplicate_expert", "moet",
       kMagic + moet_header("") +
           record(std::string("\x12\x09\x10\x01\x1a\x01\x00\x22\x02\x03\x03", 11)) +
           record(std::string("\x22\x06\x08\x01\x10\x01\x18\x01", 8)),
       "F: layer 0, token 0: found expert 3 twice, expected distinct experts"},
      {"moet_footer_lies", "moet",
       kMagic + moet_header("") +
           record(std::string("\x12\x09\x10\x01\x1a\x01\x00\x22\x02\x01\x03", 11)) +
           record(std::string("\x22\x06\x08\x02\x10\x01\x18\x01", 8)),
       "F: record at byte 42: found a footer for 2 tokens, 1 sequence and 1 record, expected 1 "
       "token, 1 sequence and 1 record, as were read"},
      {"moet_trailing_bytes", "moet", sound + "x",
       "F: record at byte " + std::to_string(sound.size() - 13) +
           ": found further bytes after the footer, expected the end of the file"},
  };
}

std::vector<Malformed> array_cases() {
  const std::string good = ids_npy({1, 2, 3, 4}, "(2, 1, 2)");
  const std::string archive = npz(good);
  return {
      {"npy_not_npy", "npy", "1,2,3",
       "F: found no .npy magic in the first 6 bytes, expected a NumPy array"},
      {"npy_cut_header", "npy", good.substr(0, 40),
       "F: found a header of 118 bytes in a file of 40, expected a whole .npy header"},
      {"npy_cut_data", "npy", good.substr(0, good.size() - 3),
       "F: found 13 bytes of data, expected what shape [2, 1, 2] of int32 takes"},
      {"npy_hostile_shape", "npy", npy("<i4", "(4294967296, 4294967296, 4)", raw(1)),
       "F: found 4 bytes of data, expected what shape [4294967296, 4294967296, 4] of int32 takes"},
      {"npy_pickled_objects", "npy", npy("|O", "(1,)", "cos\nsystem\n."),
       "F: found an array of pickled Python objects, which are never unpickled here, expected an "
       "array of numbers (save it without dtype=object)"},
      {"npy_big_endian", "npy", npy(">i4", "(1, 1, 1)", raw(1)),
       "F: found dtype \">i4\", expected little-endian integers or floats, such as \"<i4\""},
      {"npy_floats", "npy", npy("<f4", "(1, 1, 2)", raw(std::vector<float>{1, 2})),
       "F: found expert ids of type float32, expected integers"},
      {"npy_fortran", "npy", npy("<i4", "(1, 1, 2)", raw(std::vector<std::int32_t>{1, 2}), "True"),
       "F: found an array in Fortran order, expected C order (numpy.ascontiguousarray)"},
      {"npy_two_dimensions", "npy", ids_npy({1, 2}, "(1, 2)"),
       "F: found expert ids of shape [1, 2], expected [tokens, layers, k]"},
      {"npy_wide", "npy", npy("|u1", "(1, 1, 33)", std::string(33, '\1')),
       "F: found 33 experts per token, expected 1 to 32"},
      {"npy_no_num_experts", "npy", good,
       "F: found no number of experts in the input, expected --num-experts or --model to give it",
       0},
      {"npy_out_of_range", "npy", ids_npy({1, 2, 3, 8}, "(2, 1, 2)"),
       "F: routed_experts[1, 0, 1]: found expert 8, expected an id below 8"},
      {"npy_negative", "npy", ids_npy({1, -2, 3, 4}, "(2, 1, 2)"),
       "F: routed_experts[0, 0, 1]: found expert -2, expected an id below 8"},
      {"npy_duplicates", "npy", ids_npy({1, 2, 3, 4, 4, 3, 5, 5}, "(2, 2, 2)"),
       "F: layer 1, token 1: found expert 5 twice, expected distinct experts"},
      {"npy_all_zero", "npy", ids_npy({0, 0, 0, 0}, "(2, 1, 2)"),
       "F: found equal ids in every row of every layer (zeros or padding), expected a recording in "
       "which at least one token was routed"},
      // A choice that was masked out, and a token routed in one of two layers only.
      {"npy_masked_choice", "npy", ids_npy({1, 2, 3, -1}, "(2, 1, 2)"),
       "F: layer 0, token 1: found -1 in place 1 of its experts (a choice that was masked out), "
       "expected 2 experts"},
      {"npy_unrouted_in_one_layer", "npy", ids_npy({1, 2, 3, 4, 5, 6, -1, -1}, "(2, 2, 2)"),
       "F: layer 1, token 1: found only -1 (no routing), while the token has routing in other "
       "layers, expected 2 experts"},
      {"npz_truncated", "npz", archive.substr(0, archive.size() / 2),
       "F: found " + std::to_string(archive.size() / 2) +
           " bytes that are no whole zip archive (Not a zip archive), expected a zip archive with "
           "its directory at the end"},
      {"npz_inflates_without_measure", "npz", claiming(archive, 0x7fffffff),
       "F: found members that inflate to more than 64 MiB, expected at most 100 times the " +
           std::to_string(archive.size()) + " bytes of the archive (and 64 MiB in any case)"},
      // Checksums computed with Python's zlib.crc32.
      {"npz_corrupted", "npz", with_byte(archive, 180, 'x'),
       "F: member routed_experts.npy: found checksum 5f02e6d6, expected 917f8f43 as in the "
       "archive's "
       "directory"},
      {"npz_no_experts", "npz", zip({{"a.npy", good}, {"b.npy", good}}),
       "F: found an archive with a.npy, b.npy, expected a member routed_experts.npy"},
      {"npz_many_others", "npz",
       zip({{"0", good},
            {"1", good},
            {"2", good},
            {"3", good},
            {"4", good},
            {"5", good},
            {"6", good},
            {"7", good},
            {"8", good},
            {"9", good}}),
       "F: found an archive with 0, 1, 2, 3, 4, 5, 6, 7, 2 others, expected a member "
       "routed_experts.npy"},
      {"npz_sequences_do_not_add_up", "npz",
       zip({{"routed_experts.npy", good},
            {"seq_len.npy", npy("<i4", "(2,)", raw(std::vector<std::int32_t>{2, 1}))}}),
       "F: member routed_experts.npy: found sequences of more tokens in all than were recorded, "
       "expected 2 tokens"},
      {"npz_weights_of_another_shape", "npz",
       zip({{"routed_experts.npy", good},
            {"topk_weights.npy", npy("<f4", "(1, 2)", raw(std::vector<float>{1, 2}))}}),
       "F: member routed_experts.npy: found router weights of type float32 and shape [1, 2], "
       "expected floats of shape [2, 1, 2] as the ids"},
      {"npz_contradicts_the_option", "npz",
       zip({{"routed_experts.npy", good}, {"num_experts.npy", npy("<i4", "()", raw(16))}}),
       "F: member routed_experts.npy: found 16 experts recorded, expected 8 as asked for"},
  };
}

const std::string kHeaders =
    "a header of layer,experts; layer,expert; token,layer,experts; token,layer,expert; "
    "layer_id,expert_id,count or expert_id,count";

std::vector<Malformed> text_cases() {
  const std::string meta = "{\"type\": \"meta\", \"top_k\": 2}\n";
  const auto route = [](int token, int layer, const std::string& ids) {
    return "{\"type\": \"route\", \"req_id\": \"a\", \"token_idx\": " + std::to_string(token) +
           ", \"layer\": " + std::to_string(layer) + ", \"topk_ids\": [" + ids + "]}\n";
  };
  return {
      {"jsonl_cut_line", "vllm-jsonl", meta + route(0, 0, "1, 2").substr(0, 30),
       "F: line 2: byte 31: found text that is not JSON (damaged or truncated), expected a JSON "
       "value"},
      {"jsonl_wrong_topk", "vllm-jsonl", meta + route(0, 0, "1, 2, 3"),
       "F: line 2: found 3 experts, expected 2 as the meta line says"},
      {"jsonl_ragged", "vllm-jsonl",
       meta + route(0, 0, "1, 2") + route(0, 1, "3, 4") + route(1, 0, "5, 6"),
       "F: sequence 1, token 1: found 1 row, expected one row in each of the 2 layers"},
      {"jsonl_text_id", "vllm-jsonl", meta + route(0, 0, "1, \"x\""),
       "F: line 2: topk_ids: found \"x\", expected a whole number from -1 to 65534"},
      {"jsonl_empty", "vllm-jsonl", meta, "F: found no rows of routing, expected at least one"},
      {"megatron_count", "megatron-jsonl",
       R"({"step": 0, "block": 0, "layer": 1, "num_tokens": 3, "topk": 2, "top_indices": [[1, 2]]})",
       "F: line 1: top_indices: found 1 row, expected 3 as num_tokens says"},
      {"megatron_no_step", "megatron-jsonl", R"({"block": 0})",
       "F: line 1: found no \"step\", expected it to be there"},
      {"json_not_a_list", "json", "{}",
       "F: found no list, expected a list of one prefill and its decode steps"},
      {"json_ragged", "json", R"([{"1": [[1, 2], [3, 4]], "2": [[5, 6]]}])",
       "F: entry 0, layer 2: found 1 token, expected 2 as in the layers before"},
      {"csv_no_comma", "csv", "1;2 3\n",
       "F: line 1: found 1 cell (\"1;2 3\"), expected layer,\"space separated ids\""},
      {"csv_unknown_column", "csv", "layer,expert,probability\n1,2,0.5\n",
       "F: line 1: found a column \"probability\", expected " + kHeaders},
      {"csv_unknown_combination", "csv", "token,layer,count\n1,2,3\n",
       "F: line 1: found the columns token,layer,count, expected " + kHeaders},
      {"csv_ragged_cells", "csv", "layer,experts\n1,\"2 3\",4\n",
       "F: line 2: found 3 cells (\"1,\"2 3\",4\"), expected 2 as the header has"},
      {"csv_open_quote", "csv", "1,\"2 3\n",
       "F: line 1: found a quote that is not closed, expected a quote at the end of the cell"},
      {"csv_one_expert_per_line", "csv", "layer,expert\n1,2\n",
       "F: line 2: found one expert per line, which does not say how many lines are a token, "
       "expected --num-topk or --model to say how many experts a token has"},
      {"csv_single_ids_without_a_header", "csv", "1,2\n1,3\n",
       "F: found one expert per line and no header to say whether that is all of a token's choice, "
       "expected --num-topk 1, or a header layer,expert and --num-topk"},
      {"csv_counts_without_layer", "csv", "expert_id,count\n0,5\n",
       "F: line 2: found counts without a layer (expert_id,count), expected --layers with the "
       "number of the one layer they are of; counts summed over layers are of no use"},
      {"csv_count_twice", "csv", "layer_id,expert_id,count\n3,1,5\n3,1,6\n",
       "F: line 3: found expert 1 of layer 3 twice, expected each once"},
      {"csv_counts_with_gaps", "csv", "layer_id,expert_id,count\n3,0,5\n3,2,6\n",
       "F: found no number of experts in the input, expected --num-experts or --model to give it",
       0},
      {"csv_bad_id", "csv", "1,\"2 x\"\n", "F: line 1: found \"x\", expected an expert id"},
      {"csv_ragged_k", "csv", "1,\"2 3\"\n1,\"2 3 4\"\n",
       "F: line 2: found 3 experts, expected 2 as in the rows before"},
      {"csv_out_of_range", "csv", "1,\"2 9\"\n",
       "F: layer 1, token 0: found expert 9, expected an id below 8"},
      {"megatron_unknown_block", "megatron-jsonl",
       R"({"step": 0, "block": "encoder", "layer": 1, "num_tokens": 1, "topk": 1, "top_indices": [[1]]})",
       "F: line 1: block: found \"encoder\", expected \"decoder\" or \"mtp\""},
      {"megatron_only_mtp", "megatron-jsonl",
       R"({"step": 0, "block": "mtp", "mtp_idx": 0, "layer": 1, "num_tokens": 1, "topk": 1, "top_indices": [[1]]})",
       "F: found only 1 record of multi-token prediction, expected records of the decoder's "
       "routers"},
      {"hf_infinity", "hf-json", R"({"top_k": 1, "router_logits": [[[1, -Infinity]]]})",
       "F: byte 38: found -Infinity, which Python writes for a number that is not finite and JSON "
       "does not have, expected finite numbers (for router logits: those before a mask sets "
       "experts "
       "to -inf)"},
      {"hf_batch_axis", "hf-json", R"({"top_k": 1, "router_logits": [null, [[[1, 2]]]]})",
       "F: router_logits[1]: found a further dimension ([batch][tokens][experts]), expected "
       "[tokens][experts]: the sequences of the batch one after the other (in PyTorch: "
       "logits.flatten(0, 1)), with their lengths as \"seq_len\""},
      {"hf_all_null", "hf-json", R"({"top_k": 1, "router_logits": [null]})",
       "F: router_logits: found null in place of every layer, expected logits of at least one"},
      {"gpt_oss_skipped_token", "gpt-oss-json",
       R"({"router_data": [{"token_4": {"layer_0": {"selected_experts": [1], "selected_probs": [1.0]}}},
                           {"token_6": {"layer_0": {"selected_experts": [2], "selected_probs": [1.0]}}}]})",
       "F: router_data[1]: found token_6, expected token_5, as they are numbered on"},
      {"hf_no_selection", "hf-json", R"({"top_k": 2, "router_logits": [[[1, 2, 3]]]})",
       "F: found logits without the model's way to choose from them, expected --selection or a "
       "--model whose routing is known"},
  };
}

std::vector<Malformed> torch_cases() {
  const std::string tensor = p_tensor("LongStorage", "0", 4, {2, 2}, {2, 1});
  const std::string storage = raw(std::vector<std::int64_t>{1, 2, 3, 4});
  const auto pickled = [&](const std::string& value) { return torch_file(value, {storage}); };
  return {
      {"pt_truncated", "sglang", stat_file(tensor, storage).substr(0, 100),
       "F: found 100 bytes that are no whole zip archive (Not a zip archive), expected a zip "
       "archive with its directory at the end"},
      {"pt_all_zero", "sglang", stat_file(tensor, std::string(32, '\0')),
       "F: logical_count: found only zeros in all 2 layers, expected a recording in which at least "
       "one token was routed",
       2},
      {"pt_os_system", "sglang", pickled("cos\nsystem\n(" + p_text("touch /tmp/x") + "tR"),
       kPkl + "2: found the name os.system, expected only tensors and plain containers: nothing in "
              "a file is ever executed"},
      {"pt_builtins_eval", "sglang",
       pickled(p_text("builtins") + p_text("eval") + "\x93(" + p_text("1") + "tR"),
       kPkl + "24: found the name builtins.eval, expected only tensors and plain containers: "
              "nothing in a file is ever executed"},
      {"pt_inst", "sglang", pickled("(" + p_text("x") + "ios\nsystem\n"),
       kPkl + "9: found the opcode 0x69, which is not on the list of harmless ones" + kPickleOnly},
      {"pt_build", "sglang", pickled("}}b"),
       kPkl + "4: found the opcode 0x62, which is not on the list of harmless ones" + kPickleOnly},
      {"pt_newobj", "sglang", pickled("ccollections\nOrderedDict\n)\x81"),
       kPkl + "28: found the opcode 0x81, which is not on the list of harmless ones" + kPickleOnly},
      {"pt_extension", "sglang", pickled("\x82\x01"),
       kPkl + "2: found the opcode 0x82, which is not on the list of harmless ones" + kPickleOnly},
      {"pt_call_of_storage", "sglang", pickled("ctorch\nLongStorage\n)R"),
       kPkl + "22: found a call of torch LongStorage" + kPickleOnly},
      {"pt_stack_underflow", "sglang", pickled("a"),
       kPkl + "2: found an empty stack" + kPickleOnly},
      {"pt_unknown_memo", "sglang", pickled("h\x05"),
       kPkl + "2: found a reference to the unknown memo 5" + kPickleOnly},
      {"pt_pickle_cut", "sglang",
       zip({{"d/data.pkl", std::string("\x80\x02X\xff\xff\xff\x7f", 7)}}),
       "F: member d/data.pkl: byte 2: found a truncated pickle" + kPickleOnly},
      {"pt_no_pickle", "sglang", zip({{"x", "y"}}),
       "F: found an archive without data.pkl, expected a file written by torch.save"},
      {"pt_shape_outside_storage", "sglang",
       stat_file(p_tensor("LongStorage", "0", 4, {2, 3}, {3, 1}), storage),
       "F: member dump/data/0: found a tensor of shape [2, 3], expected one inside its storage of "
       "4 "
       "elements"},
      {"pt_expanded_to_a_terabyte", "sglang",
       stat_file(p_tensor("LongStorage", "0", 4, {1000000, 1000000}, {0, 0}), storage),
       "F: member dump/data/0: found a tensor of shape [1000000, 1000000], expected one inside its "
       "storage of 4 elements"},
      {"pt_storage_of_another_size", "sglang",
       stat_file(p_tensor("LongStorage", "0", 8, {2, 2}, {2, 1}), storage),
       "F: member dump/data/0: found 4 elements, expected 8 as the pickle says"},
      {"pt_missing_storage", "sglang",
       stat_file(p_tensor("LongStorage", "7", 4, {2, 2}, {2, 1}), storage),
       "F: member dump/data/7: found no such member, expected it to be there"},
      {"pt_float_counts", "sglang",
       stat_file(p_tensor("DoubleStorage", "0", 4, {2, 2}, {2, 1}), storage),
       "F: logical_count: found float64, expected integers"},
      {"pt_neither_mode", "sglang", pickled(p_dict({{"x", "N"}})),
       "F: found neither logical_count nor records, expected the dump of SGLang's recorder in mode "
       "stat, per_pass or per_token"},
      {"pt_not_a_dict", "sglang", pickled("]"),
       "F: found no dict at the top, expected a recorder's dump"},
  };
}

const auto kName = [](const ::testing::TestParamInfo<Malformed>& test) {
  return std::string(test.param.name);
};
INSTANTIATE_TEST_SUITE_P(Moet, MalformedInput, ::testing::ValuesIn(moet_cases()), kName);
INSTANTIATE_TEST_SUITE_P(Arrays, MalformedInput, ::testing::ValuesIn(array_cases()), kName);
INSTANTIATE_TEST_SUITE_P(Text, MalformedInput, ::testing::ValuesIn(text_cases()), kName);
INSTANTIATE_TEST_SUITE_P(Torch, MalformedInput, ::testing::ValuesIn(torch_cases()), kName);

}  // namespace
}  // namespace coterie
