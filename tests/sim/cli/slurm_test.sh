#!/usr/bin/env bash
# slurm_test.sh COTERIE SOURCE_FOLDER: `coterie sweep` under a real Slurm on the loopback interface,
# which this test starts with a configuration, ports and a munge key of its own, and ends.
# Skips itself (exit code 77) where Slurm and munge (Debian: slurm-wlm, munge) are not installed.
set -euo pipefail
coterie=$1 source=$2
PATH=$PATH:/usr/sbin:/sbin
for program in munged slurmctld slurmd srun sbatch scontrol; do
  command -v $program >/dev/null || { echo "skipped: $program is not installed (slurm-wlm, munge)"; exit 77; }
done
[ "$(id -u)" -eq 0 ] || { echo "skipped: slurmd starts jobs as root"; exit 77; }

folder=$(mktemp -d)
chmod 755 "$folder"
daemons=()
# Only processes that were started here are ended, by their ids.
clean_up() {
  for ((i = ${#daemons[@]} - 1; i >= 0; --i)); do kill "${daemons[i]}" 2>/dev/null || true; done
  for daemon in "${daemons[@]}"; do wait "$daemon" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap clean_up EXIT
fail() {
  echo "FAILED: $*" >&2
  tail -n 20 "$folder"/*.log >&2 || true
  exit 1
}
wait_for() {  # wait_for WHAT COMMAND...: at most half a minute
  local what=$1 i
  shift
  for ((i = 0; i < 150; ++i)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  fail "waited 30 s for $what"
}

host=$(hostname -s)
first_port=$((20000 + $$ % 20000))
mkdir -p "$folder"/{munge,state,spool}
chmod 700 "$folder/munge"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" \
  >"$folder/munged.log" 2>&1 &
daemons+=($!)
wait_for munged test -S "$folder/munge/socket"
chmod 755 "$folder/munge"

cat >"$folder/slurm.conf" <<END
ClusterName=coterie_test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$first_port
SlurmdPort=$((first_port + 1))
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=10 State=UP
END
export SLURM_CONF=$folder/slurm.conf
slurmctld -D >"$folder/slurmctld.out.log" 2>&1 &
daemons+=($!)
wait_for slurmctld scontrol ping
slurmd -D >"$folder/slurmd.out.log" 2>&1 &
daemons+=($!)
idle() { [ "$(sinfo -h -o %T)" = idle ]; }
wait_for "an idle node" idle

srun --mpi=list 2>&1 | grep -q pmix || { echo "skipped: this Slurm has no PMIx"; exit 77; }

cat >"$folder/base.yaml" <<END
schema_version: 1
topology: h100_node
model: deepseek_v2_lite
trace: {file: $source/workloads/examples/collaborating.moet, train: even, eval: odd}
ranks: 8
tokens_per_rank: 64
payload: {dispatch: bf16, combine: bf16}
engine: flow
runs:
  - {name: standard, placement: contiguous, dispatch: standard}
  - {name: placed, placement: collaboration, dispatch: dedup}
END
cat >"$folder/sweep.yaml" <<END
schema_version: 1
base: base.yaml
axes:
  - {key: ranks, values: [4, 8]}
  - {key: tokens_per_rank, values: [16, 32, 64, 128, 256, 512]}
END
cd "$folder"
"$coterie" sweep sweep.yaml -o whole >whole.log 2>&1 || fail "the sweep of one process"

# Two tasks of one step share the points; the table is that of one process, byte by byte.
timeout 120 srun --mpi=pmix -n 2 "$coterie" sweep sweep.yaml -o spread >srun.log 2>&1 || fail "srun --mpi=pmix"
cmp whole/sweep.csv spread/sweep.csv || fail "the table of two tasks differs"
for task in 0 1; do
  [ "$(wc -l <spread/points.$task.jsonl)" -gt 1 ] || fail "task $task simulated nothing"
done

# Without MPI between them the tasks would all do the same: that is refused.
timeout 120 srun --mpi=none -n 2 "$coterie" sweep sweep.yaml -o alone >none.log 2>&1 && fail "srun --mpi=none passed"
grep -q 'expected srun --mpi=pmix, or one task' none.log || fail "srun --mpi=none: $(cat none.log)"

# The batch script of the documentation.
PATH=$(dirname "$coterie"):$PATH timeout 120 sbatch --wait --nodes=1 --ntasks=2 --time=5 --output="$folder/batch.log" \
  "$source/sim/sweep/sweep.sbatch" sweep.yaml batch >sbatch.log 2>&1 || fail "sbatch"
cmp whole/sweep.csv batch/sweep.csv || fail "the table of the batch job differs"
echo "passed"
