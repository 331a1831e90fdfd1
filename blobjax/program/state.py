"""What a training run is at one moment, and how it comes into the world sharded.

Random numbers need no place in it: every one is a function of (seed, step), so that a restart draws the same ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from blobjax.compute.sharding import Layout
from blobjax.conditioning.precision import policy
from blobjax.config.schema import Config
from blobjax.model import Transformer, logical_axes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything on the devices that decides the future.

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: nested dict of arrays, in the precision policy's parameter format.
      opt_state: optax's state; its moments are sharded as their parameters.
      frozen: arrays that the objective reads and no step changes, such as a reference policy; empty for most.
      round: data that the objective makes from the state and learns from for more than one step; empty for most.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    frozen: Any = field(default_factory=dict)
    round: Any = field(default_factory=dict)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Path to leaf, in the tree's order; a path reads like `blocks/attention/wq`, behind the prefix."""
    return {prefix + _path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: dict[str, Any], like: Any) -> Any:
    """The tree shaped as `like` whose leaves are those of the flat dictionary."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: flat[_path(keys)], like)


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


@jax.jit
def all_finite(arrays: Mapping[str, jax.Array]) -> jax.Array:
    """Whether every number of these arrays is finite; bool scalar, the same on every device and process.

    Arrays may be sharded over any mesh. Integers are finite.
    """
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays.values()]))


@dataclass(frozen=True)
class Architecture:
    """The model without its numbers: what turns parameters into a module inside jit, and what is known of each of them.

    Attributes:
      graphdef: the NNX module's definition.
      axes: logical axis names of each parameter, a tree of tuples.
      shapes: jax.ShapeDtypeStruct of each parameter.
    """

    graphdef: Any
    axes: Any
    shapes: Any

    def merge(self, params: Any) -> Transformer:
        """The module with these parameters; meant for inside jit, where it costs nothing."""
        return nnx.merge(self.graphdef, params)


def _create(config: Config) -> Transformer:
    return Transformer(config, nnx.Rngs(config.seed))


def architecture(config: Config) -> Architecture:
    """Traces the model's construction without computing a weight."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: _create(config)))
    dtype = policy(config.conditioning).params
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), nnx.to_pure_dict(abstract))
    return Architecture(graphdef, logical_axes(abstract), shapes)


def abstract_params(arch: Architecture, layout: Layout) -> Any:
    """Shape, dtype and sharding of every parameter."""
    return jax.tree.map(
        lambda shape, axes: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=layout.sharding(axes, shape.shape)),
        arch.shapes,
        arch.axes,
    )


def abstract_state(arch: Architecture, optimizer: optax.GradientTransformationExtraArgs, layout: Layout) -> TrainState:
    """Shape, dtype and sharding of the whole state.

    An optimizer leaf whose path ends in a parameter's path and which has that parameter's shape (a moment) is sharded
    as it; every other leaf (a count) is replicated. This holds for any optax transformation without knowing it.
    """
    params = abstract_params(arch, layout)
    by_path = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    replicated = layout.sharding(())

    def shard(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        for start in range(len(path)):
            param = by_path.get(jax.tree_util.keystr(path[start:]))
            if param is not None and param.shape == leaf.shape:
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)

    opt_state = jax.tree_util.tree_map_with_path(shard, jax.eval_shape(optimizer.init, arch.shapes))
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(step, params, opt_state)


def shardings(abstract: Any) -> Any:
    """The shardings of a tree of ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def bytes_on_device(abstract: Any) -> int:
    """Bytes of a tree of ShapeDtypeStructs on one device, from their shardings."""
    leaves = jax.tree.leaves(abstract)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def init_state(config: Config, optimizer: optax.GradientTransformationExtraArgs, abstract: TrainState) -> TrainState:
    """The state at step 0, every array born on the devices it belongs to; the numbers depend on the seed alone."""
    dtype = policy(config.conditioning).params

    def init() -> TrainState:
        # Drawn in float32, so that the same seed gives the same weights, rounded, whatever their format.
        params = jax.tree.map(lambda p: p.astype(dtype), nnx.to_pure_dict(nnx.state(_create(config))))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    # Random numbers are drawn once, and LLVM takes six times longer to optimise them than to draw them (laptop config:
    # compiled in 5.7 s and drawn in 0.1 s with optimisation, 0.9 s and 0.4 s without, of processor time).
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=shardings(abstract), compiler_options=options)()
