"""Eight virtual CPU devices for the whole suite, and compiled programs kept between runs (children share them)."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

from blobjax.compute import runtime

if "JAX_PLATFORMS" not in os.environ:  # JAX_PLATFORMS=cuda,cpu runs the tests marked gpu on a machine that has one
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Tests compile far more than they compute. Children inherit it; what the caller set comes last and wins.
os.environ["XLA_FLAGS"] = " ".join(["--xla_backend_optimization_level=0", os.environ.get("XLA_FLAGS", "")]).strip()

runtime.set_needed_flags()

_CACHE = {
    "jax_compilation_cache_dir": str(Path(__file__).parent.parent / ".jax_cache"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}
for _key, _value in _CACHE.items():
    jax.config.update(_key, _value)
    os.environ[_key.upper()] = str(_value)

# A suite started in the background of a shell has Ctrl-C ignored, one under nohup the closed terminal; and so would the
# processes have that tests interrupt.
for _signal, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _default)


@pytest.fixture
def nobody():
    """Another user for a moment, who may come as far as pytest's folders and no farther."""
    if os.geteuid() != 0:
        pytest.skip("becomes another user for a moment, which needs root")

    @contextmanager
    def become(path):
        modes = {
            parent: parent.stat().st_mode for parent in path.parents if parent.is_relative_to("/tmp/pytest-of-root")
        }
        try:
            for parent in modes:
                parent.chmod(0o755)
            os.seteuid(65534)
            yield
        finally:
            os.seteuid(0)
            for parent, mode in modes.items():
                parent.chmod(mode)

    return become
