"""What a process runs instead of `blobjax`: storage fails on process 1 only, by JAX_PROCESS_ID.

python -m tests.checkpointing.storage_trouble probe|write|read COMMAND…
"""

import os
import resource
import sys

from blobjax import cli
from blobjax.checkpointing import files as checkpoint_files


def main() -> None:
    trouble, sys.argv = sys.argv[1], ["blobjax", *sys.argv[2:]]
    if os.environ["JAX_PROCESS_ID"] == "1":
        if trouble == "probe":
            checkpoint_files.probe = lambda checkpoints: f"{checkpoints} cannot be written: Input/output error"
        elif trouble == "write":  # a few bytes can be written, a checkpoint cannot
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        else:
            checkpoint_files.check_kinds = _damaged
    cli.main()


def _damaged(folder: object) -> None:
    if str(folder).endswith("/8"):
        raise checkpoint_files.BadCheckpointError("a bit fell over on the way to this host")


if __name__ == "__main__":
    main()
