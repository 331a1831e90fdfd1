"""How tensors are laid over the mesh: logical axis names, one ordered table of rules, and checks on the
outcome.

A model names what a dim *is* ("heads"); the table says where that goes ("tensor"). Nothing in the model knows
the mesh.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import jax
from jax.sharding import NamedSharding, PartitionSpec

from blobjax.compute.mesh import AXES, make_mesh
from blobjax.config.closest import suggest
from blobjax.config.errors import BadInputError
from blobjax.config.schema import Config

Rules = tuple[tuple[str, tuple[str, ...]], ...]
Axes = tuple[str | None, ...]

LOGICAL_AXES = ("batch", "time", "embed", "heads", "kv_heads", "head", "mlp", "vocab", "layers")

# Ordered; for each dim of a tensor, in the order of its dims, the first usable rule wins. So `batch` claims
# fsdp on activations, which leaves their `embed` whole, while on parameters, which have no batch, `embed`
# gets it.
DEFAULT_RULES: Rules = (
    ("batch", ("replica", "data", "fsdp")),
    ("time", ("context",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
    ("embed", ("fsdp",)),
)


@dataclass(frozen=True)
class Layout:
    """A mesh and the rules by which tensors are laid over it.

    Attributes:
      mesh: the device mesh.
      rules: ordered (logical axis, mesh axes) pairs; no mesh axes means "keep this dim whole".
    """

    mesh: jax.sharding.Mesh
    rules: Rules = DEFAULT_RULES

    def spec(self, axes: Axes, shape: Sequence[int] | None = None) -> PartitionSpec:
        """Where each dim of a tensor goes.

        A rule is usable when none of its mesh axes serves an earlier dim of the same tensor and their sizes'
        product divides the dim. Mesh axes of size one shard nothing and are left out.

        Args:
          axes: one logical axis name per dim; None for a dim that is never sharded.
          shape: the dims' sizes; without it every size is taken to divide.
        """
        taken: set[str] = set()
        dims: list[str | tuple[str, ...] | None] = []
        for dim, name in enumerate(axes):
            chosen = self._mesh_axes(name, None if shape is None else shape[dim], taken)
            taken.update(chosen)
            dims.append(chosen if len(chosen) > 1 else chosen[0] if chosen else None)
        return PartitionSpec(*dims)

    def sharding(self, axes: Axes, shape: Sequence[int] | None = None) -> NamedSharding:
        """`spec` on this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape))

    def ways(self, name: str) -> int:
        """Into how many parts a dim with this logical axis is split when it comes first in its tensor."""
        return math.prod(self.mesh.shape[axis] for axis in self._mesh_axes(name, None, set()))

    def _mesh_axes(self, name: str | None, size: int | None, taken: set[str]) -> tuple[str, ...]:
        for logical, mesh_axes in self.rules:
            if logical != name:
                continue
            if not mesh_axes:
                return ()
            split = tuple(axis for axis in mesh_axes if self.mesh.shape[axis] > 1)
            divides = size is None or size % math.prod(self.mesh.shape[axis] for axis in split) == 0
            if split and divides and taken.isdisjoint(split):
                return split
        return ()


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextlib.contextmanager
def use(layout: Layout) -> Iterator[None]:
    """Makes `constrain` follow a layout; around a jitted call, or inside the function being traced.

    The mesh is also made jax's ambient (abstract) mesh: it is part of the key of jax's trace caches, so a
    function traced under one mesh is traced anew under another instead of keeping the first one's
    constraints.
    """
    token = _layout.set(layout)
    try:
        with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            yield
    finally:
        _layout.reset(token)


def current_layout() -> Layout | None:
    """The layout that `use` set, for what must name the mesh itself (shard_map); None outside `use`."""
    return _layout.get()


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Asks the compiler to lay an activation out by its logical axes; outside `use` and on one device: x."""
    layout = _layout.get()
    if layout is None or layout.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, layout.sharding(axes, x.shape))


def make_layout(config: Config, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The mesh and the rules of a run.

    Raises:
      BadInputError: the mesh does not fit the devices, a rule names an unknown axis, or heads, batch or sequence
        do not divide.
    """
    return lay_over(make_mesh(config.compute.mesh, devices), config)


def lay_over(mesh: jax.sharding.Mesh, config: Config) -> Layout:
    """As `make_layout`, over a mesh that is already made."""
    layout = Layout(mesh, (*_given_rules(config), *DEFAULT_RULES))
    # spec() would leave heads that do not divide whole on every device: correct, and a waste of the tensor
    # axis that nobody asks for. Fewer kv heads than devices are common (Llama 3 has 8), and cheap to keep
    # whole.
    ways, heads = layout.ways("heads"), config.model.n_heads
    if heads % ways:
        raise BadInputError(
            f"model.n_heads {heads} does not divide over {ways} devices ({heads} / {ways} = "
            f"{heads / ways:.2f}); change compute.mesh.tensor"
        )
    check_batch(config, layout)
    return layout


def _given_rules(config: Config) -> Rules:
    rules, problems = [], []
    for logical, given in config.compute.sharding_rules:
        mesh_axes = (given,) if isinstance(given, str) else tuple(given or ())
        names = [("logical", logical, LOGICAL_AXES), *(("mesh", axis, AXES) for axis in mesh_axes)]
        for kind, name, known in names:
            if name not in known:
                problems.append(f"compute.sharding_rules: unknown {kind} axis '{name}'; {suggest(name, known)}")
        rules.append((logical, mesh_axes))
    if problems:
        raise BadInputError(*problems)
    return tuple(rules)


def check_batch(config: Config, layout: Layout) -> None:
    """Refuses a batch or a sequence that the mesh cannot split evenly.

    Raises:
      BadInputError: with the arithmetic.
    """
    problems = []
    parts, ways = config.compute.gradient_accumulation, layout.ways("batch")
    at_once = parts * ways

    def check(key: str, batch: int, instead: str) -> None:
        if batch % at_once:
            split = " x ".join(f"{axis} {layout.mesh.shape[axis]}" for axis in layout._mesh_axes("batch", None, set()))
            accumulated = f" in each of compute.gradient_accumulation {parts} parts" if parts > 1 else ""
            problems.append(
                f"{key} {batch} does not divide over {ways} devices ({split}){accumulated}: "
                f"{batch} / {at_once} = {batch / at_once:.2f}; {instead}"
            )

    batch, smaller = config.duration.global_batch_size, config.duration.smaller_batches
    check("duration.global_batch_size", batch, f"the next that does is {-(-batch // at_once) * at_once}")
    if smaller:
        # Where the smallest divides, so do those it doubles to.
        usable = [size for size in smaller if size % at_once == 0]
        instead = f"start with {usable[0]}" if usable else "set duration.batch_warmup='0 steps'"
        check("duration.batch_start", smaller[0], instead)
    if config.conditioning.noise_scale_every and batch == ways:
        problems.append(
            f"conditioning.noise_scale_every compares parts of the batch with the whole, and {batch} sequences over "
            f"{ways} devices have none; give duration.global_batch_size {2 * batch}"
        )
    length, pieces = config.data.seq_len, layout.ways("time")
    if length % pieces:
        problems.append(
            f"data.seq_len {length} does not divide over compute.mesh.context {pieces}: "
            f"{length} / {pieces} = {length / pieces:.2f}"
        )
    if problems:
        raise BadInputError(*problems)


def unsharded(layout: Layout, named: Mapping[str, tuple[Sequence[int], Axes]], threshold: int = 1 << 22) -> list[str]:
    """Names the large parameters that stand whole on every device although the mesh has axes to split them
    over.

    Args:
      layout: the mesh and rules.
      named: for each parameter its shape and logical axes.
      threshold: elements from which a parameter counts as large; 16 MB in float32, by default. (The norms of 126
        stacked layers of width 16384 have half of that, and are better left whole.)

    Returns:
      Names, in the order given; empty on a mesh that splits no parameters (data parallelism only).
    """
    splits = {"embed", "heads", "kv_heads", "head", "mlp", "vocab", "layers"}
    could = any(layout.mesh.shape[axis] > 1 for logical, axes in layout.rules if logical in splits for axis in axes)
    return [
        name
        for name, (shape, axes) in named.items()
        if could and math.prod(shape) >= threshold and all(dim is None for dim in layout.spec(axes, shape))
    ]
