"""Rewrites the exact expectations under tests/golden/, after a change that is meant to change them.

    python tools/refresh_golden.py configs

Read the diff before committing it: it is the change, as others will see it.
"""

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


KINDS = {"configs": configs}


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
