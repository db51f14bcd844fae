#pragma once
// Run reports as tables and sentences for a console: printers over core/metrics.hpp.

#include <span>
#include <string>
#include <vector>

#include "core/report.hpp"
#include "core/table.hpp"

namespace coterie {

// One row per run, means over the layers: the layer's time with its interval, dispatch, MLP and
// combine on their own, fan-out, bytes per tier, load, the busiest link, the speed-ups. Runs that
// failed show that. Of runs by engine `bound` it shows the times as lower bounds and what else is
// known without simulating.
Table result_table(std::span<const RunReport> runs);

// Where the time of the rank goes that ends the layer: the parts of core/metrics.hpp, means over the
// layers, which add up to the last column. Runs without phases are left out; empty where all are.
Table breakdown_table(std::span<const RunReport> runs);

// What stands beside the tables: why runs failed, what pruning lost, the reports' warnings (each
// once), and what `bound` does not know. Whole sentences.
std::vector<std::string> result_notes(std::span<const RunReport> runs);

// The same for whole steps: one row per run with its time, rates, communication and memory; and the
// parts of that rank or stage (StepReport), which add up to the step.
Table step_table(std::span<const RunReport> runs);
Table step_parts_table(std::span<const RunReport> runs);
// The times of every step of a series, with the placement of the first step and with one learnt for
// it; no rows without a series.
Table step_series_table(std::span<const RunReport> runs);

// The mean time of a layer as the tables show it.
std::string time_text(const RunReport& run);

}  // namespace coterie
