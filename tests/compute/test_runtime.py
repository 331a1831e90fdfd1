import os
import re
import socket
import subprocess
import sys
import time

import jax
import pytest
from jax._src.clusters import ClusterEnv

from blobjax.compute import cluster, runtime
from blobjax.config import BadInputError, load

CLUSTER = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_COORDINATOR_BIND_ADDRESS",
    "SLURM_JOB_ID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "OMPI_MCA_orte_hnp_uri",
    "OMPI_COMM_WORLD_SIZE",
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_NUM_SLICES",
    "KUBERNETES_SERVICE_HOST",
    "JOB_COMPLETION_INDEX",
)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """No cluster around, and jax's own initialisation recorded instead of done."""
    for variable in CLUSTER:
        monkeypatch.delenv(variable, raising=False)
    recorded: list[tuple] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: recorded.append((args, kwargs)))
    return recorded


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_one_process_alone_starts_nothing(calls):
    runtime.initialize_distributed()
    runtime.initialize_distributed(num_processes=1)
    runtime.initialize_distributed("127.0.0.1:1", 1, 0)
    assert calls == []


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "8"},  # a shell inside an allocation, not a step of it
        {"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a notebook in a pod
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},  # and no client library to ask
    ],
)
def test_a_job_of_one_task_starts_nothing(calls, monkeypatch, variables):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    runtime.initialize_distributed()
    assert calls == []


# What Slurm 22.05 sets for the second of two tasks on two nodes.
SLURM = {
    "SLURM_JOB_ID": "8",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_NODEID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("more", "devices"),
    [
        ({}, None),  # one task has all of its node's devices
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_LOCALID": "3"}, [3]),
        ({"SLURM_STEP_TASKS_PER_NODE": "4,1", "SLURM_NODEID": "1"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "4,1", "SLURM_LOCALID": "2"}, [2]),
    ],
)
def test_slurm_tasks_find_their_place_and_their_devices(calls, monkeypatch, more, devices):
    for variable, value in (SLURM | more).items():
        monkeypatch.setenv(variable, value)
    runtime.initialize_distributed()
    ((args, kwargs),) = calls
    assert args == ("127.0.0.1:61448", 2, 0, devices)
    assert kwargs["coordinator_bind_address"] == "127.0.0.1:61448", "and no other address of the host"
    assert kwargs["heartbeat_timeout_seconds"] == 10


def test_open_mpi_4_tasks_find_their_place(calls, monkeypatch):
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://127.0.0.1:34911")
    for variable, value in {"SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{variable}", value)
    runtime.initialize_distributed()
    ((args, kwargs),) = calls
    assert args[1:] == (2, 0, [0])
    assert kwargs["coordinator_bind_address"] == args[0]
    assert args[0].startswith("127.0.0.1:")


@pytest.mark.parametrize("variables", [{"TPU_WORKER_HOSTNAMES": "h0,h1"}, {"MEGASCALE_NUM_SLICES": "2"}])
def test_tpu_pods_are_asked_of_jax(calls, monkeypatch, variables):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(
        ClusterEnv, "auto_detect_unset_distributed_params", lambda *given: ("127.0.0.1:8476", 2, 0, None)
    )
    runtime.initialize_distributed()
    assert calls[0][0] == ("127.0.0.1:8476", 2, 0, None)


def test_a_cluster_that_jax_does_not_know_is_refused(calls, monkeypatch):
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", lambda *given: (None, None, None, None))
    with pytest.raises(BadInputError, match="--coordinator HOST:PORT"):
        runtime.initialize_distributed()
    assert calls == []


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_SIZE": "2"},  # Open MPI 5 no longer says where it can be asked
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
    ],
)
def test_one_of_several_tasks_that_cannot_be_detected_is_refused(calls, monkeypatch, variables):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(BadInputError, match="--coordinator"):
        runtime.initialize_distributed()
    assert calls == []


def test_asked_for_it_binds_the_given_address_only(calls, free_port):
    runtime.initialize_distributed(f"127.0.0.1:{free_port}", 2, 0)
    ((args, kwargs),) = calls
    assert args == (f"127.0.0.1:{free_port}", 2, 0, None)
    assert kwargs["coordinator_bind_address"] == f"127.0.0.1:{free_port}"
    assert kwargs["heartbeat_timeout_seconds"] == 10
    assert kwargs["cluster_detection_method"] == "deactivate"


def test_asked_for_by_the_environment(calls, monkeypatch, free_port):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"127.0.0.1:{free_port}")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    runtime.initialize_distributed(local_device_ids=[1])
    assert calls[0][0] == (f"127.0.0.1:{free_port}", 4, 0, [1])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("a:1", 2, 2), "--process-id 2 is not one of 0..1 (--num-processes)"),
        (("a:1", 2, -1), "--process-id -1 is not one of 0..1 (--num-processes)"),
        (("a:1", 0, 0), "--num-processes 0 is not a number of processes; give 1 or more"),
        (("a", 2, 0), "--coordinator 'a' is not HOST:PORT, such as 10.0.0.1:1234"),
        ((":1", 2, 0), "--coordinator ':1' is not HOST:PORT, such as 10.0.0.1:1234"),
        (("a:99999", 2, 0), "--coordinator 'a:99999' is not HOST:PORT, such as 10.0.0.1:1234"),
        (("a:\u00b2", 2, 0), "--coordinator 'a:\u00b2' is not HOST:PORT, such as 10.0.0.1:1234"),
        (("::1:1234", 2, 0), "--coordinator '::1:1234': an IPv6 address stands in brackets, such as [::1]:1234"),
        (
            ("0.0.0.0:1234", 2, 0),
            "'0.0.0.0:1234' is every address of a host; give the one by which the others reach process 0",
        ),
        (
            ("[::]:1234", 2, 0),
            "'[::]:1234' is every address of a host; give the one by which the others reach process 0",
        ),
        (
            ("a:1", 2, None),
            "several processes need --coordinator, --num-processes and --process-id; missing: --process-id",
        ),
        (
            (None, 2, None),
            "several processes need --coordinator, --num-processes and --process-id; missing: --coordinator, "
            "--process-id",
        ),
    ],
)
def test_arguments_that_contradict_each_other(arguments, line):
    with pytest.raises(BadInputError, match=f"^{re.escape(line)}$"):
        runtime.initialize_distributed(*arguments)


def test_a_variable_that_is_no_number(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(BadInputError, match=r"^JAX_NUM_PROCESSES='two' is not a number$"):
        runtime.initialize_distributed()


def test_an_address_of_another_host_cannot_be_bound():
    with pytest.raises(BadInputError, match=r"--coordinator 192.0.2.1:1234: process 0 cannot listen there"):
        runtime.initialize_distributed("192.0.2.1:1234", 2, 0)


def test_a_port_in_use_cannot_be_bound():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BadInputError, match=r"process 0 cannot listen there .Address already in use"):
            runtime.initialize_distributed(address, 2, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_coordinator_that_is_not_there_is_given_up_in_bounded_time(host, free_port):
    start = time.monotonic()
    with pytest.raises(BadInputError, match=r"was not reachable within 1 s .*is process 0 running there\?"):
        runtime.initialize_distributed(f"{host}:{free_port}", 2, 1, timeout_seconds=1)
    assert time.monotonic() - start < 30


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_processes_that_never_come_are_given_up_with_one_line(free_port):
    """jaxlib alone would abort with a native stack trace."""
    code = (
        "from blobjax.compute import runtime\n"
        f"runtime.initialize_distributed('127.0.0.1:{free_port}', 2, 0, timeout_seconds=1)"
    )
    done = run(code, JAX_PLATFORMS="cpu")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"blobjax: not all of the 2 processes met at 127.0.0.1:{free_port} within 1 s; start the missing ones with the "
        "same --coordinator and --num-processes"
    )


IMPORTS_START_NO_BACKEND = """
import pkgutil, importlib, blobjax.compute
for module in pkgutil.iter_modules(blobjax.compute.__path__):
    importlib.import_module(f"blobjax.compute.{module.name}")
import jax
jax.config.update("jax_num_cpu_devices", 3)  # refused once a backend has started
assert jax.device_count() == 3
"""


@pytest.mark.smoke
def test_importing_starts_no_backend():
    done = run(IMPORTS_START_NO_BACKEND, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr


@pytest.mark.smoke
def test_configure_before_the_backend_starts(tmp_path):
    code = (
        "import os\n"
        "from blobjax.compute import runtime\n"
        "from blobjax.config import load\n"
        f"overrides = ['compute.compilation_cache={tmp_path}/cache', 'compute.xla_flags=[gpu-overlap]']\n"
        "runtime.configure(load('laptop-8dev', overrides).compute)\n"
        "import jax\n"
        "jax.jit(lambda x: x + 1)(1)\n"
        "print(jax.default_backend(), jax.device_count(), os.environ['XLA_FLAGS'].split()[-1])\n"
    )
    done = run(code, XLA_FLAGS="--xla_cpu_enable_fast_math=false")
    assert done.stdout.split() == ["cpu", "8", "--xla_cpu_enable_fast_math=false"], done.stderr
    assert list((tmp_path / "cache").iterdir())


def test_the_environment_decides_over_the_config():
    """A launcher that gives each process two devices means it, whatever the config says of a single one."""
    code = (
        "from blobjax.compute import runtime\n"
        "from blobjax.config import load\n"
        "runtime.configure(load('laptop-8dev').compute)\n"
        "import jax\n"
        "print(jax.device_count())\n"
    )
    assert run(code, JAX_NUM_CPU_DEVICES="2", JAX_PLATFORMS="cpu").stdout.strip() == "2"


def test_configure_in_a_running_process_that_is_as_asked():
    runtime.configure(load("laptop-8dev").compute)
    assert jax.device_count() == 8


@pytest.mark.parametrize(("chosen", "found"), [("cuda", "gpu"), ("rocm", "gpu"), ("tpu,cpu", "tpu"), ("cpu", "cpu")])
def test_the_platform_is_told_without_starting_it(chosen, found):
    done = run("from blobjax.compute import runtime; print(runtime.platform())", JAX_PLATFORMS=chosen)
    assert done.stdout.strip() == found


@pytest.mark.parametrize(
    ("platforms", "given", "found"),
    [
        ("cuda", {}, 0.9),
        ("cuda", {"XLA_CLIENT_MEM_FRACTION": "0.5"}, 0.5),
        ("cuda", {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"}, 0.4),
        ("cpu", {}, None),
    ],
)
def test_how_much_of_a_gpu_jax_takes(platforms, given, found):
    """Told by what jax would hand to the GPU's plugin, which needs no GPU."""
    code = (
        "from blobjax.compute import runtime\n"
        "from blobjax.config import load\n"
        "runtime.configure(load('laptop').compute)\n"
        "from jaxlib import xla_client\n"
        "print(xla_client.generate_pjrt_gpu_plugin_options().get('memory_fraction'))\n"
    )
    done = run(code, JAX_PLATFORMS=platforms, **given)
    assert done.stdout.strip() == str(found), done.stderr
