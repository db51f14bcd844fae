#include "workloads/trace/importers/torch_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>

#include "core/error.hpp"

namespace coterie {
namespace {

struct StorageName {
  std::string_view global;
  NumberType type;
};
constexpr StorageName kStorages[] = {
    {"torch LongStorage", NumberType::kI64},  {"torch IntStorage", NumberType::kI32},
    {"torch ShortStorage", NumberType::kI16}, {"torch CharStorage", NumberType::kI8},
    {"torch ByteStorage", NumberType::kU8},   {"torch BoolStorage", NumberType::kBool},
    {"torch FloatStorage", NumberType::kF32}, {"torch DoubleStorage", NumberType::kF64},
    {"torch HalfStorage", NumberType::kF16},  {"torch BFloat16Storage", NumberType::kBf16},
};
constexpr std::string_view kRebuildTensor = "torch._utils _rebuild_tensor_v2";
constexpr std::string_view kOrderedDict = "collections OrderedDict";

std::optional<NumberType> storage_type(std::string_view global) {
  for (const StorageName& storage : kStorages) {
    if (storage.global == global) return storage.type;
  }
  return std::nullopt;
}

template <class T>
const T* get(const TorchValue* value) {
  return std::get_if<T>(&value->value);
}

}  // namespace

// The stack machine of pickle, reduced. Opcode letters as in CPython's pickletools.
class PickleReader {
 public:
  PickleReader(std::span<const std::byte> bytes, const std::string& where, Pickle& pickle)
      : bytes_(bytes), where_(where), arena_(pickle.arena_) {}

  const TorchValue* run() {
    while (true) {
      opcode_position_ = position_;
      const auto opcode = number<std::uint8_t>();
      if (opcode == '.') break;
      step(opcode);
    }
    if (stack_.size() != 1 || !marks_.empty()) fail("a stack that is not one value at the end");
    return stack_.back();
  }

 private:
  [[noreturn]] void fail(std::string_view found,
                         std::string_view expected = "a pickle of tensors, lists and dicts") const {
    throw InputError(fmt::format("{}: byte {}", where_, opcode_position_), found, expected);
  }

  std::string_view take(std::uint64_t size) {
    if (size > bytes_.size() - position_) fail("a truncated pickle");
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + position_, size);
    position_ += size;
    return text;
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view line() {
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + position_,
                                bytes_.size() - position_);
    const std::size_t end = rest.find('\n');
    if (end == std::string_view::npos) fail("a truncated pickle");
    position_ += end + 1;
    return rest.substr(0, end);
  }

  template <class T>
  TorchValue* push(T value) {
    TorchValue& made = arena_.emplace_back();
    made.value = std::move(value);
    stack_.push_back(&made);
    return &made;
  }
  // Values stay above the innermost mark until it is consumed.
  TorchValue* pop() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) fail("an empty stack");
    TorchValue* value = stack_.back();
    stack_.pop_back();
    return value;
  }
  std::vector<const TorchValue*> pop_to_mark() {
    if (marks_.empty()) fail("no mark");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<const TorchValue*> values(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return values;
  }
  TorchValue* top() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) fail("an empty stack");
    return stack_.back();
  }

  // One opcode: structure, else a number or text, else the memo.
  void step(std::uint8_t opcode);
  void step_value(std::uint8_t opcode);
  void step_memo(std::uint8_t opcode);
  void push_tuple(std::size_t count);
  void append(const std::vector<const TorchValue*>& values);
  void set_items(const std::vector<const TorchValue*>& values);
  void push_global(std::string name);
  void reduce();
  void persistent_id();
  TorchTensor rebuild_tensor(const TorchList& arguments) const;
  std::vector<std::uint64_t> extents(const TorchValue* value) const;

  std::span<const std::byte> bytes_;
  const std::string& where_;
  std::deque<TorchValue>& arena_;
  std::size_t position_ = 0;
  std::size_t opcode_position_ = 0;
  std::vector<TorchValue*> stack_;
  std::vector<std::size_t> marks_;
  std::map<std::uint64_t, TorchValue*> memo_;
};

void PickleReader::step(std::uint8_t opcode) {
  switch (opcode) {
    case 0x80: {  // PROTO
      const auto version = number<std::uint8_t>();
      if (version < 2 || version > 5) fail(fmt::format("pickle protocol {}", version), "2 to 5");
      return;
    }
    case 0x95:  // FRAME
      (void)number<std::uint64_t>();
      return;
    case '(':
      marks_.push_back(stack_.size());
      return;
    case '}':
      push(TorchDict{});
      return;
    case ']':
    case ')':
      push(TorchList{});
      return;
    case 't':
    case 'l': {
      push(TorchList{pop_to_mark()});
      return;
    }
    case 0x85:
    case 0x86:
    case 0x87:
      push_tuple(opcode - 0x84U);
      return;
    case 'a': {
      const TorchValue* item = pop();
      append({item});
      return;
    }
    case 'e': {
      const auto items = pop_to_mark();
      append(items);
      return;
    }
    case 's': {
      const TorchValue* value = pop();
      const TorchValue* key = pop();
      set_items({key, value});
      return;
    }
    case 'u': {
      const auto items = pop_to_mark();
      set_items(items);
      return;
    }
    case 'c': {
      const std::string module(line());
      push_global(fmt::format("{} {}", module, line()));
      return;
    }
    case 0x93: {  // STACK_GLOBAL
      const auto* name = get<std::string>(pop());
      const auto* module = get<std::string>(pop());
      if (name == nullptr || module == nullptr) fail("a global without a name");
      push_global(fmt::format("{} {}", *module, *name));
      return;
    }
    case 'R':
      reduce();
      return;
    case 'Q':
      persistent_id();
      return;
    default:
      step_value(opcode);
  }
}

void PickleReader::step_value(std::uint8_t opcode) {
  switch (opcode) {
    case 'N':
      push(std::monostate{});
      return;
    case 0x88:
      push(true);
      return;
    case 0x89:
      push(false);
      return;
    case 'K':
      push(static_cast<std::int64_t>(number<std::uint8_t>()));
      return;
    case 'M':
      push(static_cast<std::int64_t>(number<std::uint16_t>()));
      return;
    case 'J':
      push(static_cast<std::int64_t>(number<std::int32_t>()));
      return;
    case 0x8a: {  // LONG1: two's complement of up to 8 bytes
      const std::string_view raw = take(number<std::uint8_t>());
      if (raw.size() > 8) fail("an integer of more than 64 bits");
      std::uint64_t value = 0;
      for (std::size_t i = 0; i < raw.size(); ++i) {
        value |= static_cast<std::uint64_t>(static_cast<unsigned char>(raw[i])) << (8 * i);
      }
      if (!raw.empty() && raw.size() < 8 && (static_cast<unsigned char>(raw.back()) & 0x80U) != 0) {
        value |= ~std::uint64_t{0} << (8 * raw.size());
      }
      push(std::bit_cast<std::int64_t>(value));
      return;
    }
    case 'G': {  // BINFLOAT, big-endian
      std::uint64_t value = 0;
      for (const char byte : take(8)) value = value << 8 | static_cast<unsigned char>(byte);
      push(std::bit_cast<double>(value));
      return;
    }
    case 'X':
      push(std::string(take(number<std::uint32_t>())));
      return;
    case 0x8c:  // SHORT_BINUNICODE
      push(std::string(take(number<std::uint8_t>())));
      return;
    default:
      step_memo(opcode);
  }
}

void PickleReader::step_memo(std::uint8_t opcode) {
  switch (opcode) {
    case 'q':
      memo_[number<std::uint8_t>()] = top();
      return;
    case 'r':
      memo_[number<std::uint32_t>()] = top();
      return;
    case 0x94:  // MEMOIZE
      memo_[memo_.size()] = top();
      return;
    case 'h':
    case 'j': {
      const std::uint64_t key = opcode == 'h' ? number<std::uint8_t>() : number<std::uint32_t>();
      const auto found = memo_.find(key);
      if (found == memo_.end()) fail(fmt::format("a reference to the unknown memo {}", key));
      stack_.push_back(found->second);
      return;
    }
    default:
      fail(fmt::format("the opcode 0x{:02x}, which is not on the list of harmless ones", opcode));
  }
}

void PickleReader::push_tuple(std::size_t count) {
  TorchList tuple;
  for (std::size_t i = 0; i < count; ++i) tuple.items.push_back(pop());
  std::reverse(tuple.items.begin(), tuple.items.end());
  push(std::move(tuple));
}

void PickleReader::append(const std::vector<const TorchValue*>& values) {
  auto* list = std::get_if<TorchList>(&top()->value);
  if (list == nullptr) fail("items for something that is no list");
  list->items.insert(list->items.end(), values.begin(), values.end());
}

void PickleReader::set_items(const std::vector<const TorchValue*>& values) {
  auto* dict = std::get_if<TorchDict>(&top()->value);
  if (dict == nullptr || values.size() % 2 != 0) fail("items for something that is no dict");
  for (std::size_t i = 0; i < values.size(); i += 2) {
    dict->items.emplace_back(values[i], values[i + 1]);
  }
}

void PickleReader::push_global(std::string name) {
  if (name != kRebuildTensor && name != kOrderedDict && !storage_type(name)) {
    std::replace(name.begin(), name.end(), ' ', '.');
    fail(fmt::format("the name {}", name),
         "only tensors and plain containers: nothing in a file is ever executed");
  }
  push(TorchName{std::move(name)});
}

// REDUCE calls a function in Python. Here exactly two have a meaning, and neither runs anything.
void PickleReader::reduce() {
  const auto* arguments = get<TorchList>(pop());
  const auto* callee = get<TorchName>(pop());
  if (arguments == nullptr || callee == nullptr) fail("a call of something that is no name");
  if (callee->name == kOrderedDict && arguments->items.empty()) {
    push(TorchDict{});
  } else if (callee->name == kRebuildTensor) {
    push(rebuild_tensor(*arguments));
  } else {
    fail(fmt::format("a call of {}", callee->name));
  }
}

std::vector<std::uint64_t> PickleReader::extents(const TorchValue* value) const {
  const auto* list = get<TorchList>(value);
  if (list == nullptr || list->items.size() > 8) fail("a tensor without a shape");
  std::vector<std::uint64_t> numbers;
  for (const TorchValue* item : list->items) {
    const auto* number = get<std::int64_t>(item);
    if (number == nullptr || *number < 0) fail("a tensor with a negative or missing extent");
    numbers.push_back(static_cast<std::uint64_t>(*number));
  }
  return numbers;
}

// (storage, offset, shape, strides, requires_grad, hooks...)
TorchTensor PickleReader::rebuild_tensor(const TorchList& arguments) const {
  if (arguments.items.size() < 4) fail("a tensor with too few fields");
  const auto* storage = get<TorchStorage>(arguments.items[0]);
  const auto* offset = get<std::int64_t>(arguments.items[1]);
  if (storage == nullptr || offset == nullptr || *offset < 0) fail("a tensor without a storage");
  TorchTensor tensor;
  tensor.storage = *storage;
  tensor.offset = static_cast<std::uint64_t>(*offset);
  tensor.shape = extents(arguments.items[2]);
  tensor.strides = extents(arguments.items[3]);
  if (tensor.shape.size() != tensor.strides.size()) fail("a tensor with more extents than strides");
  return tensor;
}

// ('storage', type, key, location, number of elements)
void PickleReader::persistent_id() {
  const auto* id = get<TorchList>(pop());
  if (id == nullptr || id->items.size() != 5) fail("a storage reference of another form");
  const auto* kind = get<std::string>(id->items[0]);
  const auto* type = get<TorchName>(id->items[1]);
  const auto* key = get<std::string>(id->items[2]);
  const auto* count = get<std::int64_t>(id->items[4]);
  if (kind == nullptr || *kind != "storage" || type == nullptr || !storage_type(type->name) ||
      key == nullptr || count == nullptr || *count < 0) {
    fail("a storage reference of another form");
  }
  push(TorchStorage{*storage_type(type->name), *key, static_cast<std::uint64_t>(*count)});
}

Pickle::Pickle(std::span<const std::byte> bytes, const std::string& where) {
  root_ = PickleReader(bytes, where, *this).run();
}

TorchFile::TorchFile(const std::filesystem::path& path) : name_(path.string()), archive_(path) {
  std::string member;
  for (const std::string& name : archive_.names()) {
    if (name == "data.pkl" || name.ends_with("/data.pkl")) member = name;
  }
  if (member.empty()) {
    throw InputError(name_, "an archive without data.pkl", "a file written by torch.save");
  }
  prefix_ = member.substr(0, member.size() - std::string_view("data.pkl").size());
  if (archive_.has(prefix_ + "byteorder")) {
    const Buffer order = archive_.read(prefix_ + "byteorder");
    const std::string text(reinterpret_cast<const char*>(order.bytes().data()),
                           order.bytes().size());
    if (text != "little") {
      throw InputError(archive_.where(prefix_ + "byteorder"), fmt::format("\"{}\"", text),
                       "\"little\"");
    }
  }
  const Buffer pickle = archive_.read(member);
  pickle_ = std::make_unique<Pickle>(pickle.bytes(), archive_.where(member));
}

TorchFile::Array TorchFile::read(const TorchTensor& tensor) const {
  const std::string member = prefix_ + "data/" + tensor.storage.key;
  const std::string where = archive_.where(member);
  const Buffer storage = archive_.read(member);
  const std::size_t width = size_of(tensor.storage.type);
  const std::uint64_t available = storage.bytes().size() / width;
  if (tensor.storage.num_elements != available) {
    throw InputError(where, fmt::format("{} elements", available),
                     fmt::format("{} as the pickle says", tensor.storage.num_elements));
  }
  // The last element must lie in the storage, and the tensor must not be larger than it (an
  // expanded view could ask for any amount of memory). Each factor is bounded before it is used.
  std::uint64_t count = 1;
  std::uint64_t last = tensor.offset;
  const bool empty = std::find(tensor.shape.begin(), tensor.shape.end(), 0U) != tensor.shape.end();
  bool fits = tensor.offset <= available;
  if (empty && fits) {  // whatever its other extents and strides: nothing is read
    Array array;
    array.view.type = tensor.storage.type;
    array.view.shape = tensor.shape;
    return array;
  }
  for (std::size_t d = 0; d < tensor.shape.size() && fits; ++d) {
    const std::uint64_t extent = tensor.shape[d];
    fits = extent <= available && count <= available / extent &&
           (extent == 1 || tensor.strides[d] <= available / (extent - 1));
    if (!fits) break;
    count *= extent;
    last += (extent - 1) * tensor.strides[d];
    fits = last < available;
  }
  if (!fits || last >= available) {
    throw InputError(where, fmt::format("a tensor of shape {}", shape_text(tensor.shape)),
                     fmt::format("one inside its storage of {} elements", available));
  }

  Array array;
  array.bytes = Buffer(count * width);
  array.view.type = tensor.storage.type;
  array.view.shape = tensor.shape;
  std::vector<std::uint64_t> index(tensor.shape.size(), 0);
  std::uint64_t from = tensor.offset;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::memcpy(array.bytes.data() + i * width, storage.bytes().data() + from * width, width);
    for (std::size_t d = index.size(); d-- > 0;) {
      from += tensor.strides[d];
      if (++index[d] < tensor.shape[d]) break;
      from -= tensor.strides[d] * tensor.shape[d];
      index[d] = 0;
    }
  }
  array.view.data = array.bytes.bytes();
  return array;
}

const TorchValue* find_key(const TorchDict& dict, std::string_view key) {
  const TorchValue* found = nullptr;
  for (const auto& [name, value] : dict.items) {
    const auto* text = get<std::string>(name);
    if (text != nullptr && *text == key) found = value;
  }
  return found;
}

}  // namespace coterie
