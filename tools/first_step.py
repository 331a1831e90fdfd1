"""Seconds from Enter to the first step done: `python tools/first_step.py laptop [KEY=VALUE ...] [--runs N]`.

Starts `blobjax train` as a user would, with no compilation cache, and waits for the line that reports step 1. The
data that a run prepares is kept between runs in the user's cache folder; remove it to time the very first run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ONE_STEP = ("duration.length=1 steps", "duration.warmup=0 steps", "evaluation.sample_tokens=1")


def seconds_to_first_step(config: str, overrides: list[str]) -> float:
    """Run one step of `config` in a folder of its own; SystemExit with the output if no step is reported."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("blobjax")), "train", config, *overrides, *ONE_STEP]
        command += [f"logging.run_dir={folder}/run"]
        environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
        began = time.perf_counter()
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        ) as process:
            assert process.stdout is not None
            seconds, lines = None, []
            for line in process.stdout:
                lines.append(line)
                if seconds is None and line.lstrip().startswith("step 1/"):
                    seconds = time.perf_counter() - began
    if seconds is None:
        raise SystemExit(f"no step was reported by {' '.join(command)}:\n{''.join(lines)}")
    return seconds


def main() -> None:
    """Print each run's seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_intermixed_args()
    for _ in range(arguments.runs):
        print(f"{seconds_to_first_step(arguments.config, arguments.overrides):.2f} s", flush=True)


if __name__ == "__main__":
    main()
