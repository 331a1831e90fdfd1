"""Eight virtual CPU devices for the whole suite, and compiled programs kept between runs (children share them)."""

import os
import signal
from pathlib import Path

import jax

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
