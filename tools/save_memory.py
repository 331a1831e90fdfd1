"""Host memory that each save keeps: `python tools/save_memory.py [--saves N] [--trace]`.

Saves a tiny state again and again through the Checkpointer that a run uses, in one process, and prints what the process
holds (resident memory, KiB), what it gained per save since the first tenth of the saves, and what of it malloc has
handed out (the rest is free memory that malloc keeps). With --trace also the lines of Python that hold the most new
memory.
"""

import argparse
import ctypes
import gc
import json
import tempfile
import tracemalloc
from pathlib import Path


def resident_kib() -> int:
    """What this process holds now, in KiB; Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise SystemExit("no VmRSS in /proc/self/status: this needs Linux")


class _Mallinfo(ctypes.Structure):
    """What mallinfo2(3) of glibc 2.33 and newer returns, summed over all arenas."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def handed_out_kib() -> int:
    """Memory that malloc has handed out and not got back, in KiB."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Mallinfo
    found = ask()
    return (found.uordblks + found.hblkhd) // 1024


def main() -> None:
    """Save, and print a line for each tenth of the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=400)
    parser.add_argument("--trace", action="store_true", help="slower: also name the lines that hold new memory")
    arguments = parser.parse_args()

    from blobjax.checkpointing.checkpointer import Checkpointer
    from blobjax.compute import runtime
    from blobjax.compute.sharding import make_layout
    from blobjax.config import load
    from blobjax.program.program import make_program

    small = "model={vocab_size: 256, n_layers: 2, d_model: 64, n_heads: 4, d_ff: 128, activation: swiglu}"
    config = load("laptop", [small, "data.seq_len=64", "checkpoint.keep=2"])
    runtime.configure(config.compute)
    program = make_program(config, make_layout(config), tokens_per_epoch=10_000)
    state = program.init()
    tenth = max(arguments.saves // 10, 1)
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(Path(folder), config.checkpoint)
        first = before = None
        for step in range(1, arguments.saves + 1):
            checkpointer.save(state, step, step, "text")
            checkpointer.wait()
            if step % tenth:
                continue
            gc.collect()
            held = resident_kib()
            if first is None:
                first = (step, held)
                if arguments.trace:
                    tracemalloc.start(1)
                    before = tracemalloc.take_snapshot()
            gained = (held - first[1]) / max(step - first[0], 1)
            line = {
                "saves": step,
                "rss_kib": held,
                "kib_per_save": round(gained, 2),
                "handed_out_kib": handed_out_kib(),
            }
            print(json.dumps(line), flush=True)
        if before is not None:
            new = tracemalloc.take_snapshot().compare_to(before, "lineno")
            saves = arguments.saves - first[0]
            for line in new[:20]:
                print(f"{line.size_diff / saves:10.1f} B per save  {line.traceback}")
        checkpointer.close()


if __name__ == "__main__":
    main()
