"""The account of energy goes on over restarts and over several processes, and keeps its sources apart."""

import json

from blobjax.compute.energy import Meter
from blobjax.training import energy_log
from blobjax.training.energy_log import EnergyLog, read_accounts


class Counter:
    """A counter that a test turns on."""

    def __init__(self):
        self.value = 1000.0

    def __call__(self):
        return self.value


def test_goes_on_after_a_restart(tmp_path):
    for attempt in (1, 2, 3):
        counter = Counter()
        with EnergyLog(tmp_path, Meter("nvml", counter)) as log:
            counter.value += 50
            assert log.metrics(tokens=600) == {
                "energy_joules": 50.0 * attempt,
                "energy_source": "nvml",
                "tokens_per_joule": 600 / (50 * attempt),
            }
    assert read_accounts(tmp_path) == {"nvml": 150.0}


def test_what_was_estimated_elsewhere_is_not_added_to_what_is_measured(tmp_path):
    counter = Counter()
    with EnergyLog(tmp_path, Meter("estimate: 5 W a core, 2 cores", counter)):
        counter.value += 70
    counter = Counter()
    with EnergyLog(tmp_path, Meter("nvml", counter)) as log:
        counter.value += 50
        assert log.metrics(0)["energy_joules"] == 50
    assert read_accounts(tmp_path) == {"estimate: 5 W a core, 2 cores": 70.0, "nvml": 50.0}


def test_the_other_processes_count_too(tmp_path, monkeypatch):
    (tmp_path / "1.json").write_text(json.dumps({"nvml": 30.0, "estimate: 5 W a core, 2 cores": 9.0}))
    (tmp_path / "2.json").write_text("{")  # half a file, or somebody else's
    now = [0.0]
    monkeypatch.setattr(energy_log.time, "monotonic", lambda: now[0])
    counter = Counter()
    with EnergyLog(tmp_path, Meter("nvml", counter)) as log:
        counter.value += 50
        assert log.metrics(0)["energy_joules"] == 80
        (tmp_path / "1.json").write_text(json.dumps({"nvml": 40.0}))
        assert log.metrics(0)["energy_joules"] == 80
        now[0] += energy_log.FLUSH_SECONDS
        assert log.metrics(0)["energy_joules"] == 90


def test_an_account_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with EnergyLog(tmp_path / "file" / "energy", Meter("nvml", Counter())) as log:
        assert log.metrics(0) == {"energy_joules": 0.0, "energy_source": "nvml"}
