#!/bin/bash
# A run under Open MPI's mpirun, one process a host by default:
#
#     launch/mpi.sh --host a:1,b:1 -- models/1b name=on-mpi
#     launch/mpi.sh -n 2 -- laptop name=two-here                      # two processes on this machine
#
# What stands before `--` is for mpirun, what stands behind it for `blobjax train`. Process 0 is on the first host; give
# COORDINATOR=HOST:PORT if the others reach it under another name. The exit code is that of the run: 75 can be resumed by
# the same command.
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

# Open MPI 4 and 5 both tell each process its rank and how many there are; jax itself finds only 4's.
# shellcheck disable=SC2016  # each process's own variables
exec mpirun "${options[@]}" -x BLOBJAX -x JAX_COORDINATOR_ADDRESS bash -c '
  JAX_NUM_PROCESSES=$OMPI_COMM_WORLD_SIZE JAX_PROCESS_ID=$OMPI_COMM_WORLD_RANK exec $BLOBJAX train "$@"' train "$@"
