"""A run on a Ray cluster, with Ray Train's JaxTrainer:

    python launch/ray_train.py --workers 2 --gpus 8 -- models/1b logging.run_dir=/shared/runs/on-ray
    python launch/ray_train.py --workers 4 --tpu v6e --topology 4x4 -- models/llama3-8b logging.run_dir=/shared/runs/tpu

Ray decides where workers run, starts them and starts them again; what each of them runs is `blobjax train`, in a
process of its own with its place in the environment, so that whatever ends a run ends it as it does everywhere. When a
worker or its node dies, Ray ends the others and starts all again, at most --failures times, and the run resumes. Ray
does not tell workers to stop, it kills them: what came after the newest checkpoint is computed again. The exit code is
the run's where all workers ended with it: 0, 2 (bad input), or 75 (it can be resumed by the same command); and 1
otherwise. Needs `pip install 'ray[train]'` beside blobjax on all nodes.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes, one a node with all that is asked for here")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs for each")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs for each")
    parser.add_argument("--tpu", default="", help="TPU generation (v6e); one worker is one host of the slice")
    parser.add_argument("--topology", default="", help="of the slice (4x4)")
    parser.add_argument("--failures", type=int, default=10, help="how often all are started again")
    parser.add_argument("--storage", default=None, help="a directory that all nodes share, for Ray's own records")
    parser.add_argument("train", nargs="+", metavar="ARGUMENT", help="for blobjax train, after --")
    options = parser.parse_args(arguments)

    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxTrainer

    ray.init()  # the cluster it finds, or one of its own on this machine
    resources = {"CPU": options.cpus} | ({"GPU": options.gpus} if options.gpus else {})
    scaling: dict[str, Any] = {"num_workers": options.workers, "resources_per_worker": resources}
    if options.gpus:
        scaling["use_gpu"] = True
    if options.tpu:
        scaling |= {"use_tpu": True, "accelerator_type": f"TPU-{options.tpu.upper()}", "topology": options.topology}
        del scaling["resources_per_worker"]
    verdict = ray.remote(_Verdict).remote()
    trainer = JaxTrainer(
        work,
        train_loop_config={"arguments": options.train, "verdict": verdict},
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name="blobjax", storage_path=options.storage, failure_config=FailureConfig(max_failures=options.failures)
        ),
    )
    try:
        trainer.fit()
        return ray.get(verdict.worst.remote())
    except Exception as error:
        print(f"ray_train.py: {error}", file=sys.stderr)
        return 1
    finally:
        ray.shutdown()


def work(config: dict[str, Any]) -> None:
    """What each worker does: runs its process of the run, and fails if that does."""
    from ray import train

    context = train.get_context()
    count, rank = context.get_world_size(), context.get_world_rank()
    place = {
        "JAX_COORDINATOR_ADDRESS": _coordinator(rank),
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(rank),
    }
    code = subprocess.call(
        [sys.executable, "-m", "blobjax.cli", "train", *config["arguments"]],
        env={**os.environ, **place},
        preexec_fn=_die_with_the_worker,
    )
    if code not in (0, 2, 75):
        raise RuntimeError(f"process {rank} ended with exit code {code}")
    config["verdict"].note.remote(code)


class _Verdict:
    """Where workers leave the exit codes that are no failures: Ray itself has one for failures only."""

    def __init__(self) -> None:
        self._codes = [0]

    def note(self, code: int) -> None:
        self._codes.append(code)

    def worst(self) -> int:
        return max(self._codes, key=(0, 75, 2).index)


def _die_with_the_worker() -> None:
    """Linux kills this process when the one that started it is gone; else it would train on beside its successor."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _coordinator(rank: int) -> str:
    """Process 0's address, on which it found a free port; the same on all."""
    from ray.train.collective import broadcast_from_rank_zero

    mine = None
    if rank == 0:
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            mine = f"{host}:{probe.getsockname()[1]}"
    return broadcast_from_rank_zero(mine)


if __name__ == "__main__":
    sys.exit(main())
