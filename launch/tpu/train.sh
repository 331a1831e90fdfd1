#!/bin/bash
# Trains on the TPUs that create.sh got: the same command on every worker of every slice, one process a worker.
#
#     export ZONE=us-east5-a SETUP="pip install -q 'blobjax[tpu] @ …'"
#     launch/tpu/train.sh NAME models/1b name=on-tpus logging.run_dir=/mnt/runs/on-tpus
#
# SETUP, if given, is run on every worker first: installing, mounting. The run directory has to lie on a file system that
# all workers share (Filestore, not a mounted bucket).
#
# The exit code is that of the run: 75 was stopped early and is gone on with by the same command, on these TPUs or on new
# ones. (A spot slice that is taken away ends its connection, which is no 75: create.sh, then the same command.)
set -euo pipefail

if [ $# -lt 2 ] || [ -z "${ZONE:-}" ]; then
  echo "train.sh: give ZONE=… in the environment, then the queued resource, then what blobjax train is to train" >&2
  exit 2
fi
name=$1
shift

# ssh hands the remote shell one line; every word is quoted so that it arrives as it stands here.
worker="$(cat "$(dirname "$0")/worker.sh")"
command="${SETUP:+$SETUP && }bash -c $(printf '%q' "$worker") worker$(printf ' %q' "$@")"
exec gcloud compute tpus queued-resources ssh "$name" --zone="$ZONE" \
  --node=all --worker=all --batch-size=all --command="$command"
