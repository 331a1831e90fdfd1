"""The wheel is the product: small, complete, and at home in any working directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_corpus_is_under_1200_kB_packed(wheel):
    with zipfile.ZipFile(wheel) as archive:
        corpus = [entry for entry in archive.infolist() if entry.filename.startswith("blobjax/data/corpus/")]
    assert len([entry for entry in corpus if entry.filename.endswith(".xz")]) >= 3
    assert sum(entry.compress_size for entry in corpus) < 1_200_000
    assert any(entry.filename.endswith("SOURCES.md") for entry in corpus)


@pytest.mark.smoke
def test_config_names_resolve_from_the_installed_wheel_in_any_directory(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import blobjax; assert blobjax.__file__.startswith(sys.argv[1])\n"
        "from blobjax.config.load import find_study; assert str(find_study('lr-sensitivity')).startswith(sys.argv[1])\n"
        "from blobjax import cli; sys.argv = ['blobjax', 'config', 'show', 'models/llama3-8b']; cli.main()"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "d_model: 4096" in done.stdout
