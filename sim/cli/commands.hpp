#pragma once
// The subcommands of `coterie`, one file each. A command adds its options to the app and sets its
// callback; results go to stdout, log and progress to stderr, errors are thrown.

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "core/yaml.hpp"
#include "topologies/transports.hpp"

namespace coterie {

// One line per command, in the order of --help; main.cpp calls them in this order.
void add_simulate_command(CLI::App& app);
void add_sweep_command(CLI::App& app);
void add_recommend_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_place_command(CLI::App& app);
void add_analyze_command(CLI::App& app);
void add_drift_command(CLI::App& app);
void add_trace_command(CLI::App& app);
void add_plan_command(CLI::App& app);
void add_predict_command(CLI::App& app);
void add_topology_command(CLI::App& app);
void add_model_command(CLI::App& app);
void add_calibrate_command(CLI::App& app);
void add_compare_command(CLI::App& app);
void add_validate_command(CLI::App& app);

// `--set KEY=VALUE`, repeatable. Each takes one value, so that it may stand before a positional
// argument.
void add_set_option(CLI::App& command, std::vector<std::string>& texts, const std::string& of_what);
// Throws InputError for a text that is no KEY=VALUE.
std::vector<Override> parse_overrides(const std::vector<std::string>& texts);

// What is asked of the transport: its name (empty: the topology's default) and the overrides below
// "transport.", which are taken out of the others.
TransportChoice take_transport_choice(const std::string& name, std::vector<Override>& overrides);

}  // namespace coterie
