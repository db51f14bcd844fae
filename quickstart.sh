#!/usr/bin/env bash
# Sets Coterie up on Debian 12.
#
#   ./quickstart.sh          install what is needed, build the programs, run the bundled example
#   ./quickstart.sh test     install what is needed, build, pass the tests
#   ./quickstart.sh deps     only install
#   ./quickstart.sh notebooks   build, then execute the notebooks in a virtual environment
#
# The first command builds the simulator, and coterie-runtime too where CUDA and a GPU are found.
# PRESET=name picks another CMake preset (default: release); JOBS=n limits the build's parallelism.
set -euo pipefail
cd "$(dirname "$0")"
preset=${PRESET:-release}
jobs=${JOBS:-$(nproc)}

packages=(
  g++ cmake ninja-build pkg-config ccache git ca-certificates
  libboost-graph-dev libyaml-cpp-dev libprotobuf-dev protobuf-compiler zlib1g-dev libzip-dev libdeflate-dev
  libpugixml-dev
  libfmt-dev libspdlog-dev nlohmann-json3-dev libxxhash-dev libcli11-dev
  libsimgrid-dev libopenmpi-dev openmpi-bin libceres-dev
  libjs-chart.js
  libgtest-dev libgmock-dev
)

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }

install_packages() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "installing ${missing[*]}"
  local sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -q
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# build [TARGET]: everything, or one target (`coterie` and `programs`: no tests).
build() {
  say "building (preset $preset)"
  cmake --preset "$preset"
  cmake --build --preset "$preset" --parallel "$jobs" --target "${1:-all}"
}

# A machine without a GPU needs no kernels, which take longer to compile than the simulator.
programs() {
  if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then echo programs; else echo coterie; fi
}

run_example() {
  local out=out/quickstart
  say "simulating the bundled example"
  "build/$preset/bin/coterie" simulate workloads/examples/quickstart.yaml -o "$out"
  "build/$preset/bin/coterie" report "$out"
  say "files to look at in $out"
  ls -l "$out"
  echo "Open report.html in a browser, a timeline-*.json in https://ui.perfetto.dev."
}

run_notebooks() {
  install_packages python3 python3-venv
  [ -d .venv ] || python3 -m venv .venv
  .venv/bin/pip install -q -r notebooks/requirements.txt
  COTERIE="$PWD/build/$preset/bin/coterie" .venv/bin/python notebooks/execute.py
}

case "${1:-example}" in
  example) install_packages "${packages[@]}"; build "$(programs)"; run_example ;;
  test)
    install_packages "${packages[@]}"
    build
    say "testing"
    ctest --test-dir "build/$preset" --output-on-failure --parallel "$jobs"
    ;;
  deps) install_packages "${packages[@]}" ;;
  notebooks) install_packages "${packages[@]}"; build "$(programs)"; run_notebooks ;;
  *) sed -n '2,10p' "$0" >&2; exit 2 ;;
esac
