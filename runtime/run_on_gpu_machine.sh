#!/bin/bash
# Builds Coterie without SimGrid on a GPU machine, runs the GPU tests, probes the machine and
# measures the three policies on real traces, with several restarts each.
#
#   runtime/run_on_gpu_machine.sh OUT TRACES [STEP...]
#
# OUT      folder for the reports: few, concatenated files (see runtime/results/README.md)
# TRACES   folder with law.moet and intent.moet (coterie trace import ... -o law.moet)
# STEP     build test smoke fault probe measure; all of them where none is given
#
# Environment: RANKS ("2 4 8"), TOKENS ("256 1024 4096"), HIDDEN ("2048"), TRACE_NAMES ("law intent"),
# PLACEMENTS ("contiguous collaboration"), LAYERS ("1,13"), ITERATIONS (10), RESTARTS (3), FIRST_START
# (1), MAX_SECONDS (of the measurements), PROBE_RESTARTS (3), PROBE_BYTES (64 MiB), MACHINE (a name),
# PROBE_PARTS (all; communication,notify,kernels,expert_mlp,overlap), ARCH (native), JOBS, BUILD (build/gpu), DRY_RUN (1: plans and exchanges on the CPU, no figures).
#
# Passed to CMake where set: COTERIE_CUTLASS_DIR (the folder that holds CUTLASS's include/, for the expert MLP)
# and XXHASH_INCLUDE_DIR.
#
# A machine with N GPUs on NVLink, one per rank:
#   RANKS=N PROBE_BYTES=268435456 HIDDEN="2048 7168" TOKENS="1024 4096 16384" MACHINE=h200_nvlink \
#     PLACEMENTS="contiguous load_balanced collaboration collaboration_refined" \
#     runtime/run_on_gpu_machine.sh OUT TRACES build smoke probe measure
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(realpath -m "$1"); TRACES=$(realpath "$2"); shift 2
STEPS=${*:-build test smoke fault probe measure}
RANKS=${RANKS:-2 4 8}; TOKENS=${TOKENS:-256 1024 4096}; RESTARTS=${RESTARTS:-3}
TRACE_NAMES=${TRACE_NAMES:-law intent}; LAYERS=${LAYERS:-1,13}; ITERATIONS=${ITERATIONS:-10}
HIDDEN=${HIDDEN:-2048}; PLACEMENTS=${PLACEMENTS:-contiguous collaboration}
PROBE_BYTES=${PROBE_BYTES:-67108864}; PROBE_RESTARTS=${PROBE_RESTARTS:-3}; FIRST_START=${FIRST_START:-1}; MAX_SECONDS=${MAX_SECONDS:-3600}
MACHINE=${MACHINE:-$(hostname)}
BUILD=${BUILD:-build/gpu}; JOBS=${JOBS:-$(nproc)}; ARCH=${ARCH:-native}
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT"
runtime=$BUILD/bin/coterie-runtime

# NCCL from the system, or from the Python package that PyTorch brings.
find_nccl() {
  [ -e /usr/include/nccl.h ] || [ -e /usr/local/cuda/include/nccl.h ] && return
  local root
  root=$(python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0])' 2>/dev/null) || return 0
  echo "-DNCCL_INCLUDE_DIR=$root/include -DNCCL_LIBRARY=$root/lib/libnccl.so.2"
}

# An experiment: ranks, tokens per rank, trace, hidden size. The ranks form two nodes, so that the hierarchical
# policy has two levels to use; the links are those that the probe found, where it has run.
experiment() {
  local topology="extends: star, gpus_per_node: $(($1 / 2)), scale_up: {kind: socket, bandwidth: 4 GB/s, latency: 10 us}"
  if [ -e "$OUT/topology_ep$1.yaml" ]; then
    topology="extends: $OUT/topology_ep$1.yaml, nodes: 2, gpus_per_node: $(($1 / 2)), scale_up: {nodes_per_domain: 2}"
  fi
  cat <<YAML
schema_version: 1
topology: {$topology}
model: {extends: deepseek_v2_lite, hidden: ${4:-2048}}
trace: {file: $TRACES/$3.moet, train: even, eval: odd}
ranks: $1
tokens_per_rank: $2
layers: [$LAYERS]
payload: {dispatch: bf16, combine: bf16}
runs:
YAML
  local placement policy suffix
  for placement in $PLACEMENTS; do
    suffix=-$placement; [ "$placement" = contiguous ] && suffix=
    for policy in standard dedup hierarchical; do
      echo "  - {name: $policy$suffix, placement: $placement, dispatch: $policy}"
    done
  done
}

nothing_left() {
  local left=0 name
  # One name at a time: pgrep matches nothing with a pattern of more than 15 characters.
  for name in coterie-runtime coterie-mps nvidia-cuda-mps; do pgrep -lx "$name" && left=1; done
  if [ $left = 1 ] || ls -d "${TMPDIR:-/tmp}"/coterie-mps-* 2>/dev/null; then
    echo "LEFT BEHIND: the above"
    return 1
  fi
}

step_build() {
  # shellcheck disable=SC2046
  cmake --preset no-sim -B "$BUILD" -DCMAKE_CUDA_ARCHITECTURES="$ARCH" $(find_nccl) \
    ${COTERIE_CUTLASS_DIR:+-DCOTERIE_CUTLASS_DIR="$COTERIE_CUTLASS_DIR"} \
    ${XXHASH_INCLUDE_DIR:+-DXXHASH_INCLUDE_DIR="$XXHASH_INCLUDE_DIR"} &&
    cmake --build "$BUILD" -j"$JOBS"
}

# The GPU tests one at a time: each brings several ranks and its own MPS daemon.
step_test() {
  ctest --test-dir "$BUILD" -R '^(Program|.*Faults|ControlGroup|Environment|Layout|Measure|Probe|Reference)' \
    --output-on-failure -j"$JOBS" | tail -40 &&
    ctest --test-dir "$BUILD" -R '^Gpu' --output-on-failure | tail -40
}

step_smoke() {
  experiment 2 64 law >"$WORK/e.yaml"
  "$runtime" launch --ranks 2 -- run "$WORK/e.yaml" -o "$WORK/smoke" --layers 1 --iterations 3 --warmup 1
  experiment 4 64 law >"$WORK/e.yaml"
  "$runtime" launch --ranks 4 -- run "$WORK/e.yaml" -o "$WORK/smoke" --layers 1 --iterations 3 --warmup 1 \
    --set payload.dispatch=fp8
  nothing_left
}

# Ranks killed, stopped and hung at every stage of a run on the GPU.
step_fault() {
  experiment 4 64 law >"$WORK/e.yaml"
  local point action start code
  for point in rendezvous init dispatch combine warm-up in-flight report; do
    for action in kill stop hang; do
      # Stopped and hung ranks cost their deadline: at the stages that NCCL takes part in.
      [[ $action != kill && ! $point =~ ^(init|dispatch|in-flight)$ ]] && continue
      start=$SECONDS; code=0
      COTERIE_FAULT=2:$point:$action timeout 60 "$runtime" launch --ranks 4 -- run "$WORK/e.yaml" \
        -o "$WORK/fault" --layers 1 --iterations 2 --warmup 1 --deadline 8 --silence 3 \
        2>"$WORK/err" >/dev/null || code=$?
      echo "fault $point $action: exit $code after $((SECONDS - start)) s: $(grep error "$WORK/err" | tail -1)"
      [ "$code" = 3 ] || cat "$WORK/err"
      nothing_left || true
    done
  done 2>&1 | tee "$OUT/faults.txt"
}

# Into OUT itself: an interrupted probe goes on there with the part that is missing. Each start is
# one process group; PROBE_RESTARTS more are added to what the folder holds.
step_probe() {
  local n
  for n in $RANKS; do
    local folder=$OUT/probe_ep$n
    for _ in $(seq "$PROBE_RESTARTS"); do
      "$runtime" launch --ranks "$n" -- probe -o "$folder" --append --machine "$MACHINE" \
        --max-bytes "$PROBE_BYTES" ${PROBE_PARTS:+--parts "$PROBE_PARTS"} \
        >"$WORK/probe.txt" || return 1
      cp "$folder/curves.json" "$OUT/curves_ep$n.json"
      cp "$folder/topology.yaml" "$OUT/topology_ep$n.yaml"
    done
    cat "$WORK/probe.txt"
    rm -r "$folder"
  done
}

# Starts in the outer loop: when MAX_SECONDS run out, every size has about the same number of them.
# One archive holds all reports; it is rewritten after each set, so that a lost machine costs one.
step_measure() {
  local n t trace hidden i failed=0 begin=$SECONDS
  mkdir -p "$WORK/runs"
  for i in $(seq "$FIRST_START" $((FIRST_START + RESTARTS - 1))); do
    for n in $RANKS; do
      for hidden in $HIDDEN; do
        for t in $TOKENS; do
          for trace in $TRACE_NAMES; do
            [ $((SECONDS - begin)) -ge "$MAX_SECONDS" ] && { echo "time is up at start $i"; return $failed; }
            measure "$trace" "$n" "$hidden" "$t" "$i" || failed=1
          done
        done
      done
    done
  done
  return $failed
}

# One start of one experiment: trace, ranks, hidden size, tokens per rank, start. hidden 2048, the
# model's own, does not show in the name.
measure() {
  local name=$1-ep$2-h$3-t$4-start$5 ok=0
  name=${name/-h2048/}
  experiment "$2" "$4" "$1" "$3" >"$WORK/$name.yaml"
  "$runtime" launch --ranks "$2" -- run "$WORK/$name.yaml" -o "$WORK/runs/$name" \
    --iterations "$ITERATIONS" --warmup 2 --check-tokens 2 ${DRY_RUN:+--dry-run} 2>"$WORK/err" |
    sed "s/^/$name  /" | grep -v -- --- || { cat "$WORK/err"; ok=1; }
  rm -f "$WORK/runs/$name"/timeline-[!d]*.json  # one timeline says enough
  tar -C "$WORK" -czf "$OUT/runs$FIRST_START.tar.gz" runs
  return $ok
}

failed=0
for step in $STEPS; do
  echo "== $step ($(date +%T))"
  "step_$step" || { echo "== $step FAILED"; failed=1; }
done
nothing_left && echo "no process and no folder left behind"
exit $failed
