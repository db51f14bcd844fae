// Simulates an experiment with the installed library and says what each of its runs gains over the
// first one. Layer times are means over the experiment's layers.
#include <cstdio>
#include <exception>

#include "core/error.hpp"
#include "sim/experiment/simulate.hpp"
#include "workloads/experiment.hpp"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s EXPERIMENT.yaml\n", argv[0]);
    return 2;
  }
  try {
    const coterie::Experiment experiment = coterie::load_experiment(argv[1], {});
    double first = 0.0;
    for (const coterie::SimulatedRun& run : coterie::simulate(experiment, {})) {
      const coterie::RunReport& report = run.report;
      if (report.layers.empty()) continue;  // report.failure says why
      const double seconds = report.time_s() / static_cast<double>(report.layers.size());
      if (first == 0.0) first = seconds;
      std::printf("%-20s %8.1f us  %5.2fx\n", report.name.c_str(), seconds * 1e6, first / seconds);
    }
    return 0;
  } catch (const coterie::InputError& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
