"""RAW COMPUTE: devices as a mesh, tensors laid over it by logical axis names, and what the arithmetic costs.

Importing this package starts no jax backend, so `runtime.configure` can still choose flags and devices.
"""
