"""Host memory that each save keeps: `python tools/save_memory.py [--saves N] [--trace]`.

Saves a tiny state again and again through the Checkpointer that a run uses, in one process. For each tenth of the way
it prints what the process holds (resident memory, KiB), and what of it malloc has handed out (the rest is free memory
that malloc keeps). At the end it prints the slope of both, KiB a save, from a least-squares line through a sample after
every save of the last nine tenths: buffers come and go by megabytes, which the line averages over. With --trace also
the lines of Python that hold the most new memory.
"""

import argparse
import ctypes
import gc
import json
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np


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


def slope(at: np.ndarray, held: np.ndarray) -> float:
    """What `held` gains for each unit of `at`, of a least-squares line."""
    return float(np.polyfit(at, held, 1)[0])


def main() -> None:
    """Save, and print a line for each tenth of the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=400, help="at least 20")
    parser.add_argument("--trace", action="store_true", help="slower: also name the lines that hold new memory")
    arguments = parser.parse_args()
    if arguments.saves < 20:
        parser.error("--saves must be at least 20: a line needs points")

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
        before, samples = None, []
        for step in range(1, arguments.saves + 1):
            checkpointer.save(state, step, step, "text")
            checkpointer.wait()
            if step >= tenth:
                samples.append((step, resident_kib(), handed_out_kib()))
            if step % tenth == 0:
                gc.collect()
                line = {"saves": step, "rss_kib": resident_kib(), "handed_out_kib": handed_out_kib()}
                print(json.dumps(line), flush=True)
                if arguments.trace and before is None:
                    tracemalloc.start(1)
                    before = tracemalloc.take_snapshot()
        at, *held = np.array(samples, float).T
        rss, handed_out = (round(slope(at, each), 3) for each in held)
        print(json.dumps({"rss_kib_per_save": rss, "handed_out_kib_per_save": handed_out}), flush=True)
        if before is not None:
            new = tracemalloc.take_snapshot().compare_to(before, "lineno")
            for found in new[:20]:
                print(f"{found.size_diff / (arguments.saves - tenth):10.1f} B per save  {found.traceback}")
        checkpointer.close()


if __name__ == "__main__":
    main()
