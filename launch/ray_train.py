"""A run as a Ray Train job: `blobjax train` on every worker, restarted by Ray when a worker dies.

    python launch/ray_train.py -n 2 --gpus 8 -- models/1b name=on-ray        # two workers with eight GPUs each
    python launch/ray_train.py -n 4 --tpu v6e 4x4 -- models/1b name=on-ray   # a slice of four hosts
    python launch/ray_train.py -n 2 --local -- laptop name=on-ray            # two CPU workers on this machine

Without --local the job joins the cluster it is started in (`ray job submit`, RAY_ADDRESS). blobjax has to be installed
on the nodes, and this folder and the run directory have to be on a file system they share.

Ray Train's JaxTrainer places the workers and watches over them; jax itself is started by `blobjax train`, in a process
of its own under each worker, as by every other launcher. When a worker or its process dies, Ray ends all of them and
starts them again, up to --failures times; a node that is taken away does not count. The run goes on from its last
checkpoint.

The exit code is that of the run. 75 (stopped early, can be resumed) and 2 (bad input) are ends for Ray too: it neither
counts nor repeats them; the same command goes on after a 75. 1: it failed more often than it may.
"""

import argparse
import ctypes
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from typing import Any

# What a run may end with without having failed: finished, bad input, stopped early.
ENDS = (0, 2, 75)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--workers", type=int, default=1, help="how many, one a node (default 1)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each worker")
    parser.add_argument("--tpu", nargs=2, metavar=("TYPE", "TOPOLOGY"), help="a TPU slice, such as v6e 4x4")
    parser.add_argument("--local", action="store_true", help="a Ray of this run's own, on this machine and loopback")
    parser.add_argument("--failures", type=int, default=3, help="how often Ray starts it again; -1: always (default 3)")
    parser.add_argument("--storage", help="where Ray keeps its own records of the job (default ~/ray_results)")
    parser.add_argument("train", nargs="+", metavar="CONFIG", help="what blobjax train is given, after --")
    options = parser.parse_args(arguments)
    if options.local:
        # Ray listens on all interfaces of a Linux machine, and on loopback where this is off, as it is on a Mac. It is
        # read when ray is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

    if importlib.util.find_spec("ray") is None:
        parser.error("Ray is not installed here: pip install 'ray[train]'")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.train.v2.jax import JaxConfig, JaxTrainer

    if options.local:
        # A CPU for each worker by Ray's count: it would wait for more than the machine has.
        ray.init(address="local", num_cpus=options.workers, include_dashboard=False)
    else:
        ray.init()
    trainer = JaxTrainer(
        work,
        train_loop_config={"train": options.train, "directory": os.getcwd()},
        # Off: with it Ray starts jax in the worker, which would hold the devices that the process under it needs.
        jax_config=JaxConfig(use_tpu=False, use_gpu=False),
        scaling_config=ScalingConfig(num_workers=options.workers, **_devices(options)),
        run_config=RunConfig(storage_path=options.storage, failure_config=FailureConfig(max_failures=options.failures)),
    )
    try:
        return trainer.fit().return_value
    except TrainingFailedError as error:
        print(f"ray_train.py: {error}", file=sys.stderr)
        return 1
    finally:
        ray.shutdown()


def _devices(options: argparse.Namespace) -> dict[str, Any]:
    """What a worker needs besides a CPU, in ScalingConfig's terms."""
    if options.tpu:
        kind, topology = options.tpu
        return {"use_tpu": True, "accelerator_type": f"TPU-{kind.upper()}", "topology": topology}
    if options.gpus:
        return {"use_gpu": True, "resources_per_worker": {"GPU": options.gpus}}
    return {}


def work(job: dict) -> int:
    """What each worker does: runs its process of the run, and tells Ray how that ended.

    Raises:
      RuntimeError: it failed, which makes Ray end the other workers and start all again.
    """
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    context = get_context()
    place = {
        "JAX_COORDINATOR_ADDRESS": broadcast_from_rank_zero(_address()),
        "JAX_NUM_PROCESSES": str(context.get_world_size()),
        "JAX_PROCESS_ID": str(context.get_world_rank()),
    }
    command = [sys.executable, "-m", "blobjax.cli", "train", *job["train"]]
    # Ray has moved the worker to a folder of its own; relative paths mean the one the job was started in.
    code = subprocess.run(
        command, env={**os.environ, **place}, cwd=job["directory"], preexec_fn=_die_with_the_worker
    ).returncode
    if code not in ENDS:
        raise RuntimeError(f"process {context.get_world_rank()} of the run ended with {code}")
    return code


def _address() -> str:
    """HOST:PORT that this worker's node can be reached at; process 0's is the one that counts."""
    import ray

    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def _die_with_the_worker() -> None:
    """Between fork and exec: a worker that is killed cannot end its process, which would hold devices and run directory
    against the next attempt. (Ray can do it, but the cluster's RAY_process_group_cleanup_enabled decides whether.)"""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
