#!/bin/bash
# Asks for Cloud TPUs in a queue, one slice or several (multislice), and waits until they are there:
#
#     ZONE=us-east5-a launch/tpu/create.sh NAME v6e-16                      # one slice of 16 chips
#     ZONE=us-east5-a SPOT=1 launch/tpu/create.sh NAME v6e-16 2             # two of them, on spot capacity
#
# Then launch/tpu/train.sh NAME CONFIG …, and in the end
#
#     gcloud compute tpus queued-resources delete NAME --zone=us-east5-a --force
#
# RUNTIME is the image of the TPU VMs; what fits is listed by `gcloud compute tpus tpu-vm versions list`. What stands
# behind the number of slices is passed on (--network=…, --service-account=…).
set -euo pipefail

if [ $# -lt 2 ] || [ -z "${ZONE:-}" ]; then
  echo "create.sh: give ZONE=… in the environment, then a name, a type such as v6e-16, and how many slices" >&2
  exit 2
fi
name=$1 type=$2 slices=${3:-1}
shift $(($# < 3 ? $# : 3))
if ! [[ $slices =~ ^[1-9][0-9]*$ ]]; then
  echo "create.sh: '$slices' is not a number of slices" >&2
  exit 2
fi

case $type in
  v6e-*) image=v2-alpha-tpuv6e ;;
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  *) image=tpu-ubuntu2204-base ;;
esac

options=(--zone="$ZONE" --accelerator-type="$type" --runtime-version="${RUNTIME:-$image}")
if [ "$slices" -eq 1 ]; then
  options+=(--node-id="$name")
else
  options+=(--node-count="$slices" --node-prefix="$name")
fi
[ -z "${SPOT:-}" ] || options+=(--spot)

gcloud compute tpus queued-resources create "$name" "${options[@]}" "$@"

while true; do
  state=$(gcloud compute tpus queued-resources describe "$name" --zone="$ZONE" --format="value(state.state)")
  echo "create.sh: $name is $state"
  case $state in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING) exit 1 ;;
  esac
  sleep "${POLL_SECONDS:-30}"
done
