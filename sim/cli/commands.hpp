#pragma once
// The subcommands of `coterie`, one file each. A command adds its options to the app and sets its
// callback; results go to stdout, log and progress to stderr, errors are thrown.

#include <CLI/CLI.hpp>

namespace coterie {

// One line per command, in the order of --help; main.cpp calls them in this order.
void add_simulate_command(CLI::App& app);
void add_sweep_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_place_command(CLI::App& app);
void add_analyze_command(CLI::App& app);
void add_trace_command(CLI::App& app);
void add_plan_command(CLI::App& app);
void add_predict_command(CLI::App& app);
void add_topology_command(CLI::App& app);
void add_model_command(CLI::App& app);
void add_calibrate_command(CLI::App& app);
void add_compare_command(CLI::App& app);
void add_validate_command(CLI::App& app);

}  // namespace coterie
