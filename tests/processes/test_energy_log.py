"""The account of energy goes on over restarts and over several processes, and keeps its sources apart."""

import json

import pytest

from blobjax.compute.energy import Meter
from blobjax.processes import energy_log
from blobjax.processes.energy_log import EnergyLog, meter_of_this_process
from blobjax.runs.energy import energy_line, measured, read_accounts


class Counter:
    """A counter that a test turns on."""

    def __init__(self):
        self.value = 1000.0

    def __call__(self):
        return self.value


def test_goes_on_after_a_restart(tmp_path):
    for attempt in (1, 2, 3):
        counter = Counter()
        with EnergyLog(tmp_path, 0, Meter("nvml", counter)) as log:
            counter.value += 50
            assert log.metrics(tokens=600) == {
                "energy_joules": 50.0 * attempt,
                "energy_source": "nvml",
                "tokens_per_joule": 600 / (50 * attempt),
            }
    assert read_accounts(tmp_path) == {"nvml": 150.0}


def test_what_was_estimated_elsewhere_is_not_added_to_what_is_measured(tmp_path):
    counter = Counter()
    with EnergyLog(tmp_path, 0, Meter("estimate: 5 W a core", counter)):
        counter.value += 70
    counter = Counter()
    with EnergyLog(tmp_path, 0, Meter("nvml", counter)) as log:
        counter.value += 50
        # Tokens of the whole run over what part of it drew would be no efficiency.
        assert log.metrics(600) == {"energy_joules": 50.0, "energy_source": "nvml"}
    assert read_accounts(tmp_path) == {"estimate: 5 W a core": 70.0, "nvml": 50.0}


def test_the_other_processes_count_too(tmp_path, monkeypatch):
    (tmp_path / "1.json").write_text(json.dumps({"nvml": 30.0, "estimate: 5 W a core": 9.0}))
    (tmp_path / "2.json").write_text("{")  # half a file, or somebody else's
    now = [0.0]
    monkeypatch.setattr(energy_log.time, "monotonic", lambda: now[0])
    counter = Counter()
    with EnergyLog(tmp_path, 0, Meter("nvml", counter)) as log:
        counter.value += 50
        assert log.metrics(0)["energy_joules"] == 80
        (tmp_path / "1.json").write_text(json.dumps({"nvml": 40.0}))
        log.beat()
        assert log.metrics(0)["energy_joules"] == 80
        now[0] += energy_log.FLUSH_SECONDS
        log.beat()
        assert log.metrics(0)["energy_joules"] == 90


def test_an_account_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with EnergyLog(tmp_path / "file" / "energy", 0, Meter("nvml", Counter())) as log:
        assert log.metrics(0) == {"energy_joules": 0.0, "energy_source": "nvml"}


class NVMLError(Exception):
    """As pynvml's own, which is no OSError."""


@pytest.mark.parametrize("error", [NVMLError("GPU is lost"), OSError("gone"), ValueError("no number")])
def test_a_counter_that_fails_on_the_way_ends_nothing_and_is_said_once(tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr(energy_log, "FLUSH_SECONDS", 0)
    counter, fails = Counter(), [False]

    def read():
        if fails[0]:
            raise error
        return counter()

    with EnergyLog(tmp_path, 0, Meter("nvml", read)) as log:
        counter.value += 50
        assert log.metrics(100)["energy_joules"] == 50
        fails[0] = True
        for _ in range(2):
            log.beat()
            # What was known last.
            assert log.metrics(200) == {"energy_joules": 50.0, "energy_source": "nvml", "tokens_per_joule": 4.0}
        assert log.totals() == {"nvml": 50.0}
    assert read_accounts(tmp_path) == {"nvml": 50.0}
    said = capsys.readouterr().err
    assert said.count("the energy counter (nvml) cannot be read") == 1
    assert f"{type(error).__name__}: {error}" in said


def test_before_a_process_has_claimed_the_directory_nothing_is_made_in_it(tmp_path):
    with EnergyLog(tmp_path / "run" / "energy", 1, Meter("nvml", Counter())) as log:
        log.beat()
    assert not (tmp_path / "run").exists()


def test_accounts_that_take_long_are_written_less_often(tmp_path, monkeypatch):
    now = [0.0]

    def slow(path, text):
        now[0] += 2.0

    monkeypatch.setattr(energy_log, "write_atomically", slow)
    monkeypatch.setattr(energy_log.time, "monotonic", lambda: now[0])
    with EnergyLog(tmp_path, 0, Meter("nvml", Counter())) as log:
        now[0] += 300
        log.beat()
        assert now[0] == 302
        now[0] += 100
        log.beat()
        assert now[0] == 404


def test_of_several_processes_on_one_machine_one_meters_its_cores(monkeypatch):
    import jax
    import numpy as np

    here, there = 7, 9
    monkeypatch.setattr(energy_log.zlib, "crc32", lambda name: here << 1)
    monkeypatch.setattr(energy_log, "everyone", lambda mine: np.array([[there], *([mine] * 2)]))
    metered = []
    for process in (1, 2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        metered.append(meter_of_this_process(watts=3) is not None)
    assert metered == [True, False]


def test_a_line_keeps_sources_apart():
    assert energy_line({"nvml": 7.2e6}, 14.4e6) == "energy: 2 kWh (nvml); 2.00 tokens/J"
    assert energy_line({"nvml": 4560.0, "rapl": 0.0, "estimate: 5 W a core": 70.0}, 10) == (
        "energy: 4.56 kJ (nvml), and 70 J (estimate: 5 W a core)"
    )
    assert energy_line({"nvml": 0.0}, 10) == "energy: 0 J"
    assert [measured(source) for source in ("nvml", "rapl", "estimate: 5 W a core")] == [True, True, False]


def test_tokens_per_joule_have_one_rule_wherever_they_are_said(tmp_path):
    two = {"estimate: 5 W a core": 70.0, "estimate: 700 W a H100 SXM": 30.0}
    assert energy_log.tokens_per_joule(two, 600) == 6
    assert energy_line(two, 600).endswith("(estimate: 700 W a H100 SXM); 6.00 tokens/J")
    (tmp_path / "1.json").write_text(json.dumps(two))
    with EnergyLog(tmp_path, 0, Meter("estimate: 5 W a core", Counter())) as log:
        assert log.metrics(600)["tokens_per_joule"] == 6
    for accounts in ({}, {"nvml": 0.0}, {"nvml": 9.0, "estimate: 5 W a core": 9.0}):
        assert energy_log.tokens_per_joule(accounts, 600) is None
