#pragma once
// A sweep: an experiment varied along axes. Reads SWEEP.yaml and lists the points.
//
//   schema_version: 1
//   base: law_h100_64.yaml               # an experiment; relative to this file
//   axes:                                # cross product; the first axis varies slowest
//     - {key: ranks, values: [8, 16, 64]}
//     - {key: topology.fabric, values: [{kind: rail_only}, {kind: star}]}   # whole blocks, too
//     - zip:                             # vary together, position by position
//         - {key: topology.nic.bandwidth, values: [200 Gb/s, 400 Gb/s]}
//         - {key: topology.nic.latency, values: [1 us, 800 ns]}
//   skip:                                # leaves out the points where all of an entry's hold
//     - {ranks: 8, topology.nic.bandwidth: 200 Gb/s}
//     - {ranks: [8, 16], topology.nic.bandwidth: "> 200 Gb/s"}   # any of a list; < <= > >= !=
//   runs: [standard, dedup]              # of the base; absent: all
//   baseline: {run: dedup}               # what ratios refer to: these values, all else equal

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/yaml.hpp"

namespace coterie {

using Settings =
    std::vector<std::pair<std::string, std::string>>;  // key and value text, in axis order

struct SweepPoint {
  std::string id;     // stable hash of the base, the files it names, and the settings
  Settings settings;  // one per axis key
};

struct SweepSpec {
  std::filesystem::path base;
  std::vector<Override> base_overrides;  // from --set base settings common to all points
  std::vector<std::string> keys;         // axis keys, in order
  std::vector<std::string> runs;         // empty: all of the base
  Settings baseline;                     // may hold the key "run"
  std::vector<SweepPoint> points;
  std::string id;  // hash of everything that decides results; a results folder belongs to one id
};

// Throws InputError: unknown keys, axes without values, a key on two axes, zipped axes of unequal
// length, runs that the base does not have, filters or a baseline that name no axis or no value of
// it, filters that take nothing or leave nothing, a baseline that no point has.
SweepSpec load_sweep(const std::filesystem::path& path,
                     const std::vector<Override>& overrides = {});

// Calls `load` on points until one of them loads. Throws InputError with the sentence of the first
// if none does: an axis over a key that does not exist, say. What fails for some values only is no
// fault of the sweep's; it is recorded point by point.
void check_some_point_loads(const SweepSpec& spec, const std::filesystem::path& path,
                            const std::function<void(const SweepPoint&)>& load);

// The overrides that make a point from the base.
std::vector<Override> overrides_of(const SweepSpec& spec, const SweepPoint& point);

// The command that runs this point alone.
std::string command_of(const SweepSpec& spec, const SweepPoint& point);

}  // namespace coterie
