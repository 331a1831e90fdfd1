#!/bin/bash
# A run under Open MPI's mpirun, one process a host by default:
#
#     launch/mpi.sh --host a:1,b:1 -- models/1b name=on-mpi
#     launch/mpi.sh -n 2 -- laptop name=two-here                      # two processes on this machine
#
# What stands before `--` is for mpirun, what stands behind it for `blobjax train`. Process 0 is on the first host; give
# COORDINATOR=HOST:PORT if the others reach it under another name. Told to stop (Ctrl-C, or SIGTERM or SIGHUP
# to this script) all save at the same step. The exit code is that of the run: 75 can be resumed by the same command.
set -u

options=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
  options+=("$1")
  shift
done
if [ $# -lt 2 ]; then
  echo "mpi.sh: give mpirun's options, then --, then what blobjax train is to train" >&2
  exit 2
fi
shift

export BLOBJAX=${BLOBJAX:-blobjax}
if [ -z "${COORDINATOR:-}" ]; then
  # Whatever names the hosts: mpirun is asked for the one on which it starts rank 0.
  # shellcheck disable=SC2016  # each process's own variable
  host=$(mpirun "${options[@]}" sh -c '[ "$OMPI_COMM_WORLD_RANK" != 0 ] || hostname' | head -n 1)
  if [ -z "$host" ]; then
    echo "mpi.sh: mpirun did not say on which host rank 0 is; it stands above why, or give COORDINATOR=HOST:PORT" >&2
    exit 1
  fi
  COORDINATOR=$host:$((61440 + $$ % 4096))
fi
export JAX_COORDINATOR_ADDRESS=$COORDINATOR

# A log file gets plain lines: rank 0 has a terminal of mpirun's making, whatever mpirun itself writes to.
[ -t 1 ] || export TTY_COMPATIBLE=0

# mpirun told to stop kills its processes after a second. What it passes on, and lets them take their time over, is
# SIGUSR1, to a process's children too: so this script takes SIGTERM, SIGHUP and Ctrl-C in its place, and the shell
# around each process, which itself is deaf to SIGUSR1, gives it a SIGTERM again.
# Open MPI 4 and 5 both tell each process its rank and how many there are; jax itself finds only 4's.
# shellcheck disable=SC2016  # each process's own variables
setsid mpirun "${options[@]}" -x BLOBJAX -x JAX_COORDINATOR_ADDRESS ${TTY_COMPATIBLE+-x TTY_COMPATIBLE} bash -c '
  trap "kill -TERM \$run" USR1
  export JAX_NUM_PROCESSES=$OMPI_COMM_WORLD_SIZE JAX_PROCESS_ID=$OMPI_COMM_WORLD_RANK
  (trap "" USR1; exec $BLOBJAX train "$@") &
  run=$!
  while kill -0 "$run" 2>/dev/null; do wait "$run"; done
  wait "$run"' train "$@" </dev/null &
mpirun=$!
trap 'kill -USR1 "$mpirun"' TERM INT HUP
while kill -0 "$mpirun" 2>/dev/null; do wait "$mpirun"; done
wait "$mpirun"
