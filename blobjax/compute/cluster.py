"""Which of several tasks of a cluster this process is, where nobody has said so."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

from blobjax.config.errors import BadInputError


@dataclass(frozen=True)
class Place:
    """One of several processes.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      local_device_ids: this host's devices that are its own; None: all that it sees.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None


def find_place(timeout_seconds: int) -> Place | None:
    """This process's place among the tasks of Slurm, Open MPI 4, a TPU pod or an indexed Kubernetes job.

    None where it is alone: only environment variables are read to find that out, since a laptop must not wait for a
    metadata server, and a job of one task must not start a coordinator.

    Raises:
      BadInputError: it is one of several, which jax cannot make one run of: each would train by itself, into the same
        directory.
    """
    slurm = "SLURM_STEP_NODELIST" in os.environ and _count("SLURM_STEP_NUM_TASKS") > 1
    open_mpi = "OMPI_MCA_orte_hnp_uri" in os.environ and _count("OMPI_COMM_WORLD_SIZE") > 1
    tpu_pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or _count("MEGASCALE_NUM_SLICES") > 1
    # Jax asks the Kubernetes API how many pods the job has, for which it needs the client library.
    indexed_job = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    if slurm or open_mpi or tpu_pod or (indexed_job and importlib.util.find_spec("kubernetes") is not None):
        return _ask_jax(timeout_seconds, slurm)
    # (Pod 0 of an indexed job may be its only one; the others stop here, for all to see.)
    later_pod = indexed_job and os.environ["JOB_COMPLETION_INDEX"] != "0"
    for launcher, several in (("Open MPI", _count("OMPI_COMM_WORLD_SIZE") > 1), ("Kubernetes", later_pod)):
        if several:
            raise BadInputError(
                f"this looks like one of several {launcher} tasks, which jax cannot detect here; give --coordinator "
                "HOST:PORT, --num-processes N and --process-id I (--num-processes 1 for a run of its own)"
            )
    return None


def _ask_jax(timeout_seconds: int, slurm: bool) -> Place | None:
    # jax.distributed.initialize finds these too, but then listens on all of the host's addresses, and takes one device
    # a task. It has no public function that only finds them.
    from jax._src.clusters import ClusterEnv

    coordinator, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, timeout_seconds
    )
    if coordinator is None or count is None or index is None:
        raise BadInputError(
            "this looks like one of several tasks of a cluster, which jax cannot detect here; give --coordinator "
            "HOST:PORT, --num-processes N and --process-id I"
        )
    if slurm and _tasks_on_this_node() == 1:
        devices = None  # one task for all of the node's devices
    return Place(coordinator, count, index, devices)


def _tasks_on_this_node() -> int:
    """Of the Slurm step: its SLURM_STEP_TASKS_PER_NODE reads `8(x2),4`, a number for each node in their order."""
    counts: list[int] = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        tasks, _, times = part.partition("(x")
        if tasks.isdigit():
            counts += [int(tasks)] * int(times.rstrip(")") or 1)
    node = os.environ.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else 0


def _count(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else 1
