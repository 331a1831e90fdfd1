"""Draws a run's training loss and held-out bits per byte, as in the README.

python tools/plot_run.py runs/laptop docs/images/laptop.png      (needs the extra `plot`)
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from blobjax.processes import streams
from blobjax.runs.directory import RunDirectory, read_jsonl


def main() -> int:
    streams.open_standard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory")
    parser.add_argument("picture", help="the PNG or SVG to write")
    arguments = parser.parse_args()
    lines = list(read_jsonl(RunDirectory(arguments.run).metrics))
    if not lines:
        print(f"{arguments.run} has no metrics.jsonl with lines in it", file=sys.stderr)
        return 2
    try:
        import matplotlib
    except ImportError:
        print("drawing needs the extra: pip install 'blobjax[plot]'", file=sys.stderr)
        return 2
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    training = [(line["tokens"] / 1e6, line["bits_per_byte"]) for line in lines if "bits_per_byte" in line]
    steps, tokens = zip(*((line["step"], line["tokens"] / 1e6) for line in lines if "tokens" in line), strict=True)
    held_out: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        for name, value in line.items():
            if name.startswith("eval/") and name.endswith("/bits_per_byte"):
                held_out[name.split("/")[1]].append((np.interp(line["step"], steps, tokens), value))

    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axes.plot(*zip(*training, strict=True), color="0.7", linewidth=0.8, label="training mixture")
    for domain, points in sorted(held_out.items()):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=f"held-out {domain}")
    axes.set(xlabel="million tokens", ylabel="bits per byte", ylim=(1.5, 5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    Path(arguments.picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, dpi=130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
