#include "sim/sweep/spec.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/error.hpp"
#include "core/file.hpp"
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
      throw item.error(fmt::format("{} values", axis.values.size()),
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

// A filter or a baseline: values of axes (and `run`, where allowed).
Settings read_selection(const YamlValue& value, const std::vector<ZippedAxes>& axes,
                        bool run_allowed) {
  YamlMap map = value.as_map();
  Settings selection;
  for (const std::string& key : map.keys()) {
    const YamlValue entry = map.required(key);
    const std::string text = value_text(entry);
    if (!(run_allowed && key == "run")) {
      const Axis* found = nullptr;
      for (const ZippedAxes& zip : axes) {
        for (const Axis& axis : zip) {
          if (axis.key == key) found = &axis;
        }
      }
      if (found == nullptr) throw entry.error("a key that is no axis", "one of the axes' keys");
      if (std::find(found->values.begin(), found->values.end(), text) == found->values.end()) {
        throw entry.error(fmt::format("\"{}\"", text), "one of that axis's values");
      }
    }
    selection.emplace_back(key, text);
  }
  if (selection.empty()) throw value.error("an empty map", "at least one key");
  map.finish();
  return selection;
}

bool matches(const Settings& settings, const Settings& selection) {
  return std::all_of(selection.begin(), selection.end(), [&](const auto& wanted) {
    return std::find(settings.begin(), settings.end(), wanted) != settings.end();
  });
}

std::string canonical(const Settings& settings) {
  std::string text;
  for (const auto& [key, value] : settings) text += key + "=" + value + "\n";
  return text;
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
  if (!std::filesystem::exists(spec.base)) throw base.error("no such file", "an experiment");
  spec.base_overrides = overrides;

  const std::vector<ZippedAxes> axes = read_axes(map.required("axes"));
  for (const ZippedAxes& zip : axes) {
    for (const Axis& axis : zip) spec.keys.push_back(axis.key);
  }
  std::vector<Settings> skip;
  const auto skip_value = map.optional("skip");
  if (skip_value) {
    for (const YamlValue& item : skip_value->as_list()) {
      skip.push_back(read_selection(item, axes, false));
    }
  }
  if (const auto runs = map.optional("runs")) {
    for (const YamlValue& item : runs->as_list()) spec.runs.push_back(item.as_string());
    if (spec.runs.empty()) throw runs->error("an empty list", "names of the base's runs");
  }
  if (const auto baseline = map.optional("baseline")) {
    spec.baseline = read_selection(*baseline, axes, true);
  }
  map.finish();

  std::size_t num_points = 1;
  for (const ZippedAxes& zip : axes) {
    num_points *= zip.front().values.size();
    if (num_points > kMaxPoints) {
      throw map.required("axes").error(fmt::format("more than {} points", kMaxPoints), "fewer");
    }
  }
  std::string common = read_file(spec.base);
  for (const Override& override_ : overrides) {
    common += fmt::format("\n{}={}", override_.key, override_.value);
  }
  for (const std::string& run : spec.runs) common += "\nrun " + run;

  // An odometer over the axes, the last one turning fastest.
  std::vector<std::size_t> position(axes.size(), 0);
  for (std::size_t n = 0; n < num_points; ++n) {
    SweepPoint point;
    for (std::size_t a = 0; a < axes.size(); ++a) {
      for (const Axis& axis : axes[a])
        point.settings.emplace_back(axis.key, axis.values[position[a]]);
    }
    const bool skipped = std::any_of(skip.begin(), skip.end(), [&](const Settings& selection) {
      return matches(point.settings, selection);
    });
    if (!skipped) {
      point.id = hex64(content_hash(common + "\n" + canonical(point.settings)));
      spec.points.push_back(std::move(point));
    }
    for (std::size_t a = axes.size(); a-- > 0;) {
      if (++position[a] < axes[a].front().values.size()) break;
      position[a] = 0;
    }
  }
  if (spec.points.empty()) {
    throw skip_value->error(fmt::format("filters that leave out all {} points", num_points),
                            "at least one point to remain");
  }
  std::string everything = common;
  for (const SweepPoint& point : spec.points) everything += point.id;
  spec.id = hex64(content_hash(everything));
  return spec;
}

std::vector<Override> overrides_of(const SweepSpec& spec, const SweepPoint& point) {
  std::vector<Override> overrides = spec.base_overrides;
  for (const auto& [key, value] : point.settings) overrides.push_back({key, value});
  return overrides;
}

std::string command_of(const SweepSpec& spec, const SweepPoint& point) {
  std::vector<std::string> arguments{"coterie", "simulate", spec.base.string(), "-o", point.id};
  for (const Override& override_ : overrides_of(spec, point)) {
    arguments.emplace_back("--set");
    arguments.push_back(override_.key + "=" + override_.value);
  }
  return shell_quote(arguments);
}

}  // namespace coterie
