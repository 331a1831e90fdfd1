"""Rewrites the exact expectations under tests/golden/, after a change that is meant to change them.

    python tools/refresh_golden.py configs losses

Read the diff before committing it: it is the change, as others will see it.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
GOLDEN = ROOT / "tests" / "golden"


def configs() -> None:
    """Every shipped config, resolved."""
    from blobjax.config import dump, load
    from blobjax.config.load import shipped

    for stale in (GOLDEN / "configs").rglob("*.yaml"):
        stale.unlink()
    for name in shipped():
        path = GOLDEN / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(load(name)), encoding="utf-8")


def first_losses(name: str, steps: int, *overrides: str) -> list[float]:
    """Losses of a shipped config's first steps on one device, trained as `blobjax train` would."""
    import jax

    from blobjax import data
    from blobjax.compute.sharding import make_layout
    from blobjax.config import load
    from blobjax.program.batches import global_batches
    from blobjax.program.program import make_program

    config = load(name, overrides)
    stream = data.open_stream(config, data.prepare(config))
    program = make_program(config, make_layout(config, jax.devices()[:1]), stream.tokens_per_epoch)
    train_step, state = program.lower_train_step().compile(), program.init()
    batches = global_batches(stream, 0, program.batch_sharding, program.shape_BT)
    losses = []
    for _ in range(steps):
        state, metrics = train_step(state, next(batches))
        losses.append(float(metrics["loss"]))
    return losses


def losses() -> None:
    """The laptop config's first twenty losses."""
    import jax

    path = GOLDEN / "losses" / "laptop.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    recorded = {"jax": jax.__version__, "loss": first_losses("laptop", 20)}
    path.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


KINDS = {"configs": configs, "losses": losses}


def main() -> int:
    wanted = sys.argv[1:]
    if not wanted or any(name not in KINDS for name in wanted):
        print(f"usage: python tools/refresh_golden.py {{{','.join(KINDS)}}} ...", file=sys.stderr)
        return 2
    for name in wanted:
        KINDS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
