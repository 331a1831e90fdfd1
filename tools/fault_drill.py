"""Fault drills: does to real runs what clusters do to them, and looks at how they end.

    python tools/fault_drill.py                            # all of them
    python tools/fault_drill.py kill-at-random sigstop     # some
    python tools/fault_drill.py --list
    python tools/fault_drill.py --write docs/reliability.md    # and put the table between the page's two markers

Exit code 1 when a run did not do what it must. A drill that cannot run here says why.
"""

import argparse
import datetime
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from blobjax.processes import streams  # noqa: E402
from tools.drills import checkpoints, data, processes, resume, storage  # noqa: E402, F401
from tools.drills.registry import DRILLS, Drill  # noqa: E402
from tools.drills.run import CannotRunError, DrillFailedError, Drills  # noqa: E402

BEGIN, END = "<!-- fault drills: begin -->", "<!-- fault drills: end -->"


def main() -> int:
    streams.open_standard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="drills to run; all of them by default")
    parser.add_argument("--list", action="store_true", help="say which there are, and run none")
    parser.add_argument("--quick", action="store_true", help="those of `make test` only, with fewer repetitions")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000, help="of random moments and places")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace the table in this page")
    parser.add_argument("--keep", action="store_true", help="leave the runs where they are, to be looked at")
    arguments = parser.parse_args()
    if arguments.list:
        for each in DRILLS.values():
            print(f"{each.name:<24}{'quick  ' if each.quick else '       '}{each.does}")
        return 0
    if unknown := set(arguments.names) - DRILLS.keys():
        parser.error(f"no drill is called {', '.join(sorted(unknown))}; --list names them all")
    if arguments.write and (arguments.names or arguments.quick):
        parser.error("--write replaces the whole table, so it runs all drills")
    chosen = [DRILLS[name] for name in arguments.names or DRILLS if DRILLS[name].quick or not arguments.quick]
    folder = Path(tempfile.mkdtemp(prefix="blobjax-drills-"))
    print(f"seed {arguments.seed}, runs in {folder}", flush=True)
    failed, rows = 0, []
    drills = Drills(folder, arguments.quick, arguments.seed)
    try:
        for each in chosen:
            began = time.monotonic()
            ok, happened = _run(each, drills)
            failed += not ok
            print(f"{each.name}  ({time.monotonic() - began:.0f} s)  {happened}", flush=True)
            rows.append((each, happened.splitlines()[0]))
    finally:
        drills.close()
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.write:
        write(arguments.write, table(rows, arguments.seed))
    return 1 if failed else 0


def _run(each: Drill, drills: Drills) -> tuple[bool, str]:
    """Whether it is no failure, and what happened."""
    try:
        return True, each.function(drills)
    except CannotRunError as reason:
        return True, f"not run: {reason}"
    except DrillFailedError as error:
        return False, f"FAILED: {error}"


def table(rows: list[tuple[Drill, str]], seed: int) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "orbax-checkpoint", "tensorstore"))
    head = (
        f"`python tools/fault_drill.py --seed {seed}` on {datetime.date.today()}: Python {platform.python_version()}, "
        f"{versions}, {os.cpu_count()} CPU cores, {platform.system()} {platform.release().split('-')[0]}."
    )
    lines = [head, "", "| drill | what is done | what must happen | what happened |", "|---|---|---|---|"]
    for each, happened in rows:
        cells = (f"`{each.name}`", each.does, each.must, happened)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def write(page: Path, table: str) -> None:
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} has no {BEGIN} … {END} to put the table between")
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
