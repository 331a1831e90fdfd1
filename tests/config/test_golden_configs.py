"""Every shipped config, resolved, is exactly what is recorded; `python tools/refresh_golden.py configs` rewrites it."""

from pathlib import Path

import pytest

from blobjax.config import dump, load
from blobjax.config.load import shipped

GOLDEN = Path(__file__).parent.parent / "golden" / "configs"


def test_every_shipped_config_is_recorded_and_no_other():
    recorded = sorted(path.relative_to(GOLDEN).with_suffix("").as_posix() for path in GOLDEN.rglob("*.yaml"))
    assert recorded == shipped()


@pytest.mark.smoke
@pytest.mark.parametrize("name", shipped())
def test_resolved_config(name):
    assert dump(load(name)) == (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", shipped())
def test_a_resolved_config_is_read_back_equal(name, tmp_path):
    config = load(name)
    path = tmp_path / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(str(path)) == config
