#!/usr/bin/env python3
"""The start of `coterie`: CPU time of tiny commands, against the same command in a process that loads
SimGrid, MPI and Ceres at once (by LD_PRELOAD of the program's own modules), as version 0.1 did.

    tests/bench/bench_start.py build/release [REPETITIONS]
"""

import os
import resource
import statistics
import subprocess
import sys

MODULES = ["coterie_mpi", "coterie_simgrid", "coterie_ceres"]
COMMANDS = [["--help"], ["--version"], ["model", "list"], ["topology", "list"]]


def cpu_ms(command, environment):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main():
    build = sys.argv[1]
    repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 15
    modules = [os.path.join(build, "lib", "coterie", name + ".so") for name in MODULES]
    eager = {**os.environ, "LD_PRELOAD": ":".join(modules)}
    print(f"CPU ms, median of {repetitions} (least to most)")
    print(f"{'command':24}{'modules at once':>26}{'as it is':>26}{'ratio':>8}")
    for arguments in COMMANDS:
        command = [os.path.join(build, "bin", "coterie"), *arguments]
        times = {"eager": [], "lazy": []}
        for _ in range(repetitions):
            times["eager"].append(cpu_ms(command, eager))
            times["lazy"].append(cpu_ms(command, os.environ))
        cells = []
        for name in ("eager", "lazy"):
            values = times[name]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        ratio = statistics.median(times["eager"]) / statistics.median(times["lazy"])
        print(f"{' '.join(arguments):24}{cells[0]:>26}{cells[1]:>26}{ratio:>7.1f}x")


if __name__ == "__main__":
    main()
