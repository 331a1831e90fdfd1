#!/bin/bash
# Runs `blobjax train` on all hosts of a queued resource's slices at once. Who is who is found by jax: within a slice from
# the metadata server, between slices from MEGASCALE_*, which the queued resource sets.
#
#     launch/tpu/run.sh NAME ZONE [SLICES] -- models/llama3-8b logging.run_dir=gs-mount/run
#
# Give the run directory on a file system that all hosts share (a bucket mounted on each, or Filestore). The exit code is 75
# when the run was told to stop and can be resumed by the same command.
set -uo pipefail

options=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
  options+=("$1")
  shift
done
if [ "${#options[@]}" -lt 2 ] || [ $# -lt 2 ]; then
  echo "run.sh: give NAME ZONE [SLICES], then --, then what blobjax train is to train" >&2
  exit 2
fi
shift
name=${options[0]} zone=${options[1]} slices=${options[2]:-1}

install="pip install --quiet 'blobjax[tpu]'"
train="blobjax train$(printf ' %q' "$@")"

nodes=("$name")
if [ "$slices" -gt 1 ]; then
  nodes=()
  for ((slice = 0; slice < slices; slice++)); do
    nodes+=("$name-$slice")
  done
fi

pids=()
for node in "${nodes[@]}"; do
  gcloud compute tpus tpu-vm ssh "$node" --zone "$zone" --worker=all --command "$install && exec $train" &
  pids+=($!)
done

# All end with 75 together, or one fails and the others with it: the worst is that which is not 75.
code=0
for pid in "${pids[@]}"; do
  wait "$pid"
  ended=$?
  if [ "$ended" -ne 0 ] && { [ "$code" -eq 0 ] || [ "$code" -eq 75 ]; }; then
    code=$ended
  fi
done
exit "$code"
