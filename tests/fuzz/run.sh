#!/usr/bin/env bash
# Fuzzes every reader: tests/fuzz/run.sh SECONDS [TARGET...]
#
# SECONDS go to each target; as many run side by side as there are cores. Seeds are made afresh, what
# libFuzzer adds to them is kept in build/fuzz/corpus, and an input that breaks a reader ends in
# build/fuzz/findings, from where `coterie_fuzz --target=NAME FILE` repeats it. Exit code 4: something
# was found.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
seconds=$1
shift

build=build/fuzz
if [ ! -f "$build/build.ninja" ]; then cmake --preset fuzz >/dev/null; fi
cmake --build --preset fuzz | { grep -E 'error|warning|FAILED' || true; }
program=$PWD/$build/bin/coterie_fuzz
seeds=$PWD/$build/seeds
rm -rf "$seeds"
python3 tests/fuzz/make_corpus.py "$seeds"
mkdir -p "$build/corpus" "$build/findings" "$build/logs"
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then mapfile -t targets < <("$program" --list); fi

export ASAN_OPTIONS=allocator_may_return_null=0:detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
fuzz() {
  local target=$1 log=$build/logs/$1.log code=0
  mkdir -p "$build/corpus/$target"
  "$program" --target="$target" "$build/corpus/$target" "$seeds/$target" \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=1024 -max_len=16384 \
    -print_final_stats=1 -verbosity=1 -artifact_prefix="$build/findings/$target-" \
    >"$log" 2>&1 </dev/null || code=$?
  printf '%-24s %10s runs %6s edges %s\n' "$target" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
    "$(grep -oE 'cov: [0-9]+' "$log" | tail -n 1 | cut -c6-)" \
    "$([ "$code" -eq 0 ] || echo "FINDING (exit code $code, $log)")"
  return "$code"
}
export -f fuzz
export build program seeds seconds
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}' || exit 4
