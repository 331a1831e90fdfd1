"""Who may import whom: the house's rule, kept true by reading every import."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "blobjax"
# Each room may import itself and these.
TRAINER = {"config", "compute", "runs", "conditioning", "data", "model", "objectives", "program", "checkpointing"} | {
    "processes",
    "training",
}
MAY_IMPORT = {
    "config": set(),
    "compute": {"config"},
    "runs": {"config", "compute"},
    "data": {"config"},
    "conditioning": {"config", "compute"},
    "model": {"config", "compute", "conditioning"},
    "objectives": {"config", "compute", "conditioning", "data", "model"},
    "program": {"config", "compute", "conditioning", "data", "model", "objectives"},
    "processes": {"config", "compute", "runs"},
    "checkpointing": {"config", "compute", "runs", "processes", "program"},
    "training": TRAINER - {"training"},
    "plan": {"config", "compute", "conditioning", "data", "model", "objectives", "program", "runs"},
    "report": {"config", "compute", "runs"},
    "laws": {"config", "compute", "runs", "report"},
    "studies": TRAINER | {"plan", "laws", "report"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 1)
FILES = [path for path in FILES if path.parent.name != "cli"]  # which may import all, and which nothing imports


def imported_modules(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it; `from a.b import c` counts as a.b and as a.b.c."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            modules |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def rooms_of(modules: set[str]) -> set[str]:
    parts = [module.split(".") for module in modules]
    return {names[1] for names in parts if names[0] == "blobjax" and len(names) > 1 and names[1] != "__version__"}


@pytest.mark.smoke
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_only_rooms_above(path):
    room = path.relative_to(PACKAGE).parts[0]
    assert room in MAY_IMPORT, f"{room} is a new room: give it a line in this table"
    assert rooms_of(imported_modules(path)) - {room} <= MAY_IMPORT[room]


@pytest.mark.smoke
def test_nothing_imports_cli():
    for path in FILES:
        assert "cli" not in rooms_of(imported_modules(path)), path


@pytest.mark.smoke
@pytest.mark.parametrize("path", sorted((PACKAGE / "config").glob("*.py")), ids=lambda path: path.name)
def test_config_imports_no_jax(path):
    """`blobjax --help` answers within a second because reading a config needs no jax."""
    assert not {module.split(".")[0] for module in imported_modules(path)} & {"jax", "flax", "numpy"}
