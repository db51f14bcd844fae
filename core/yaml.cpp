#include "core/yaml.hpp"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <utility>

#include "core/file.hpp"

namespace coterie {

// The yaml-cpp node with what it lacks: the file's name and the dotted path from the root.
struct YamlValue::Node {
  YAML::Node yaml;
  std::shared_ptr<const std::string> file;
  std::string path;
  std::shared_ptr<const std::vector<std::string>> overridden;  // keys given with --set
};

namespace {

bool starts_with_path(const std::string& path, const std::string& prefix) {
  return path == prefix ||
         (path.size() > prefix.size() && path.starts_with(prefix) && path[prefix.size()] == '.');
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

void apply_override(YAML::Node root, const Override& override_) {
  const std::string where = "--set " + override_.key;
  YAML::Node value;
  try {
    value = YAML::Load(override_.value);
  } catch (const YAML::Exception& error) {
    throw InputError(where, fmt::format("\"{}\" ({})", override_.value, error.msg), "a YAML value");
  }
  TreeCheck(where).check(value);
  const std::vector<std::string> parts = split_path(override_.key);
  YAML::Node node;
  node.reset(root);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const bool last = i + 1 == parts.size();
    YAML::Node next;
    if (node.IsSequence()) {
      std::size_t idx = 0;
      const auto [end, status] =
          std::from_chars(parts[i].data(), parts[i].data() + parts[i].size(), idx);
      if (status != std::errc{} || end != parts[i].data() + parts[i].size() || idx >= node.size()) {
        throw InputError(where, fmt::format("index \"{}\"", parts[i]),
                         fmt::format("a list position below {}", node.size()));
      }
      if (last) {
        node[idx] = value;
        return;
      }
      next.reset(node[idx]);
    } else if (node.IsMap()) {
      if (last) {
        node[parts[i]] = value;
        return;
      }
      if (!node[parts[i]]) node[parts[i]] = YAML::Node(YAML::NodeType::Map);
      next.reset(node[parts[i]]);
    } else {
      throw InputError(where, fmt::format("a plain value before \"{}\"", parts[i]),
                       "a path through maps and lists of the file");
    }
    node.reset(next);
  }
}

}  // namespace

bool YamlValue::is_map() const {
  return node_->yaml.IsMap();
}
bool YamlValue::is_list() const {
  return node_->yaml.IsSequence();
}
bool YamlValue::is_scalar() const {
  return node_->yaml.IsScalar();
}

std::string YamlValue::where() const {
  for (const std::string& key : *node_->overridden) {
    if (starts_with_path(node_->path, key)) return "--set " + node_->path;
  }
  const YAML::Mark mark = node_->yaml.Mark();
  std::string place = *node_->file;
  if (!mark.is_null()) place += fmt::format(":{}:{}", mark.line + 1, mark.column + 1);
  return node_->path.empty() ? place : fmt::format("{}: key \"{}\"", place, node_->path);
}

InputError YamlValue::error(std::string_view found, std::string_view expected) const {
  return {where(), found, expected};
}

std::string YamlValue::excerpt() const {
  if (node_->yaml.IsNull() || !node_->yaml.IsDefined()) return "nothing";
  if (node_->yaml.IsMap()) return "a map";
  if (node_->yaml.IsSequence()) return "a list";
  std::string text = node_->yaml.Scalar();
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return fmt::format("\"{}\"", text);
}

YamlMap YamlValue::as_map() const {
  return YamlMap(*this);
}

std::vector<YamlValue> YamlValue::as_list() const {
  if (!is_list()) throw error(excerpt(), "a list");
  std::vector<YamlValue> items;
  for (std::size_t i = 0; i < node_->yaml.size(); ++i) {
    items.emplace_back(std::make_shared<Node>(Node{node_->yaml[i], node_->file,
                                                   child_path(node_->path, std::to_string(i)),
                                                   node_->overridden}));
  }
  return items;
}

std::string YamlValue::as_string() const {
  if (!is_scalar() || node_->yaml.Scalar().empty()) throw error(excerpt(), "a text");
  return node_->yaml.Scalar();
}

bool YamlValue::as_bool() const {
  if (is_scalar() && node_->yaml.Scalar() == "true") return true;
  if (is_scalar() && node_->yaml.Scalar() == "false") return false;
  throw error(excerpt(), "true or false");
}

std::int64_t YamlValue::as_integer(std::int64_t min, std::int64_t max) const {
  const std::string expected = fmt::format("a whole number from {} to {}", min, max);
  if (!is_scalar()) throw error(excerpt(), expected);
  const std::string& text = node_->yaml.Scalar();
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
  const std::string& text = node_->yaml.Scalar();
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
  return parse_seconds(node_->yaml.Scalar(), where());
}
Bytes YamlValue::as_bytes() const {
  if (!is_scalar()) throw error(excerpt(), "a size with its unit, such as \"4 KiB\"");
  return parse_bytes(node_->yaml.Scalar(), where());
}
Bandwidth YamlValue::as_bandwidth() const {
  if (!is_scalar()) throw error(excerpt(), "a bandwidth with its unit, such as \"50 GB/s\"");
  return parse_bandwidth(node_->yaml.Scalar(), where());
}
ComputeRate YamlValue::as_compute_rate() const {
  if (!is_scalar()) throw error(excerpt(), "a compute rate with its unit, such as \"989 TFLOP/s\"");
  return parse_compute_rate(node_->yaml.Scalar(), where());
}

std::size_t YamlValue::as_choice(const std::vector<std::string>& choices) const {
  if (is_scalar()) {
    const auto found = std::find(choices.begin(), choices.end(), node_->yaml.Scalar());
    if (found != choices.end()) return static_cast<std::size_t>(found - choices.begin());
  }
  throw error(excerpt(), "one of " + joined(choices));
}

YamlMap::YamlMap(YamlValue value) : value_(std::move(value)) {
  const YamlValue::Node& node = *value_.node_;
  if (!node.yaml.IsMap()) throw value_.error(value_.excerpt(), "a map of keys and values");
  for (const auto& entry : node.yaml) {
    const YamlValue key_place(std::make_shared<YamlValue::Node>(
        YamlValue::Node{entry.first, node.file, node.path, node.overridden}));
    if (!entry.first.IsScalar()) throw key_place.error(key_place.excerpt(), "a plain key");
    const std::string key = entry.first.Scalar();
    const YamlValue child(std::make_shared<YamlValue::Node>(
        YamlValue::Node{entry.second, node.file, child_path(node.path, key), node.overridden}));
    if (has(key)) throw key_place.error(fmt::format("a second key \"{}\"", key), "each key once");
    entries_.emplace_back(key, child);
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

Override parse_override(std::string_view text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    throw InputError("--set", fmt::format("\"{}\"", text), "KEY=VALUE");
  }
  return {std::string(text.substr(0, equals)), std::string(text.substr(equals + 1))};
}

YamlValue parse_yaml(std::string_view text, const std::string& name,
                     const std::vector<Override>& overrides) {
  YAML::Node root;
  try {
    root = YAML::Load(std::string(text));
  } catch (const YAML::Exception& error) {
    throw InputError(fmt::format("{}:{}:{}: not valid YAML: {}", name, error.mark.line + 1,
                                 error.mark.column + 1, error.msg));
  }
  if (!root.IsDefined() || root.IsNull()) throw InputError(name, "an empty document", "keys");
  TreeCheck(name).check(root);
  auto overridden = std::make_shared<std::vector<std::string>>();
  for (const Override& override_ : overrides) {
    apply_override(root, override_);
    overridden->push_back(override_.key);
  }
  return YamlValue(std::make_shared<YamlValue::Node>(
      YamlValue::Node{root, std::make_shared<std::string>(name), "", std::move(overridden)}));
}

YamlValue load_yaml(const std::filesystem::path& path, const std::vector<Override>& overrides) {
  return parse_yaml(read_file(path, kMaxDocumentBytes), path.string(), overrides);
}

std::string dump_yaml(const YamlValue& value) {
  YAML::Emitter out;
  out << value.node_->yaml;
  return std::string(out.c_str()) + "\n";
}

}  // namespace coterie
