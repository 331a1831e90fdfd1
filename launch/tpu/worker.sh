#!/bin/bash
# What each worker of a TPU slice runs (train.sh sends it there): finds its place among all workers of all slices, and
# trains. The place is read from the VM's metadata, where `blobjax train` by itself does not look, since a laptop would
# wait for it. The numbering is the one jax has: slice after slice.
set -euo pipefail

metadata() {
  local server=${GCE_METADATA_IP:-metadata.google.internal}
  curl -sSf -H 'Metadata-Flavor: Google' "http://$server/computeMetadata/v1/instance/attributes/$1"
}
# Of several slices only, lines such as MEGASCALE_NUM_SLICES: '2'
of_slices() {
  metadata tpu-env | sed -n "s/^$1: *'\(.*\)'/\1/p"
}

# NAME:ID:ADDRESS or ADDRESS of each worker of this slice, between commas.
IFS=, read -ra workers <<<"$(metadata worker-network-endpoints)"
slices=$(of_slices MEGASCALE_NUM_SLICES)
slice=$(of_slices MEGASCALE_SLICE_ID)
coordinator=$(of_slices MEGASCALE_COORDINATOR_ADDRESS)
coordinator=${coordinator%%:*}

export JAX_COORDINATOR_ADDRESS=${coordinator:-${workers[0]##*:}}:8476
export JAX_NUM_PROCESSES=$((${#workers[@]} * ${slices:-1}))
# On its own, so that a question without an answer ends the script; 08 is not octal.
number=$(metadata agent-worker-number)
export JAX_PROCESS_ID=$((${#workers[@]} * ${slice:-0} + 10#$number))
exec "${BLOBJAX:-blobjax}" train "$@"
