#pragma once
// PyTorch's torch.save files, read without executing anything: the zip archive's data.pkl is
// interpreted by a reader that knows only the opcodes and the names that plain containers of
// tensors need, and refuses everything else.

#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "workloads/trace/archive.hpp"
#include "workloads/trace/npy.hpp"

namespace coterie {

struct TorchValue;

struct TorchStorage {
  NumberType type = NumberType::kU8;
  std::string key;  // member data/KEY of the archive
  std::uint64_t num_elements = 0;
};
struct TorchTensor {
  TorchStorage storage;
  std::uint64_t offset = 0;  // elements
  std::vector<std::uint64_t> shape;
  std::vector<std::uint64_t> strides;  // elements
};
// Lists and tuples. Elements belong to the file's arena, so that references and cycles cost
// nothing.
struct TorchList {
  std::vector<const TorchValue*> items;
};
struct TorchDict {
  std::vector<std::pair<const TorchValue*, const TorchValue*>> items;
};
struct TorchName {  // a global, by name only
  std::string name;
};
struct TorchValue {
  std::variant<std::monostate, bool, std::int64_t, double, std::string, TorchList, TorchDict,
               TorchName, TorchStorage, TorchTensor>
      value;
};

// The value that a pickle describes; `where` names it in errors ("FILE: member data.pkl"). Throws
// InputError for anything outside the short list of opcodes and names, with the byte position.
class Pickle {
 public:
  Pickle(std::span<const std::byte> bytes, const std::string& where);
  [[nodiscard]] const TorchValue& root() const { return *root_; }

 private:
  friend class PickleReader;
  std::deque<TorchValue> arena_;
  const TorchValue* root_ = nullptr;
};

class TorchFile {
 public:
  explicit TorchFile(const std::filesystem::path& path);
  [[nodiscard]] const TorchValue& root() const { return pickle_->root(); }
  // A tensor's elements in C order.
  struct Array {
    Buffer bytes;
    ArrayView view;
  };
  [[nodiscard]] Array read(const TorchTensor& tensor) const;
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  std::string name_;
  Archive archive_;
  std::string prefix_;  // of the members
  std::unique_ptr<Pickle> pickle_;
};

// The value under a text key, or nullptr.
const TorchValue* find_key(const TorchDict& dict, std::string_view key);

}  // namespace coterie
