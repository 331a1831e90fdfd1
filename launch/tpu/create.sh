#!/bin/bash
# Asks for Cloud TPU capacity, one slice or several, through a queued resource; it comes when there is room.
#
#     launch/tpu/create.sh NAME ACCELERATOR ZONE [SLICES] [gcloud options …]
#     launch/tpu/create.sh mine v6e-64 us-east5-b
#     launch/tpu/create.sh mine v6e-64 us-east5-b 4 --spot
#
# The project is gcloud's. Further words go to gcloud as they are. `gcloud compute tpus queued-resources list --zone ZONE`
# says how it stands; `… delete NAME --zone ZONE --force` gives it back.
set -euo pipefail

if [ $# -lt 3 ]; then
  echo "create.sh: give NAME ACCELERATOR ZONE [SLICES] [gcloud options …]" >&2
  exit 2
fi
name=$1 accelerator=$2 zone=$3
shift 3
slices=1
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  slices=$1
  shift
fi

case $accelerator in
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *)
    echo "create.sh: $accelerator is not v4-N, v5litepod-N, v5p-N or v6e-N" >&2
    exit 2
    ;;
esac

many=(--node-id "$name")
if [ "$slices" -gt 1 ]; then
  many=(--node-prefix "$name" --node-count "$slices")
fi

exec gcloud compute tpus queued-resources create "$name" "${many[@]}" \
  --accelerator-type "$accelerator" --runtime-version "$runtime" --zone "$zone" "$@"
