"""The device that programs are made for: one of this process, unless a plan is made for hardware that is not here.

What a model is made of depends on where it will run (its attention kernel, whether layers are scanned, which number
formats there are). Everything in the model that asks, asks here.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_device: ContextVar[jax.Device | None] = ContextVar("device", default=None)


@contextlib.contextmanager
def compiling_for(device: jax.Device) -> Iterator[None]:
    """Within it programs are made for this device, which may be one of `jax.experimental.topologies`."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def device() -> jax.Device:
    """A device like all those the program will run on."""
    return _device.get() or jax.devices()[0]


def platform() -> str:
    """Its platform: `cpu`, `gpu` or `tpu`."""
    elsewhere = _device.get()
    return jax.default_backend() if elsewhere is None else elsewhere.platform
