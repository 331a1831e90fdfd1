"""Measures what a switch costs: step times of a config without and with overrides, in alternation, as a ratio.

    python tools/compare.py laptop conditioning.probe_every=10
    python tools/compare.py laptop 'conditioning.guard={}' --rounds 12

Alternation is what makes the ratio fair on a machine whose speed drifts: both programs are in memory at once, and take
turns of --steps steps each, the first of every round in turn. The figure is the median of the rounds' ratios.
"""

import argparse
import json
import statistics
import sys
import time

from blobjax.config import BadInputError, load
from blobjax.processes import streams


def main() -> int:
    streams.open_standard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a path or a name in configs/")
    parser.add_argument("overrides", nargs="+", help="dotted.key=value, of the second program only")
    parser.add_argument("--both", action="append", default=[], help="dotted.key=value, of both; may be repeated")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn (default 10)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (default 10)")
    arguments = parser.parse_intermixed_args()
    try:
        configs = [load(arguments.config, [*arguments.both, *more]) for more in ([], arguments.overrides)]
        ratios, seconds = compare(configs, arguments.steps, arguments.rounds)
    except BadInputError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 2
    low, middle, high = statistics.quantiles(ratios, n=4)
    result = {"ratio": middle, "quartiles": [low, high], "seconds_per_step": seconds, "rounds": len(ratios)}
    print(json.dumps(result, indent=2))
    return 0


def compare(configs: list, steps: int, rounds: int) -> tuple[list[float], list[float]]:
    """Ratios of step times, second over first, one a round; and the median seconds of a step of each."""
    from blobjax.compute import runtime

    runtime.configure(configs[0].compute)
    import jax
    import numpy as np

    from blobjax.compute.sharding import make_layout
    from blobjax.program.program import make_program

    programs = []
    for config in configs:
        program = make_program(config, make_layout(config), config.duration.global_batch_size * config.data.seq_len)
        tokens_BT = np.random.default_rng(0).integers(1, config.model.vocab_size, program.shape_BT, dtype=np.int32)
        ones_BT = np.ones_like(tokens_BT)
        batch = {
            "tokens": tokens_BT,
            "targets": np.roll(tokens_BT, -1, axis=1),
            "segments": ones_BT,
            "positions": np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape),
            "mask": ones_BT.astype(np.float32),
            "target_bytes": ones_BT,
        }
        programs.append(
            [program.lower_train_step().compile(), program.init(), jax.device_put(batch, program.batch_sharding)]
        )

    def turn(program: list) -> float:
        step, state, batch = program
        began = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        program[1] = state
        return (time.perf_counter() - began) / steps

    for program in programs:
        turn(program)  # warm
    ratios, times = [], []
    for number in range(rounds):
        order = [0, 1] if number % 2 == 0 else [1, 0]
        taken = {which: turn(programs[which]) for which in order}
        times.append([taken[0], taken[1]])
        ratios.append(taken[1] / taken[0])
    return ratios, [statistics.median(column) for column in zip(*times, strict=True)]


if __name__ == "__main__":
    raise SystemExit(main())
