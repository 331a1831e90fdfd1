import pytest

from blobjax.compute import doctor


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    return {check.name: check for check in doctor.report(tmp_path_factory.mktemp("doctor") / "not" / "there" / "yet")}


def test_a_healthy_machine_passes_everything(checks):
    looked_at = ["versions", "devices", "host memory", "device memory", "arithmetic", "collective", "write", "disk"]
    assert list(checks) == looked_at
    assert all(check.ok for check in checks.values()), checks


def test_what_it_says(checks):
    assert "jax " in checks["versions"].detail
    assert checks["devices"].detail.startswith("8 x cpu")
    assert checks["arithmetic"].detail == "a float32 sum of squares is 1,073,741,824, expected 1,073,741,824"
    assert "sum over 8 devices is 36, expected 36" in checks["collective"].detail
    assert "1 MB written, synced and read back" in checks["write"].detail


def test_a_directory_that_cannot_be_written_is_a_finding(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    ok, detail = doctor._write(tmp_path)
    assert not ok
    assert detail == f"{tmp_path}: Read-only file system"


def test_a_check_that_breaks_is_a_finding_and_not_the_end(monkeypatch):
    def broken():
        raise RuntimeError("no devices\nand more")

    assert doctor._run("devices", broken) == doctor.Check("devices", False, "RuntimeError: no devices")
