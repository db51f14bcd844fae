#include "sim/sweep/spec.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <optional>
#include <set>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/hash.hpp"
#include "core/provenance.hpp"

namespace coterie {
namespace {

constexpr std::size_t kMaxPoints = 1'000'000;

struct Axis {
  std::string key;
  std::vector<std::string> values;
};
// Axes that vary together: all have the same number of values.
using ZippedAxes = std::vector<Axis>;

// A value as it would follow `--set KEY=`: scalars as they stand, lists and maps in flow style.
std::string value_text(const YamlValue& value) {
  if (value.is_scalar()) return value.as_string();
  std::string text = dump_yaml(value);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (text.find('\n') != std::string::npos) {
    throw value.error("a block of several lines", "a plain value or a list in [brackets]");
  }
  return text;
}

Axis read_axis(const YamlValue& value) {
  YamlMap map = value.as_map();
  Axis axis;
  axis.key = map.required("key").as_string();
  const YamlValue values = map.required("values");
  for (const YamlValue& item : values.as_list()) {
    axis.values.push_back(value_text(item));
    if (std::count(axis.values.begin(), axis.values.end(), axis.values.back()) > 1) {
      throw item.error(fmt::format("\"{}\" a second time", axis.values.back()), "each value once");
    }
  }
  if (axis.values.empty()) throw values.error("an empty list", "at least one value");
  map.finish();
  return axis;
}

ZippedAxes read_zip(const YamlValue& value) {
  ZippedAxes zip;
  const std::vector<YamlValue> items = value.as_list();
  for (const YamlValue& item : items) {
    // Zipped values may repeat: only the combination must be new, and positions see to that.
    YamlMap map = item.as_map();
    Axis axis;
    axis.key = map.required("key").as_string();
    for (const YamlValue& entry : map.required("values").as_list()) {
      axis.values.push_back(value_text(entry));
    }
    map.finish();
    if (!zip.empty() && axis.values.size() != zip.front().values.size()) {
      throw item.error(counted(axis.values.size(), "value"),
                       fmt::format("{} as in the first zipped axis", zip.front().values.size()));
    }
    zip.push_back(std::move(axis));
  }
  if (zip.empty() || zip.front().values.empty()) {
    throw value.error("no values", "at least one zipped axis with at least one value");
  }
  return zip;
}

std::vector<ZippedAxes> read_axes(const YamlValue& value) {
  std::vector<ZippedAxes> axes;
  std::set<std::string> keys;
  for (const YamlValue& item : value.as_list()) {
    YamlMap map = item.as_map();
    if (const auto zip = map.optional("zip")) {
      axes.push_back(read_zip(*zip));
      map.finish();
    } else {
      axes.push_back({read_axis(item)});
    }
    for (const Axis& axis : axes.back()) {
      if (!keys.insert(axis.key).second) {
        throw item.error(fmt::format("a second axis for \"{}\"", axis.key), "one axis per key");
      }
    }
  }
  if (axes.empty()) throw value.error("no axes", "at least one");
  return axes;
}

std::string canonical(const Settings& settings) {
  std::string text;
  for (const auto& [key, value] : settings) text += key + "=" + value + "\n";
  return text;
}

const Axis* find_axis(const std::vector<ZippedAxes>& axes, const std::string& key) {
  for (const ZippedAxes& zip : axes) {
    for (const Axis& axis : zip) {
      if (axis.key == key) return &axis;
    }
  }
  return nullptr;
}

bool contains(const std::vector<std::string>& values, const std::string& value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

// A baseline: one value per axis named (and `run`).
Settings read_baseline(const YamlValue& value, const std::vector<ZippedAxes>& axes) {
  YamlMap map = value.as_map();
  Settings baseline;
  for (const std::string& key : map.keys()) {
    const YamlValue entry = map.required(key);
    const std::string text = value_text(entry);
    if (key != "run") {
      const Axis* axis = find_axis(axes, key);
      if (axis == nullptr) throw entry.error("a key that is no axis", "one of the axes' keys");
      if (!contains(axis->values, text)) {
        throw entry.error(fmt::format("\"{}\"", text), "one of that axis's values");
      }
    }
    baseline.emplace_back(key, text);
  }
  if (baseline.empty()) throw value.error("an empty map", "at least one key");
  map.finish();
  return baseline;
}

// What one entry of `skip` says about one axis: the values of the axis that it takes.
struct Condition {
  std::string key;
  std::vector<std::string> values;
};
using Filter = std::vector<Condition>;

// "400 Gb/s" as 400 and "Gb/s". Nothing where the text does not begin with a number.
std::optional<std::pair<double, std::string>> number_and_unit(const std::string& text) {
  double number = 0.0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (status != std::errc{}) return std::nullopt;
  std::string unit(end, text.data() + text.size());
  unit.erase(0, unit.find_first_not_of(' ') == std::string::npos ? unit.size()
                                                                 : unit.find_first_not_of(' '));
  return std::pair{number, unit};
}

bool holds(const std::string& comparison, double left, double right) {
  if (comparison == "<") return left < right;
  if (comparison == "<=") return left <= right;
  if (comparison == ">") return left > right;
  return left >= right;
}

// The axis values for which e.g. "> 128" or "!= 1024" holds.
std::vector<std::string> compared(const YamlValue& entry, const Axis& axis,
                                  const std::string& comparison, const std::string& operand) {
  std::vector<std::string> taken;
  if (comparison == "!=") {
    if (!contains(axis.values, operand)) {
      throw entry.error(fmt::format("\"{}\"", operand), "one of that axis's values");
    }
    std::copy_if(axis.values.begin(), axis.values.end(), std::back_inserter(taken),
                 [&](const std::string& value) { return value != operand; });
    return taken;
  }
  const auto right = number_and_unit(operand);
  if (!right) throw entry.error(fmt::format("\"{}\"", operand), "a number to compare with");
  for (const std::string& value : axis.values) {
    const auto left = number_and_unit(value);
    if (!left || left->second != right->second) {
      throw entry.error(fmt::format("\"{}\"", operand),
                        fmt::format("what compares with \"{}\": a number in its unit", value));
    }
    if (holds(comparison, left->first, right->first)) taken.push_back(value);
  }
  return taken;
}

Condition read_condition(const YamlValue& entry, const std::string& key, const Axis& axis) {
  Condition condition{key, {}};
  const std::vector<YamlValue> items =
      entry.is_list() ? entry.as_list() : std::vector<YamlValue>{entry};
  // An axis over lists ("layers: [5, 20]") is matched by the whole list.
  if (const std::string text = value_text(entry); contains(axis.values, text)) {
    condition.values.push_back(text);
    return condition;
  }
  for (const YamlValue& item : items) {
    const std::string text = value_text(item);
    const std::size_t length = std::min(text.find_first_not_of("<>=!"), text.size());
    const std::string comparison = text.substr(0, length);
    if (comparison == "<" || comparison == "<=" || comparison == ">" || comparison == ">=" ||
        comparison == "!=") {
      const std::size_t begin = text.find_first_not_of(' ', length);
      const auto taken =
          compared(item, axis, comparison, begin == std::string::npos ? "" : text.substr(begin));
      condition.values.insert(condition.values.end(), taken.begin(), taken.end());
    } else if (contains(axis.values, text)) {
      condition.values.push_back(text);
    } else {
      throw item.error(fmt::format("\"{}\"", text),
                       "one of that axis's values, or one after <, <=, >, >= or !=");
    }
  }
  if (condition.values.empty()) {
    throw entry.error(entry.excerpt(), "what holds for at least one value of that axis");
  }
  return condition;
}

Filter read_filter(const YamlValue& value, const std::vector<ZippedAxes>& axes) {
  YamlMap map = value.as_map();
  Filter filter;
  for (const std::string& key : map.keys()) {
    const YamlValue entry = map.required(key);
    const Axis* axis = find_axis(axes, key);
    if (axis == nullptr) throw entry.error("a key that is no axis", "one of the axes' keys");
    filter.push_back(read_condition(entry, key, *axis));
  }
  if (filter.empty()) throw value.error("an empty map", "at least one key");
  map.finish();
  return filter;
}

bool takes(const Filter& filter, const Settings& settings) {
  return std::all_of(filter.begin(), filter.end(), [&](const Condition& condition) {
    return std::any_of(settings.begin(), settings.end(), [&](const auto& setting) {
      return setting.first == condition.key && contains(condition.values, setting.second);
    });
  });
}

bool agrees(const Settings& settings, const Settings& baseline) {
  return std::all_of(baseline.begin(), baseline.end(), [&](const auto& wanted) {
    return wanted.first == "run" ||
           std::find(settings.begin(), settings.end(), wanted) != settings.end();
  });
}

void collect_scalars(const YamlValue& value, std::set<std::string>& texts) {
  if (value.is_map()) {
    YamlMap map = value.as_map();
    for (const std::string& key : map.keys()) collect_scalars(map.required(key), texts);
  } else if (value.is_list()) {
    for (const YamlValue& item : value.as_list()) collect_scalars(item, texts);
  } else if (value.is_scalar()) {
    texts.insert(value_text(value));
  }
}

// Whether an experiment's key may hold the path of a file.
bool names_a_file(const std::string& key) {
  return key == "topology" || key == "topology.extends" || key == "model" ||
         key == "model.extends" || key == "trace.file" ||
         (key.starts_with("runs.") && key.ends_with(".placement"));
}

// The files that the base, the overrides and the axes name (traces, topologies, placements), each
// with a hash of its content: with another trace under the old name, old results do not count.
std::string named_files(const SweepSpec& spec, const std::vector<ZippedAxes>& axes) {
  std::set<std::string> texts;  // relative to the base's folder
  collect_scalars(load_yaml(spec.base), texts);
  for (const ZippedAxes& zip : axes) {
    for (const Axis& axis : zip) {
      for (const std::string& value : axis.values) {
        texts.insert(value);
        if (value.front() != '[' && value.front() != '{') continue;
        try {
          collect_scalars(parse_yaml(value, axis.key), texts);
        } catch (const InputError&) {  // a text that only begins like a list or map
        }
      }
    }
  }
  std::set<std::string> given;  // with --set: relative to the working directory
  for (const Override& override_ : spec.base_overrides) given.insert(override_.value);
  std::string hashes;
  const auto add = [&](const std::string& text, const std::filesystem::path& folder) {
    std::error_code unusable;  // a text that is no path, too long a name
    const std::filesystem::path file = folder / text;
    if (std::filesystem::is_regular_file(file, unusable)) {
      hashes += fmt::format("\n{} {}", text, hex64(content_hash(read_file(file))));
    }
  };
  for (const std::string& text : texts) add(text, spec.base.parent_path());
  for (const std::string& text : given) add(text, {});
  return hashes;
}

// Names of the base's runs with the overrides in place.
std::vector<std::string> base_runs(const SweepSpec& spec) {
  YamlMap map = load_yaml(spec.base, spec.base_overrides).as_map();
  std::vector<std::string> names;
  if (const auto runs = map.optional("runs")) {
    for (const YamlValue& item : runs->as_list()) {
      YamlMap run = item.as_map();
      names.push_back(run.required("name").as_string());
    }
  }
  return names;
}

// All points of the cross product that no filter takes. `num_taken` counts what each filter takes.
std::vector<SweepPoint> cross(const std::vector<ZippedAxes>& axes,
                              const std::vector<Filter>& filters, const std::string& common,
                              std::vector<std::size_t>& num_taken) {
  std::vector<SweepPoint> points;
  num_taken.assign(filters.size(), 0);
  // An odometer over the axes, the last one turning fastest.
  std::vector<std::size_t> position(axes.size(), 0);
  while (true) {
    SweepPoint point;
    for (std::size_t a = 0; a < axes.size(); ++a) {
      for (const Axis& axis : axes[a]) {
        point.settings.emplace_back(axis.key, axis.values[position[a]]);
      }
    }
    bool skipped = false;
    for (std::size_t f = 0; f < filters.size(); ++f) {
      if (!takes(filters[f], point.settings)) continue;
      ++num_taken[f];
      skipped = true;
    }
    if (!skipped) {
      point.id = hex64(content_hash(common + "\n" + canonical(point.settings)));
      points.push_back(std::move(point));
    }
    std::size_t a = axes.size();
    while (a > 0 && ++position[a - 1] == axes[a - 1].front().values.size()) position[--a] = 0;
    if (a == 0) return points;
  }
}

// `runs` and `baseline`, whose runs must be the base's.
void read_runs(YamlMap& map, const std::vector<ZippedAxes>& axes, SweepSpec& spec) {
  const std::vector<std::string> known = base_runs(spec);
  const auto check = [](const YamlValue& value, const std::string& name,
                        const std::vector<std::string>& names) {
    if (!contains(names, name)) {
      throw value.error(fmt::format("no run \"{}\"", name),
                        fmt::format("one of {}", fmt::join(names, ", ")));
    }
  };
  if (const auto runs = map.optional("runs")) {
    for (const YamlValue& item : runs->as_list()) {
      check(item, item.as_string(), known);
      spec.runs.push_back(item.as_string());
    }
    if (spec.runs.empty()) throw runs->error("an empty list", "names of the base's runs");
  }
  if (const auto baseline = map.optional("baseline")) {
    spec.baseline = read_baseline(*baseline, axes);
    for (const auto& [key, name] : spec.baseline) {
      if (key == "run") check(*baseline, name, spec.runs.empty() ? known : spec.runs);
    }
  }
}

}  // namespace

SweepSpec load_sweep(const std::filesystem::path& path, const std::vector<Override>& overrides) {
  const YamlValue document = load_yaml(path);
  YamlMap map = document.as_map();
  (void)map.required("schema_version").as_integer(1, 1);
  SweepSpec spec;
  const YamlValue base = map.required("base");
  spec.base = base.as_string();
  if (spec.base.is_relative()) spec.base = path.parent_path() / spec.base;
  if (!path_exists(spec.base)) throw base.error("no such file", "an experiment");
  spec.base_overrides = overrides;

  const std::vector<ZippedAxes> axes = read_axes(map.required("axes"));
  for (const ZippedAxes& zip : axes) {
    for (const Axis& axis : zip) spec.keys.push_back(axis.key);
  }
  std::vector<YamlValue> skip;
  std::vector<Filter> filters;
  const auto skip_value = map.optional("skip");
  if (skip_value) skip = skip_value->as_list();
  for (const YamlValue& item : skip) filters.push_back(read_filter(item, axes));
  read_runs(map, axes, spec);
  map.finish();

  std::size_t num_points = 1;
  for (const ZippedAxes& zip : axes) {
    num_points *= zip.front().values.size();
    if (num_points > kMaxPoints) {
      throw map.required("axes").error(fmt::format("more than {}", counted(kMaxPoints, "point")),
                                       "fewer");
    }
  }
  std::string common = read_file(spec.base);
  for (const Override& override_ : overrides) {
    common += fmt::format("\n{}={}", override_.key, override_.value);
  }
  for (const std::string& run : spec.runs) common += "\nrun " + run;
  common += named_files(spec, axes);

  std::vector<std::size_t> num_taken;
  spec.points = cross(axes, filters, common, num_taken);
  if (spec.points.empty()) {
    throw skip_value->error(
        fmt::format("filters that leave out every one of {}", counted(num_points, "point")),
        "at least one point to remain");
  }
  for (std::size_t f = 0; f < filters.size(); ++f) {
    if (num_taken[f] == 0) {
      throw skip[f].error("a filter that no point fits", "conditions that occur together");
    }
  }
  if (std::none_of(spec.points.begin(), spec.points.end(), [&](const SweepPoint& point) {
        return agrees(point.settings, spec.baseline);
      })) {
    throw map.required("baseline")
        .error("a baseline that `skip` or `zip` leaves out",
               "values that occur together in a point");
  }
  std::string everything = common;
  for (const SweepPoint& point : spec.points) everything += point.id;
  spec.id = hex64(content_hash(everything));
  return spec;
}

void check_some_point_loads(const SweepSpec& spec, const std::filesystem::path& path,
                            const std::function<void(const SweepPoint&)>& load) {
  std::string first;
  for (const SweepPoint& point : spec.points) {
    try {
      load(point);
      return;
    } catch (const InputError& error) {
      if (first.empty()) first = error.what();
    }
  }
  throw InputError(fmt::format("{}: none of the {} can be loaded; the first: {}", path.string(),
                               counted(spec.points.size(), "point"), first));
}

std::vector<Override> overrides_of(const SweepSpec& spec, const SweepPoint& point) {
  std::vector<Override> overrides = spec.base_overrides;
  for (const auto& [key, value] : point.settings) {
    overrides.push_back({key, value});
    if (!names_a_file(key)) continue;
    // An axis's files lie beside the base experiment; an override's beside the caller.
    std::error_code unusable;
    const std::filesystem::path file = spec.base.parent_path() / value;
    if (std::filesystem::is_regular_file(file, unusable)) {
      overrides.back().value = std::filesystem::absolute(file).lexically_normal().string();
    }
  }
  return overrides;
}

std::string command_of(const SweepSpec& spec, const SweepPoint& point) {
  std::vector<std::string> arguments{"coterie", "simulate", spec.base.string(), "-o", point.id};
  for (const Override& override_ : overrides_of(spec, point)) {
    arguments.emplace_back("--set");
    arguments.push_back(override_.key + "=" + override_.value);
  }
  for (const std::string& run : spec.runs) {
    arguments.emplace_back("--run");
    arguments.push_back(run);
  }
  return shell_quote(arguments);
}

}  // namespace coterie
