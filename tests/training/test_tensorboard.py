"""TensorBoard's files: a disk that is full costs points and not the run."""

import os
import threading
from types import SimpleNamespace

import pytest

from blobjax.training import metrics
from blobjax.training.metrics import TensorBoardWriter


def test_a_full_disk_costs_points_and_says_so(tmp_path, capfd, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    # A device that is always full, whatever name it is opened under.
    monkeypatch.setattr(metrics, "open", lambda path, mode: open("/dev/full", mode), raising=False)  # noqa: SIM115
    writer = TensorBoardWriter(SimpleNamespace(tensorboard=tmp_path), 0)
    # More points than tensorboardX queues: with its thread gone, the rest would wait for ever.
    done = threading.Thread(target=lambda: [writer.write(step, {"loss": 1.0}) for step in range(2000)], daemon=True)
    done.start()
    done.join(60)
    assert not done.is_alive()
    writer.close()
    said = capfd.readouterr().err
    assert said.count("cannot be written: No space left on device") == 1


def test_points_are_kept(tmp_path):
    writer = TensorBoardWriter(SimpleNamespace(tensorboard=tmp_path / "new"), 0)
    writer.write(1, {"loss": 1.25, "note": "not a number"})
    writer.close()
    (file,) = (tmp_path / "new").glob("events.*")
    assert b"loss" in file.read_bytes()
    assert b"note" not in file.read_bytes()


def test_a_nan_is_kept_without_a_word_of_the_library(tmp_path, caplog):
    writer = TensorBoardWriter(SimpleNamespace(tensorboard=tmp_path), 0)
    writer.write(1, {"loss": float("nan")})
    writer.close()
    assert not caplog.records
    (file,) = tmp_path.glob("events.*")
    assert b"loss" in file.read_bytes()
