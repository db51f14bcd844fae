#include "core/yaml.hpp"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <utility>

#include "core/file.hpp"
#include "core/memo.hpp"

namespace coterie {

// A value with its file's name and the dotted path from the root.
struct YamlValue::Node {
  // A parsed value. yaml-cpp's own nodes change when they are written to and lose their places when
  // they are copied; these can be kept and shared by all who read the same text.
  struct Tree {
    YAML::NodeType::value type = YAML::NodeType::Null;
    YAML::Mark mark = YAML::Mark::null_mark();
    std::string scalar;
    std::string tag;
    YAML::EmitterStyle::value style = YAML::EmitterStyle::Default;
    // Of a map: keys and values in the order of the file. Of a list: values behind empty keys. What
    // an alias names is shared.
    std::vector<std::pair<std::shared_ptr<Tree>, std::shared_ptr<Tree>>> entries;
  };

  std::shared_ptr<const Tree> tree;
  std::shared_ptr<const std::string> file;
  std::string path;
  std::shared_ptr<const std::vector<Override>> overrides;

  // The override that gave this value or a map that it lies in: of several the last, which is in
  // effect. For a map that was made on the way to one, that one. Null where there is none.
  [[nodiscard]] const Override* given_by() const;
};

namespace {

using Tree = YamlValue::Node::Tree;

// What a text means.
struct YamlDocument {
  std::shared_ptr<Tree> root;
  bool has_aliases = false;
  std::size_t num_values = 0;
};

bool starts_with_path(const std::string& path, const std::string& prefix) {
  return path == prefix ||
         (path.size() > prefix.size() && path.starts_with(prefix) && path[prefix.size()] == '.');
}

// What the messages about an override say before what they found.
std::string where_of(const Override& override_) {
  return override_.where(override_.key);
}

std::string joined(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) {
    if (!out.empty()) out += ", ";
    out += item;
  }
  return out;
}

std::string child_path(const std::string& path, const std::string& key) {
  return path.empty() ? key : path + "." + key;
}

std::vector<std::string> split_path(const std::string& path) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  while (true) {
    const std::size_t dot = path.find('.', begin);
    parts.push_back(path.substr(begin, dot - begin));
    if (dot == std::string::npos) return parts;
    begin = dot + 1;
  }
}

// Documents are trees of at most this many values and levels once aliases are written out: "a
// billion laughs" and an alias inside what it names would otherwise never end.
constexpr std::size_t kMaxValues = 1'000'000;
constexpr std::size_t kMaxLevels = 64;
constexpr std::uint64_t kMaxDocumentBytes = std::uint64_t{64} << 20;

// Looks at every value once, however often aliases name it.
class TreeCheck {
 public:
  explicit TreeCheck(const std::string& name) : name_(name) {}

  void check(const YAML::Node& root) { (void)visit(root); }

 private:
  struct Size {
    std::size_t num_values = 1;
    std::size_t num_levels = 0;
  };

  Size visit(const YAML::Node& node) {
    if (!node.IsMap() && !node.IsSequence()) return {};
    for (const YAML::Node& above : open_) {
      if (above.is(node)) fail(node, "an alias inside of what it names");
    }
    const std::pair place(node.Mark().pos, node.IsMap());
    Size size;
    if (const auto found = known_.find(place); found != known_.end()) {
      size = found->second;
    } else {
      if (open_.size() == kMaxLevels) fail_levels(node);
      open_.push_back(node);
      for (const auto& entry : node) {
        if (node.IsMap()) {
          add(node, size, visit(entry.first));
          add(node, size, visit(entry.second));
        } else {
          add(node, size, visit(entry));
        }
      }
      ++size.num_levels;
      open_.pop_back();
      known_[place] = size;
    }
    if (open_.size() + size.num_levels > kMaxLevels) fail_levels(node);
    return size;
  }

  void add(const YAML::Node& node, Size& size, const Size& part) const {
    size.num_values += part.num_values;
    size.num_levels = std::max(size.num_levels, part.num_levels);
    if (size.num_values > kMaxValues) {
      fail(node, fmt::format("more than {} values once aliases are written out", kMaxValues));
    }
  }
  [[noreturn]] void fail_levels(const YAML::Node& node) const {
    fail(node, fmt::format("lists and maps more than {} levels inside each other", kMaxLevels));
  }
  [[noreturn]] void fail(const YAML::Node& node, const std::string& found) const {
    const YAML::Mark mark = node.Mark();
    throw InputError(
        mark.is_null() ? name_ : fmt::format("{}:{}:{}", name_, mark.line + 1, mark.column + 1),
        found, "a finite document");
  }

  const std::string& name_;
  std::vector<YAML::Node> open_;  // the maps and lists around the one that is looked at
  std::map<std::pair<int, bool>, Size> known_;  // by position in the text and kind
};

// Turns yaml-cpp's nodes, which TreeCheck has found to be finite, into ours.
class YamlReader {
 public:
  // Counts into `document.num_values`.
  explicit YamlReader(YamlDocument& document) : document_(document) {}

  std::shared_ptr<Tree> read(const YAML::Node& node) {
    if (document_.has_aliases) {
      for (const auto& [known, tree] : known_[node.Mark().pos]) {
        if (known.is(node)) return tree;
      }
    }
    ++document_.num_values;
    auto tree = std::make_shared<Tree>();
    tree->type = node.Type();
    tree->mark = node.Mark();
    tree->tag = node.Tag();
    tree->style = node.Style();
    if (node.IsScalar()) tree->scalar = node.Scalar();
    tree->entries.reserve(node.size());
    for (const auto& entry : node) {
      if (node.IsMap()) {
        std::shared_ptr<Tree> key = read(entry.first);
        tree->entries.emplace_back(std::move(key), read(entry.second));
      } else {
        tree->entries.emplace_back(nullptr, read(entry));
      }
    }
    if (document_.has_aliases) known_[node.Mark().pos].emplace_back(node, tree);
    return tree;
  }

 private:
  YamlDocument& document_;
  std::map<int, std::vector<std::pair<YAML::Node, std::shared_ptr<Tree>>>> known_;  // by position
};

// Turns ours into yaml-cpp's, which it can write.
class YamlWriter {
 public:
  YAML::Node write(const Tree& tree) {
    if (const auto found = known_.find(&tree); found != known_.end()) return found->second;
    YAML::Node node(tree.type);
    if (tree.type == YAML::NodeType::Scalar) node = tree.scalar;
    for (const auto& [key, value] : tree.entries) {
      if (key) {
        node.force_insert(write(*key), write(*value));
      } else {
        node.push_back(write(*value));
      }
    }
    node.SetTag(tree.tag);
    node.SetStyle(tree.style);
    known_.emplace(&tree, node);
    return node;
  }

 private:
  std::map<const Tree*, YAML::Node> known_;
};

// A copy that can be written to; what aliases share stays shared.
class YamlCopier {
 public:
  explicit YamlCopier(bool has_aliases) : has_aliases_(has_aliases) {}

  std::shared_ptr<Tree> copy(const std::shared_ptr<Tree>& tree) {
    if (!tree) return nullptr;
    if (has_aliases_) {
      if (const auto found = known_.find(tree.get()); found != known_.end()) return found->second;
    }
    auto out = std::make_shared<Tree>(*tree);
    for (auto& [key, value] : out->entries) {
      key = copy(key);
      value = copy(value);
    }
    if (has_aliases_) known_.emplace(tree.get(), out);
    return out;
  }

 private:
  bool has_aliases_;
  std::map<const Tree*, std::shared_ptr<Tree>> known_;
};

// What `text` means, from memory where it was read before: the points of a sweep read the same base,
// presets and models again and again. Throws YAML::Exception, and InputError with `name` for what is
// no finite tree.
std::shared_ptr<const YamlDocument> document_of(const std::string& text, const std::string& name) {
  static Memo known(std::size_t{4} << 20);
  return known.get(
      text,
      [&] {
        const YAML::Node root = YAML::Load(text);
        TreeCheck(name).check(root);
        YamlDocument document{nullptr, text.find('*') != std::string::npos, 0};
        document.root = YamlReader(document).read(root);
        return document;
      },
      [&](const YamlDocument& document) {
        return 2 * text.size() +
               document.num_values * (sizeof(Tree) + 2 * sizeof(std::shared_ptr<Tree>));
      });
}

// A copy of its own of an override's value.
std::shared_ptr<Tree> value_of(const Override& override_, const std::string& where) {
  try {
    const auto document = document_of(override_.value, where);
    return YamlCopier(document->has_aliases).copy(document->root);
  } catch (const YAML::Exception& error) {
    throw InputError(where, fmt::format("\"{}\" ({})", override_.value, error.msg), "a YAML value");
  }
}

// The value of a map's key; where it is missing, an empty map is added.
std::shared_ptr<Tree> entry_of(Tree& map, const std::string& key) {
  for (const auto& [name, value] : map.entries) {
    if (name->type == YAML::NodeType::Scalar && name->scalar == key) return value;
  }
  auto name = std::make_shared<Tree>();
  name->type = YAML::NodeType::Scalar;
  name->scalar = key;
  auto value = std::make_shared<Tree>();
  value->type = YAML::NodeType::Map;
  map.entries.emplace_back(std::move(name), value);
  return value;
}

void apply_override(const std::shared_ptr<Tree>& root, const Override& override_) {
  const std::string where = where_of(override_);
  std::shared_ptr<Tree> value = value_of(override_, where);
  std::shared_ptr<Tree> node = root;
  for (const std::string& part : split_path(override_.key)) {
    if (node->type == YAML::NodeType::Sequence) {
      std::size_t idx = 0;
      const auto [end, status] = std::from_chars(part.data(), part.data() + part.size(), idx);
      if (status != std::errc{} || end != part.data() + part.size() ||
          idx >= node->entries.size()) {
        throw InputError(where, fmt::format("index \"{}\"", part),
                         fmt::format("a list position below {}", node->entries.size()));
      }
      node = node->entries[idx].second;
    } else if (node->type == YAML::NodeType::Map) {
      node = entry_of(*node, part);
    } else {
      throw InputError(where, fmt::format("a plain value before \"{}\"", part),
                       "a path through maps and lists of the file");
    }
  }
  *node = std::move(*value);  // in place: what an alias names changes everywhere
}

}  // namespace

bool YamlValue::is_map() const {
  return node_->tree->type == YAML::NodeType::Map;
}
bool YamlValue::is_list() const {
  return node_->tree->type == YAML::NodeType::Sequence;
}
bool YamlValue::is_scalar() const {
  return node_->tree->type == YAML::NodeType::Scalar;
}

const Override* YamlValue::Node::given_by() const {
  for (auto override_ = overrides->rbegin(); override_ != overrides->rend(); ++override_) {
    if (starts_with_path(path, override_->key)) return &*override_;
  }
  if (!tree->mark.is_null()) return nullptr;
  for (auto override_ = overrides->rbegin(); override_ != overrides->rend(); ++override_) {
    if (starts_with_path(override_->key, path)) return &*override_;
  }
  return nullptr;
}

std::string YamlValue::where() const {
  if (const Override* override_ = node_->given_by()) {
    const bool below = starts_with_path(node_->path, override_->key);
    return override_->where(below ? node_->path : override_->key);
  }
  return node_->path.empty() ? position() : fmt::format("{}: key \"{}\"", position(), node_->path);
}

std::string YamlValue::position() const {
  const YAML::Mark mark = node_->tree->mark;
  if (mark.is_null() || node_->given_by() != nullptr) return *node_->file;
  return fmt::format("{}:{}:{}", *node_->file, mark.line + 1, mark.column + 1);
}

const std::string& YamlValue::file() const {
  return *node_->file;
}

const std::string& YamlValue::path() const {
  return node_->path;
}

bool YamlValue::is_overridden() const {
  return node_->given_by() != nullptr;
}

InputError YamlValue::error(std::string_view found, std::string_view expected) const {
  return {where(), found, expected};
}

std::string YamlValue::excerpt() const {
  if (node_->tree->type == YAML::NodeType::Null) return "nothing";
  if (is_map()) return "a map";
  if (is_list()) return "a list";
  std::string text = node_->tree->scalar;
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return fmt::format("\"{}\"", text);
}

YamlMap YamlValue::as_map() const {
  return YamlMap(*this);
}

std::vector<YamlValue> YamlValue::as_list() const {
  if (!is_list()) throw error(excerpt(), "a list");
  std::vector<YamlValue> items;
  for (std::size_t i = 0; i < node_->tree->entries.size(); ++i) {
    items.emplace_back(
        std::make_shared<Node>(Node{node_->tree->entries[i].second, node_->file,
                                    child_path(node_->path, std::to_string(i)), node_->overrides}));
  }
  return items;
}

std::string YamlValue::as_string() const {
  if (!is_scalar() || node_->tree->scalar.empty()) throw error(excerpt(), "a text");
  return node_->tree->scalar;
}

bool YamlValue::as_bool() const {
  if (is_scalar() && node_->tree->scalar == "true") return true;
  if (is_scalar() && node_->tree->scalar == "false") return false;
  throw error(excerpt(), "true or false");
}

std::int64_t YamlValue::as_integer(std::int64_t min, std::int64_t max) const {
  const std::string expected = fmt::format("a whole number from {} to {}", min, max);
  if (!is_scalar()) throw error(excerpt(), expected);
  const std::string& text = node_->tree->scalar;
  std::int64_t number = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || status != std::errc{} || end != text.data() + text.size() || number < min ||
      number > max) {
    throw error(excerpt(), expected);
  }
  return number;
}

double YamlValue::as_number(double min, double max) const {
  const std::string expected = fmt::format("a number from {} to {}", min, max);
  if (!is_scalar()) throw error(excerpt(), expected);
  const std::string& text = node_->tree->scalar;
  double number = 0.0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || status != std::errc{} || end != text.data() + text.size() ||
      !std::isfinite(number) || number < min || number > max) {
    throw error(excerpt(), expected);
  }
  return number;
}

Seconds YamlValue::as_seconds() const {
  if (!is_scalar()) throw error(excerpt(), "a time with its unit, such as \"2 us\"");
  return parse_seconds(node_->tree->scalar, where());
}
Bytes YamlValue::as_bytes() const {
  if (!is_scalar()) throw error(excerpt(), "a size with its unit, such as \"4 KiB\"");
  return parse_bytes(node_->tree->scalar, where());
}
Bandwidth YamlValue::as_bandwidth() const {
  if (!is_scalar()) throw error(excerpt(), "a bandwidth with its unit, such as \"50 GB/s\"");
  return parse_bandwidth(node_->tree->scalar, where());
}
ComputeRate YamlValue::as_compute_rate() const {
  if (!is_scalar()) throw error(excerpt(), "a compute rate with its unit, such as \"989 TFLOP/s\"");
  return parse_compute_rate(node_->tree->scalar, where());
}

std::size_t YamlValue::as_choice(const std::vector<std::string>& choices) const {
  if (is_scalar()) {
    const auto found = std::find(choices.begin(), choices.end(), node_->tree->scalar);
    if (found != choices.end()) return static_cast<std::size_t>(found - choices.begin());
  }
  throw error(excerpt(), "one of " + joined(choices));
}

YamlMap::YamlMap(YamlValue value) : value_(std::move(value)) {
  const YamlValue::Node& node = *value_.node_;
  if (!value_.is_map()) throw value_.error(value_.excerpt(), "a map of keys and values");
  for (const auto& [name, child] : node.tree->entries) {
    // An override adds a key that it names itself; one of a file stands in the map of its path.
    const bool added = name->mark.is_null();
    const std::string place = added ? child_path(node.path, name->scalar) : node.path;
    const YamlValue key_place(
        std::make_shared<YamlValue::Node>(YamlValue::Node{name, node.file, place, node.overrides}));
    if (!key_place.is_scalar()) throw key_place.error(key_place.excerpt(), "a plain key");
    const std::string& key = name->scalar;
    if (has(key)) throw key_place.error(fmt::format("a second key \"{}\"", key), "each key once");
    entries_.emplace_back(key, YamlValue(std::make_shared<YamlValue::Node>(YamlValue::Node{
                                   child, node.file, child_path(node.path, key), node.overrides})));
    key_places_.push_back(key_place);
  }
}

bool YamlMap::has(const std::string& key) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const auto& entry) { return entry.first == key; });
}

std::vector<std::string> YamlMap::keys() const {
  std::vector<std::string> keys;
  for (const auto& entry : entries_) keys.push_back(entry.first);
  return keys;
}

std::optional<YamlValue> YamlMap::optional(const std::string& key) {
  asked_.insert(key);
  for (const auto& [name, value] : entries_) {
    if (name == key) return value;
  }
  return std::nullopt;
}

YamlValue YamlMap::required(const std::string& key) {
  if (auto value = optional(key)) return *value;
  throw value_.error("no key \"" + key + "\"", "it to be given");
}

void YamlMap::finish() const {
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (asked_.contains(entries_[i].first)) continue;
    const std::vector<std::string> known(asked_.begin(), asked_.end());
    throw key_places_[i].error(fmt::format("unknown key \"{}\"", entries_[i].first),
                               known.empty() ? "no keys here" : "one of " + joined(known));
  }
}

std::string Override::where(std::string_view path) const {
  return position.empty() ? fmt::format("--set {}{}", parent, path)
                          : fmt::format("{}: key \"{}{}\"", position, parent, path);
}

Override parse_override(std::string_view text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    throw InputError("--set", fmt::format("\"{}\"", text), "KEY=VALUE");
  }
  return {std::string(text.substr(0, equals)), std::string(text.substr(equals + 1))};
}

YamlValue parse_yaml(std::string_view text, const std::string& name,
                     const std::vector<Override>& overrides) {
  std::shared_ptr<const YamlDocument> document;
  try {
    document = document_of(std::string(text), name);
  } catch (const YAML::Exception& error) {
    throw InputError(fmt::format("{}:{}:{}: not valid YAML: {}", name, error.mark.line + 1,
                                 error.mark.column + 1, error.msg));
  }
  std::shared_ptr<Tree> root = document->root;
  if (root->type == YAML::NodeType::Null) throw InputError(name, "an empty document", "keys");
  if (!overrides.empty()) root = YamlCopier(document->has_aliases).copy(root);
  for (const Override& override_ : overrides) apply_override(root, override_);
  return YamlValue(std::make_shared<YamlValue::Node>(
      YamlValue::Node{std::move(root), std::make_shared<std::string>(name), "",
                      std::make_shared<const std::vector<Override>>(overrides)}));
}

YamlValue load_yaml(const std::filesystem::path& path, const std::vector<Override>& overrides) {
  return parse_yaml(read_file(path, kMaxDocumentBytes), path.string(), overrides);
}

std::string dump_yaml(const YamlValue& value) {
  YAML::Emitter out;
  out << YamlWriter().write(*value.node_->tree);
  return std::string(out.c_str()) + "\n";
}

}  // namespace coterie
