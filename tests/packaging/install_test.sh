#!/usr/bin/env bash
# install_test.sh CMAKE BUILD_FOLDER SOURCE_FOLDER: what a user of the installed project does.
set -euo pipefail
cmake=$1 build=$2 source=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
prefix=$folder/prefix
fail() { echo "FAILED: $*" >&2; exit 1; }

if grep -q '^COTERIE_SANITIZE:BOOL=ON' "$build/CMakeCache.txt"; then
  echo "skipped: a program of one's own would need the sanitizers too"
  exit 77
fi
"$cmake" --install "$build" --prefix "$prefix" >"$folder/install.log" || { cat "$folder/install.log"; exit 1; }

# The version is the project's, and every line that is promised is there.
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:STATIC=//p' "$build/CMakeCache.txt")
"$prefix/bin/coterie" --version >"$folder/version"
for line in "^coterie $version (commit ..*)$" '^engines: simgrid, flow, bound$' '^SimGrid: 3\.' '^CUDA, NCCL: '; do
  grep -q "$line" "$folder/version" || fail "--version has no line $line: $(cat "$folder/version")"
done

# A man page per command, whose text is the command's help.
commands=$("$prefix/bin/coterie" --help | sed -n '/^Subcommands:/,$s/^  \([a-z][a-z]*\) .*/\1/p')
[ "$(wc -w <<<"$commands")" -ge 10 ] || fail "found the commands: $commands"
for command in $commands; do
  page=$(find "$prefix" -name "coterie-$command.1")
  [ -n "$page" ] || fail "no man page of $command"
done
for command in trace-import topology-show calibrate-fit; do
  page=$(find "$prefix" -name "coterie-$command.1")
  [ -n "$page" ] || fail "no man page of $command"
done
page=$(find "$prefix" -name coterie-simulate.1)
grep -q 'Folder for results.json' "$page" || fail "coterie-simulate.1 lacks the help of --output"

# bash completes commands and options.
completions() {
  bash -c "source '$prefix/share/bash-completion/completions/coterie'; COMP_WORDS=(\"\$@\")
    COMP_CWORD=\$((\${#COMP_WORDS[@]} - 1)); _coterie '$prefix/bin/coterie' \"\${COMP_WORDS[COMP_CWORD]}\"
    printf '%s\n' \"\${COMPREPLY[@]}\"" - "$@"
}
[ "$(completions coterie simul)" = simulate ] || fail "coterie simul<TAB> gave $(completions coterie simul)"
[ "$(completions coterie trace imp)" = import ] || fail "trace imp<TAB> gave $(completions coterie trace imp)"
completions coterie simulate --no-t | grep -qx -- --no-timelines || fail "simulate --no-t<TAB> lacks --no-timelines"

if command -v zsh >/dev/null; then
  for offer in "coterie simul=simulate" "coterie trace imp=import" "coterie simulate --no-t=--no-timelines"; do
    rm -f "$prefix/offered"
    timeout 60 zsh -f "$source/tests/packaging/complete.zsh" "$prefix/share/zsh/vendor-completions" "$prefix/bin" \
      "${offer%=*}" "$prefix/offered" >/dev/null 2>&1 || true
    grep -qx -- "${offer##*=}" "$prefix/offered" || fail "zsh: ${offer%=*}<TAB> lacks ${offer##*=}"
  done
fi

# The example links the library, and says what the program says.
"$cmake" -S "$prefix/share/doc/coterie/example" -B "$folder/example" -DCMAKE_PREFIX_PATH="$prefix" \
  -DCMAKE_CXX_FLAGS=-Werror >"$folder/log" 2>&1 || { cat "$folder/log"; fail "find_package(coterie)"; }
"$cmake" --build "$folder/example" >"$folder/log" 2>&1 || { cat "$folder/log"; fail "the example does not build"; }
experiment=$prefix/share/coterie/examples/quickstart.yaml
"$folder/example/placement_gain" "$experiment" >"$folder/gains"
"$prefix/bin/coterie" simulate "$experiment" -o "$folder/out" --no-timelines --json >"$folder/results.json"
[ "$(grep -c x "$folder/gains")" -eq "$(grep -c '^  - {name:' "$experiment")" ] || fail "runs: $(cat "$folder/gains")"
# results.csv has a line per run and layer with the layer time in seconds, as the library gives it.
awk -F, 'NR == 1 { for (i = 1; i <= NF; ++i) column[$i] = i; next }
         { sum[$column["run"]] += $column["layer_time_s"]; ++n[$column["run"]] }
         END { for (run in sum) printf "%s %.1f\n", run, sum[run] / n[run] * 1e6 }' "$folder/out/results.csv" |
  sort >"$folder/expected"
awk '{ print $1, $2 }' "$folder/gains" | sort | diff "$folder/expected" - || fail "the library and the program differ"
echo "passed"
